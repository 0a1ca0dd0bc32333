"""How inputs are drawn: bytes, TOML, JSON and command lines that are nearly right."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any, Final

import click
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from faultreplay.cli import main as cli

TOML_VALUES: Final = (
    "1", "-1", "0", "1.5", "nan", "inf", "-inf", "1e300", "true", '"x"', '""', "[]", "[1]",
    '["a", "b"]', "[[0, 1], [1, 2]]",
    "{}", "{ a = 1 }", "2026-01-01", "9" * 30, "0x" + "f" * 400, '"4K"', '"278h"', '"0.4ns"', '"1000000000000000000ns"',
    '"$granule"', '"$handlers"', '"join"', '"vcpu"', '"\\u001b[31m\\u202e\\n"', "[[[[[[]]]]]]",
    '"-5us"', '"uffd-missing"',
)  # fmt: skip
NUMBERS: Final = (
    "0", "-1", "1", "2", "3", "nan", "inf", "-inf", "1e309", "0.5", "1.5", str(1 << 31), str(1 << 62), str(1 << 63),
    "9" * 400, "0x10", "", " ", "1us", "1e5s", "278h", "0.4ns", "4K", "2097153T", "x1,x2", "1..2", "1us..1ms:3",
    "1us..inf", "\x1b[31m", "1\n2", "٣",
)  # fmt: skip
JSON_VALUES: Final = (
    None, True, 0, -1, 1, 1.5, 1e308, 1 << 31, 1 << 53, 1 << 63, 1 << 64, -(1 << 63), 10**40, "", "x",
    "\x1b[31m\u202e\n", [], [1], {}, {"a": 1}, [[]], "9" * 100,
)  # fmt: skip


def damaged(data: DataObject, base: bytes) -> bytes:
    """`base` with bits flipped, bytes cut, zeroed, repeated or put in."""
    result = bytearray(base)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(len(result) - 1, 0)))
        length = data.draw(st.sampled_from((1, 2, 4, 8, 64, 512)))
        match data.draw(st.sampled_from(("flip", "flip", "flip", "set", "zero", "cut", "end", "twice", "put"))):
            case "flip" if result:
                result[at] ^= 1 << data.draw(st.integers(0, 7))
            case "set" if result:
                result[at] = data.draw(st.integers(0, 255))
            case "zero":
                result[at : at + length] = bytes(len(result[at : at + length]))
            case "cut":
                del result[at : at + length]
            case "end":
                del result[at:]
            case "twice":
                result[at:at] = result[at : at + length]
            case "put":
                result[at:at] = data.draw(st.binary(max_size=16))
    return bytes(result)


def damaged_toml(data: DataObject, base: str) -> str:
    """`base` with values replaced by ones of other types, lines lost, doubled or moved."""
    lines = base.splitlines()
    for _ in range(data.draw(st.sampled_from((1, 1, 2, 3)))):
        at = data.draw(st.integers(0, len(lines) - 1)) if lines else 0
        line = lines[at] if lines else ""
        what = data.draw(st.sampled_from(("value", "value", "value", "lose", "twice", "move", "character")))
        if what == "value" and "=" in line:
            lines[at] = f"{line.split('=')[0]}= {data.draw(st.sampled_from(TOML_VALUES))}"
        elif what == "lose" and lines:
            del lines[at]
        elif what in ("twice", "move"):
            lines.insert(data.draw(st.integers(0, len(lines))), line)
            if what == "move":
                lines.remove(line)
        elif line:
            column = data.draw(st.integers(0, len(line) - 1))
            lines[at] = line[:column] + data.draw(st.sampled_from("=[]{}\"'\x1b0.$")) + line[column + 1 :]
    return "\n".join(lines) + "\n"


def damaged_json(data: DataObject, base: bytes) -> bytes:
    """`base` with values replaced, keys lost and lists repeated; now and then not JSON at all."""
    if data.draw(st.integers(0, 9)) == 0:
        return damaged(data, base)
    tree = json.loads(base)
    for _ in range(data.draw(st.sampled_from((1, 1, 2, 3)))):
        node, key = tree, None
        for _ in range(12):
            inner = node[key] if key is not None else node
            if not isinstance(inner, dict | list) or not inner:
                break
            if key is not None and data.draw(st.integers(0, 5)) == 0:
                break
            node, key = (
                inner,
                data.draw(
                    st.sampled_from(sorted(inner)) if isinstance(inner, dict) else st.sampled_from(range(len(inner)))
                ),
            )
        if key is None:
            continue
        match data.draw(st.sampled_from(("value", "value", "value", "lose", "many"))):
            case "lose":
                del node[key]
            case "many" if isinstance(node[key], list):
                node[key] = (node[key] or [0]) * data.draw(st.sampled_from((2, 100)))
            case _:
                node[key] = copy.deepcopy(data.draw(st.sampled_from(JSON_VALUES)))  # a later change may be inside it
    return json.dumps(tree).encode()


def commands() -> dict[tuple[str, ...], click.Command]:
    """Every verb with its options, by the words that call it."""
    found: dict[tuple[str, ...], click.Command] = {}
    todo: list[tuple[tuple[str, ...], click.Command]] = [((), cli.main)]
    while todo:
        words, command = todo.pop()
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                if inner is not None:
                    todo.append(((*words, name), inner))
        else:
            found[words] = command
    return found


def command_line(
    data: DataObject, verb: tuple[str, ...], command: click.Command, paths: dict[str, list[str]], never: frozenset[str]
) -> list[str]:
    """A call of `verb`: mostly right arguments, options with values that mean nothing, nearly nothing or too much."""
    words = list(verb)
    options = [p for p in command.params if isinstance(p, click.Option) and not set(p.opts) & never]
    for param in command.params:
        if isinstance(param, click.Argument):
            words.append(_argument(data, param, paths))
        elif param.required and param in options:
            words += [param.opts[0], _value(data, param, paths)]
    for param in data.draw(st.lists(st.sampled_from(options), max_size=3)) if options else ():
        words.append(param.opts[0])
        if not param.is_flag:
            words.append(_value(data, param, paths))
    return words


def _argument(data: DataObject, param: click.Argument, paths: dict[str, list[str]]) -> str:
    if isinstance(param.type, click.Choice):
        return str(data.draw(st.sampled_from([*map(str, param.type.choices), "none-such"])))
    kinds = paths["trace"] if param.name in ("trace", "traces") else paths["file"]
    return str(data.draw(st.sampled_from([*kinds, *kinds, *paths["odd"]])))


def _value(data: DataObject, param: click.Option, paths: dict[str, list[str]]) -> str:
    kind = param.type
    name = param.opts[-1].lstrip("-")
    if isinstance(kind, click.Choice):
        return str(data.draw(st.sampled_from([*map(str, kind.choices), "none-such"])))
    if isinstance(kind, click.Path) or name in paths:
        known = paths.get(name, paths["output"] if name in ("output", "plot") else paths["trace"])
        return str(data.draw(st.sampled_from([*known, *known, *paths["odd"]])))
    return str(data.draw(st.sampled_from(NUMBERS) | st.text(max_size=8)))


def bases(folder: Path, pattern: str) -> list[Path]:
    """Corpus files, in order."""
    return sorted(path for path in folder.glob(pattern) if not re.search(r"\.(md|py)$", path.name))


def drawn(data: DataObject, choices: list[Any]) -> Any:
    """One of `choices`."""
    return data.draw(st.sampled_from(choices))
