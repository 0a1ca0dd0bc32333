"""The digest that a file holds of itself. It detects any changed bit, also outside the page checksums.

A Parquet file holds it in its footer under ``faultreplay.sha256``; it is the SHA-256 of the file's bytes with these 64
characters taken as zeros. `meta.json` ends in a line ``"meta_sha256"``: the SHA-256 of all bytes before that line.
This detects accidents, not forgery: whoever can rewrite a file can rewrite its digest.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from faultreplay.faulttrace.errors import IncompleteData
from faultreplay.faulttrace.place import Location
from faultreplay.faulttrace.regular import open_regular

SEAL_KEY: Final = "faultreplay.sha256"
BLANK: Final = "0" * 64

# In the footer (Thrift, compact) the value follows its key: field 2, a string, of 64 bytes.
_IN_FOOTER: Final = re.compile(re.escape(SEAL_KEY.encode()) + rb"\x18\x40([0-9a-f]{64})")
_MAGIC: Final = b"PAR1"
_CHUNK_BYTES: Final = 1 << 20
_META_LINE: Final = re.compile(rb',\n "meta_sha256": "([0-9a-f]{64})"\n}\n\Z')


@dataclass(frozen=True)
class Digest:
    """The digest that a file states and its actual one (hexadecimal SHA-256)."""

    told: str
    """empty: the file states none"""
    found: str

    @property
    def holds(self) -> bool:
        """Whether the file is as it was written; False if it states no digest."""
        return self.told == self.found


def seal_parquet(path: Path) -> str:
    """Put the digest into a file that was written with `BLANK` in its place.

    Raises:
        ValueError: the file has no such place (an internal error).
    """
    with path.open("r+b") as stream:
        at = _place(stream, path)
        if at is None:
            raise ValueError(f"{path}: no place for its digest")
        found = _hash(stream, at)
        stream.seek(at)
        stream.write(found.encode())
    return found


def digest_parquet(path: Location) -> Digest:
    """The digest of the Parquet file at `path`, as stated and as computed.

    Raises:
        IncompleteData: not a whole Parquet file, or not a file.
        NoPermission: it may not be read.
    """
    with open_regular(path, IncompleteData) as stream:
        return digest_stream(stream, path)


def digest_stream(stream: BinaryIO, where: object) -> Digest:
    """As `digest_parquet`, of a file that is open, or in memory; `where` names it."""
    at = _place(stream, where)
    told = ""
    if at is not None:
        stream.seek(at)
        told = stream.read(len(BLANK)).decode()
    return Digest(told, _hash(stream, at))


def seal_meta(text: bytes) -> bytes:
    """The JSON object `text` (indented by one) with the line ``meta_sha256`` at its end."""
    body = text.rstrip()
    assert body.endswith(b"\n}"), body[-20:]
    body = body[:-2]
    return body + b',\n "meta_sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def digest_meta(data: bytes) -> Digest:
    """The digest of meta.json's bytes, as stated and as computed."""
    match = _META_LINE.search(data)
    if match is None:
        return Digest("", hashlib.sha256(data).hexdigest())
    return Digest(match[1].decode(), hashlib.sha256(data[: match.start()]).hexdigest())


def _place(stream: BinaryIO, where: object) -> int | None:
    """Offset of the digest's characters in a Parquet file; None where it has none."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(size - 8, 0))
    length, magic = int.from_bytes(stream.read(4), "little"), stream.read(4)
    start = size - 8 - length
    if magic != _MAGIC or start < len(_MAGIC):
        raise IncompleteData(f"{where}: not a whole Parquet file (truncated?): copy it again")
    stream.seek(start)
    footer = stream.read(length)
    found = list(_IN_FOOTER.finditer(footer))
    if len(found) != footer.count(SEAL_KEY.encode()) or len(found) > 1:
        raise IncompleteData(f"{where}: damaged: the digest in its footer cannot be read: copy it again")
    return start + found[0].start(1) if found else None


def _hash(stream: BinaryIO, blank_at: int | None) -> str:
    digest = hashlib.sha256()
    stream.seek(0)
    left = blank_at
    while left is None or left > 0:
        chunk = stream.read(_CHUNK_BYTES if left is None else min(_CHUNK_BYTES, left))
        if not chunk:
            return digest.hexdigest()
        digest.update(chunk)
        left = None if left is None else left - len(chunk)
    digest.update(BLANK.encode())
    stream.seek(len(BLANK), os.SEEK_CUR)
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
