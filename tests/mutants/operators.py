"""What a mutant is: one small change of a module's syntax tree, as a slip of the hand would make it.

Left alone is what no program reads: docstrings, texts with a space in them, and the values of a plain Enum, of which only
the names count. So are annotations and decorators, which mypy and the import of the module hold to what they are.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
NOT_MUTATED = {"annotation", "returns", "decorator_list", "type_comment", "bases"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
Function = tuple[str, int] | None  # qualified name and first line, as a code object names it


class Place(NamedTuple):
    """The outermost function whose body a node is in, the lines of its statement, and what is read to tell whether the node is
    as it was: that function's definition, or the statement where it runs at import, with the class around it."""

    function: Function = None
    lines: range = range(0)
    around: str = ""
    read: ast.AST = ast.Module([], [])


NOWHERE = Place()
Site = tuple[ast.AST, str, int | None, ast.AST, ast.AST, Place]  # parent, field, index in the field, old node, new node


@dataclass(frozen=True)
class Mutant:
    """The `number`-th change of the module at `path`. `function` is the outermost one whose body it lies in; None where the
    line runs when the module is imported. `statement` is the lines of which one runs where the changed one does. `key` tells it
    from the module's others for as long as its function reads as it does, or its statement where that runs at import."""

    path: Path
    number: int
    key: str
    line: int
    function: Function
    statement: range
    change: str

    def tree(self) -> ast.Module:
        """The module with this change."""
        tree = ast.parse(self.path.read_text())
        node, name, index, old, new, _ = list(_sites(tree))[self.number]
        ast.copy_location(new, old)
        if index is None:
            setattr(node, name, new)
        else:
            getattr(node, name)[index] = new
        return ast.fix_missing_locations(tree)


def mutants(path: Path) -> list[Mutant]:
    """All of a module's, in the order of its lines."""
    texts, alike, found = dict[ast.AST, str](), Counter[str](), list[Mutant]()
    for number, (_, _, _, old, new, place) in enumerate(_sites(ast.parse(path.read_text()))):
        if place.read not in texts:
            texts[place.read] = ast.unparse(place.read)
        change = f"{_said(old)} → {_said(new)}"
        reads = "\0".join((place.around, texts[place.read], change))
        alike[reads] += 1
        key = sha256(f"{reads}\0{alike[reads]}".encode()).hexdigest()[:8]
        line = getattr(old, "lineno", place.lines.start)
        found.append(Mutant(path, number, key, line, place.function, place.lines, change))
    return found


def _sites(node: ast.AST, around: str = "", place: Place = NOWHERE) -> Iterator[Site]:
    if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        around = f"{around}{getattr(node, 'name', '<lambda>')}."
    for name, value in ast.iter_fields(node):
        if name in NOT_MUTATED or _is_enum(node):
            continue
        if isinstance(node, FUNCTIONS) and name == "body" and place.function is None:
            place = _in_body(node, around[:-1], place)
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
                continue
            at = _at(child, around, place) if isinstance(child, ast.stmt | ast.match_case) else place
            for new in _changed(name, child):
                yield node, name, index, child, new, at
            if not isinstance(child, ast.JoinedStr):
                yield from _sites(child, around, at)


def _in_body(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, name: str, place: Place) -> Place:
    if isinstance(node, ast.Lambda):
        lines = range(node.body.lineno, (node.body.end_lineno or node.body.lineno) + 1)
        return place._replace(function=(name, node.lineno), lines=lines)
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return place._replace(function=(name, first), lines=range(0))


def _at(statement: ast.stmt | ast.match_case, around: str, place: Place) -> Place:
    at = place._replace(lines=_lines(statement))
    return at if place.function else at._replace(around=around, read=statement)


def _is_enum(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and [ast.unparse(base) for base in node.bases] == ["Enum"]


def _lines(node: ast.stmt | ast.match_case) -> range:
    """A statement's own, without those of the block below it."""
    head = node.pattern if isinstance(node, ast.match_case) else node
    last = head.end_lineno or head.lineno
    if block := getattr(node, "body", None) or getattr(node, "cases", None):
        below = block[0].pattern if isinstance(block[0], ast.match_case) else block[0]
        last = max(head.lineno, below.lineno - 1)
    return range(head.lineno, last + 1)


def _changed(name: str, child: ast.AST) -> Iterator[ast.AST]:
    if type(child) in SWAPPED:
        yield SWAPPED[type(child)]()
    elif name == "test" and isinstance(child, ast.Name | ast.Attribute | ast.Call):
        yield ast.UnaryOp(ast.Not(), child)
    elif isinstance(child, ast.UnaryOp) and isinstance(child.op, ast.Not):
        yield child.operand
    elif isinstance(child, ast.BinOp) and isinstance(child.op, ast.BitOr):
        yield child.left
    elif isinstance(child, ast.Return) and not (child.value is None or ast.unparse(child.value) == "None"):
        yield ast.Return(ast.Constant(None))
    elif isinstance(child, ast.JoinedStr) and not any(
        isinstance(p, ast.Constant) and " " in str(p.value) for p in child.values
    ):
        yield ast.JoinedStr([*child.values, ast.Constant("xx")])
    elif isinstance(child, ast.Constant):
        yield from _other_constant(child.value)


def _other_constant(value: object) -> Iterator[ast.Constant]:
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int | float):
        yield ast.Constant(value + 1)
    elif isinstance(value, str) and " " not in value:
        yield ast.Constant(value + "xx")


def _said(node: ast.AST) -> str:
    """The node as it is written; an operator has no text of its own."""
    text = ast.unparse(node) or type(node).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."
