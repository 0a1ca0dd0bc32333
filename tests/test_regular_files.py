"""Only regular files are read, and only as much of them as such a file may have."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from faultreplay.faulttrace.errors import IncompleteData, UsageError
from faultreplay.faulttrace.regular import check_regular, open_regular, read_bytes_file, read_text_file


def test_text_comes_out_whole(tmp_path: Path) -> None:
    path = tmp_path / "ä b\n.toml"
    path.write_text("a = 'ü'\n", encoding="utf-8")
    assert read_text_file(path) == "a = 'ü'\n"
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read_text_file(link) == "a = 'ü'\n"


@pytest.mark.parametrize("kind", ["FIFO", "directory", "device", "socket"])
def test_what_is_no_regular_file_is_never_waited_for(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        monkeypatch.chdir(tmp_path)  # a socket's name may have 108 bytes
        path = Path("x")
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("x")
    signal.alarm(20)  # a reader that waits ends the test run
    with pytest.raises(IncompleteData, match=f"a {kind}, not a regular file"):
        read_text_file(path, error=IncompleteData)
    with pytest.raises(UsageError, match="not a regular file"):
        open_regular(path)
    signal.alarm(0)


def test_size_and_encoding(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_bytes_file(path, 5) == b"12345"
    with pytest.raises(UsageError, match="more than 4 bytes"):
        read_bytes_file(path, 4)
    path.write_bytes(b"a\nb\xff")
    with pytest.raises(UsageError, match=r"x:2: not UTF-8 text: byte 3 is 0xff"):
        read_text_file(path)


def test_nothing_there_is_the_callers_to_explain(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_text_file(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        check_regular(tmp_path / "file" / "x")
    with pytest.raises(UsageError, match="null"):
        check_regular(tmp_path / "a\0b")
    with pytest.raises(UsageError, match="too long"):
        check_regular(tmp_path / ("a" * 5000))
