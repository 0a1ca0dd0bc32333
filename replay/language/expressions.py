"""Arithmetic over parameters where a mechanism file gives a number: ``"$bandwidth * $readers"``."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeGuard

from faultreplay.faulttrace.errors import UsageError

_NAME = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
_BINARY: Final[dict[type[ast.operator], Callable[[float, float], float]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_CALLS: Final[dict[str, Callable[[float, float], float]]] = {"min": min, "max": max}
_LONGEST: Final = 200


def is_expression(operand: Any) -> TypeGuard[str]:
    """Whether a text names a parameter: ``$name`` alone, or within arithmetic."""
    return isinstance(operand, str) and "$" in operand


def is_arithmetic(operand: Any) -> TypeGuard[str]:
    """Whether a text is more than the name of one parameter."""
    return is_expression(operand) and not _NAME.fullmatch(operand)


def names(text: str) -> list[str]:
    """The parameters that a text names, without their ``$``."""
    return _NAME.findall(text)


def evaluate(text: str, values: Mapping[str, float]) -> float:
    """The value of numbers and ``$parameters`` joined by ``+ - * / ( )``, ``min(a, b)`` and ``max(a, b)``.

    Parameters stand in their own unit (ns, bytes, bytes/s). A division by zero is 0: a parameter of 0 stands for
    "no limit" everywhere, and so does what is derived from it.

    Raises:
        UsageError: not such an expression, or a name that is not in `values`.
    """
    if len(text) > _LONGEST:
        raise UsageError(f"an expression of more than {_LONGEST} characters")
    missing = [name for name in names(text) if name not in values]
    if missing:
        raise UsageError(f"unknown parameter '${missing[0]}': declared are {', '.join(values) or 'none'}")
    try:
        tree = ast.parse(_NAME.sub(r"PARAM_\1", text.strip()), mode="eval")
        return _value(tree.body, values)
    except (SyntaxError, ValueError, RecursionError, OverflowError):
        raise UsageError(
            f"'{text}' is no expression of parameters: write $name and numbers joined by + - * / ( ), min(a, b), "
            "max(a, b)"
        ) from None


def _value(node: ast.expr, values: Mapping[str, float]) -> float:
    if isinstance(node, ast.Name) and node.id.startswith("PARAM_"):
        return float(values[node.id.removeprefix("PARAM_")])
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left, values), _value(node.right, values)
        if isinstance(node.op, ast.Div) and right == 0:
            return 0.0
        return _BINARY[type(node.op)](left, right)
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in _CALLS
        and len(node.args) == 2
    ):
        return _CALLS[node.func.id](_value(node.args[0], values), _value(node.args[1], values))
    raise ValueError(ast.dump(node))


def named_in(entry: Any) -> Iterator[str]:
    """Names of the parameters in all texts below `entry`, but for the words about it."""
    if isinstance(entry, dict):
        for key, below in entry.items():
            if key != "says":
                yield from named_in(below)
    elif isinstance(entry, list):
        for below in entry:
            yield from named_in(below)
    elif isinstance(entry, str):
        yield from names(entry)
