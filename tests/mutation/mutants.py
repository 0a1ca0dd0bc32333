"""Small faults that could be in a module: each is one node of its syntax tree, changed."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

_COMPARED: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_COMPUTED: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.Mod: ast.Add,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change: the `number`-th node of the module in `ast.walk`'s order becomes another."""

    number: int
    variant: int
    line: int
    column: int
    words: str


def mutants(source: str) -> list[Mutant]:
    """All of a module, in the order of its lines."""
    tree = ast.parse(source)
    out_of_bounds = _untouched(tree)
    found = []
    for number, node in enumerate(ast.walk(tree)):
        if id(node) in out_of_bounds:
            continue
        for variant, (words, _) in enumerate(_changes(node)):
            found.append(Mutant(number, variant, node.lineno, node.col_offset + 1, words))
    return sorted(found, key=lambda mutant: (mutant.line, mutant.number, mutant.variant))


def mutated(source: str, mutant: Mutant) -> ast.Module:
    """The module's tree with the change."""
    tree = ast.parse(source)
    for number, node in enumerate(ast.walk(tree)):
        if number == mutant.number:
            _, change = list(_changes(node))[mutant.variant]
            changed = change(copy.deepcopy(node))
            for parent in ast.walk(tree):
                for name, value in ast.iter_fields(parent):
                    if value is node:
                        setattr(parent, name, changed)
                    elif isinstance(value, list) and any(item is node for item in value):
                        setattr(parent, name, [changed if item is node else item for item in value])
            return ast.fix_missing_locations(tree)
    raise AssertionError("no such node")


def _untouched(tree: ast.Module) -> set[int]:
    """Annotations, docstrings, decorators, messages of errors, and what only a type checker reads."""
    roots: list[ast.AST | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            roots += [node.returns, *(arg.annotation for arg in ast.walk(node.args) if isinstance(arg, ast.arg))]
            roots += node.decorator_list
        elif isinstance(node, ast.AnnAssign):
            roots.append(node.annotation)
        elif isinstance(node, ast.Raise | ast.JoinedStr) or _is_docstring(node) or _is_for_checkers(node):
            roots.append(node)
    return {id(inner) for root in roots if root is not None for inner in ast.walk(root)}


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_for_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


Change = Callable[[ast.AST], ast.AST]


def _changes(node: ast.AST) -> Iterator[tuple[str, Change]]:  # noqa: PLR0912 - one branch a kind of node
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            if other := _COMPARED.get(type(operator)):
                yield f"{type(operator).__name__} -> {other.__name__}", _swap_comparison(place, other)
    elif isinstance(node, ast.BinOp | ast.AugAssign):
        if swapped := _COMPUTED.get(type(node.op)):
            yield f"{type(node.op).__name__} -> {swapped.__name__}", _set("op", swapped())
        if isinstance(node, ast.AugAssign):
            yield "statement left out", lambda _: ast.Pass()
    elif isinstance(node, ast.BoolOp):
        joined = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield f"{type(node.op).__name__} -> {type(joined).__name__}", _set("op", joined)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert):
        yield f"{type(node.op).__name__} left out", lambda n: n.operand  # type: ignore[attr-defined]
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        yield "condition the other way round", _negated
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield f"{node.value} -> {not node.value}", _set("value", not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield f"{node.value} -> {node.value + 1}", _set("value", node.value + 1)
    elif isinstance(node, ast.Assign) and any(isinstance(t, ast.Subscript | ast.Attribute) for t in node.targets):
        yield "statement left out", lambda _: ast.Pass()
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "call left out", lambda _: ast.Pass()
    elif isinstance(node, ast.Continue | ast.Break):
        other_way = ast.Break if isinstance(node, ast.Continue) else ast.Continue
        yield f"{type(node).__name__} -> {other_way.__name__}", lambda _: other_way()


def _set(name: str, value: object) -> Change:
    def change(node: ast.AST) -> ast.AST:
        setattr(node, name, value)
        return node

    return change


def _swap_comparison(place: int, other: type[ast.cmpop]) -> Change:
    def change(node: ast.AST) -> ast.AST:
        assert isinstance(node, ast.Compare)
        node.ops[place] = other()
        return node

    return change


def _negated(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.If | ast.While | ast.IfExp)
    node.test = ast.UnaryOp(ast.Not(), node.test)
    return node
