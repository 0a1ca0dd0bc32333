"""The system's libbpf through ctypes: open, fill in, load, attach. Only what the precompiled backend needs."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from collections.abc import Callable
from typing import Any, Final

from faultreplay.faulttrace.errors import FaultreplayError, MissingFeature

_NAMES: Final = ("libbpf.so.1", "libbpf.so.0")
_PRINT: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_WARN: Final = 0


class OpenOptions(ctypes.Structure):
    """`struct bpf_object_open_opts`; libbpf looks at no more than `sz` bytes of it."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("object_name", ctypes.c_char_p),
        ("relaxed_maps", ctypes.c_bool),
        ("pin_root_path", ctypes.c_char_p),
        ("unused", ctypes.c_uint32),
        ("kconfig", ctypes.c_char_p),
        ("btf_custom_path", ctypes.c_char_p),
    )


_POINTER, _TEXT, _INT, _U64 = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint64
_SIGNATURES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "bpf_object__open_file": (_POINTER, (_TEXT, ctypes.POINTER(OpenOptions))),
    "bpf_object__load": (_INT, (_POINTER,)),
    "bpf_object__close": (None, (_POINTER,)),
    "bpf_object__find_program_by_name": (_POINTER, (_POINTER, _TEXT)),
    "bpf_object__find_map_by_name": (_POINTER, (_POINTER, _TEXT)),
    "bpf_program__set_autoload": (_INT, (_POINTER, ctypes.c_bool)),
    "bpf_program__fd": (_INT, (_POINTER,)),
    "bpf_program__attach": (_POINTER, (_POINTER,)),
    "bpf_link__destroy": (_INT, (_POINTER,)),
    "bpf_map__fd": (_INT, (_POINTER,)),
    "bpf_map__set_max_entries": (_INT, (_POINTER, ctypes.c_uint32)),
    "bpf_map__set_initial_value": (_INT, (_POINTER, _POINTER, ctypes.c_size_t)),
    "bpf_map_update_elem": (_INT, (_INT, _POINTER, _POINTER, _U64)),
    "bpf_map_lookup_elem": (_INT, (_INT, _POINTER, _POINTER)),
    "bpf_map_delete_elem": (_INT, (_INT, _POINTER)),
    "bpf_map_get_next_key": (_INT, (_INT, _POINTER, _POINTER)),
}


class Libbpf:
    """The library; what it would print is kept in `said`.

    Raises:
        MissingFeature: not installed, or too old to take a BTF of our own (libbpf 0.8).
    """

    def __init__(self) -> None:
        self.said: list[str] = []
        self._lib = _load()
        for name, (result, arguments) in _SIGNATURES.items():
            try:
                function = getattr(self._lib, name)
            except AttributeError:
                raise MissingFeature(f"libbpf is too old: no {name} (libbpf1 1.0 or newer is needed)") from None
            function.restype, function.argtypes = result, arguments
        self._vsnprintf = ctypes.CDLL(None).vsnprintf
        self._callback = _PRINT(self._print)
        self._lib.libbpf_set_print(self._callback)

    def _print(self, level: int, form: bytes, arguments: int) -> int:
        if level == _WARN:
            text = ctypes.create_string_buffer(1024)
            self._vsnprintf(text, ctypes.c_size_t(len(text)), ctypes.c_char_p(form), ctypes.c_void_p(arguments))
            self.said += text.value.decode(errors="replace").splitlines()
        return 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(self._lib, name)
        return function

    def checked(self, name: str, *arguments: Any) -> Any:
        """Call a function that answers with a pointer or with 0; its complaint becomes the error.

        Raises:
            MissingFeature: it failed.
        """
        self.said.clear()
        result = getattr(self._lib, name)(*arguments)
        if _SIGNATURES[name][0] is _POINTER:
            if not result:
                raise MissingFeature(f"{name}: {self.reason(os.strerror(ctypes.get_errno()))}")
        elif result:
            raise MissingFeature(f"{name}: {self.reason(os.strerror(-int(result)))}")
        return result

    def reason(self, otherwise: str) -> str:
        """The most telling line of what libbpf said."""
        lines = [line.removeprefix("libbpf: ").strip() for line in self.said if line.strip()]
        telling = [line for line in lines if "not permitted" in line or "nvalid" in line or "failed" in line]
        return (telling or lines or [otherwise])[0][:200]


def _load() -> ctypes.CDLL:
    for name in _NAMES:
        try:
            return ctypes.CDLL(name, use_errno=True)
        except OSError:
            continue
    raise MissingFeature("libbpf is not installed: apt install libbpf1 (or run scripts/install-debian.sh)")


def must(status: int, what: str) -> None:
    """Raise what a map operation answered.

    Raises:
        FaultreplayError: `status` is not 0.
    """
    if status:
        raise FaultreplayError(f"{what}: {os.strerror(abs(status))}")
