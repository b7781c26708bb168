"""The changes that scripts/mutants makes to a file (tests/mutants.py)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

_SWAPS: list[tuple[type[ast.AST], type[ast.AST]]] = [
    *((ast.Lt, ast.LtE), (ast.Lt, ast.GtE), (ast.Gt, ast.GtE), (ast.LtE, ast.Gt)),
    *((ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn), (ast.And, ast.Or)),
    *((ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.BitAnd, ast.BitOr), (ast.LShift, ast.RShift)),
]
_SWAPS += [(after, before) for before, after in _SWAPS]
_SWAPS += [(ast.FloorDiv, ast.Mult), (ast.Mod, ast.Mult)]
_SWAPS += [(left_out, ast.Pass) for left_out in (ast.Break, ast.Continue, ast.Raise, ast.Delete)]


class Mutant:
    """One change: where it is, what it is, and the changed statement of the module."""

    def __init__(self, line: int, top: int, diff: str, code: CodeType) -> None:
        self.line, self.top, self.diff, self.code = line, top, diff, code


def _all_but_one(values: list[ast.expr]) -> Iterator[list[ast.expr]]:
    for index in range(len(values)):
        yield values[:index] + values[index + 1 :]


def _variants(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in place of `node`."""
    for before, after in _SWAPS:
        if type(node) is before:
            yield after()
    match node:
        case ast.Constant(value=bool(flag)):
            yield ast.Constant(not flag)
        case ast.Constant(value=int(number)):
            yield ast.Constant(number + 1)
            yield ast.Constant(number - 1)
        case ast.Constant(value=float(real)):
            yield ast.Constant(2 * real or 1.0)
            yield ast.Constant(real / 2 or -1.0)
        case ast.BoolOp(op, values):
            for left in _all_but_one(values):
                yield left[0] if len(left) == 1 else ast.BoolOp(op, left)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.Call(ast.Name("min" | "max" as name), [_, _, *_] as values, keywords):
            yield ast.Call(
                ast.Name("max" if name == "min" else "min", ast.Load()), values, keywords
            )
            for left in _all_but_one(values):
                yield left[0] if len(left) == 1 else ast.Call(node.func, left, keywords)
        case ast.Tuple([_, _, *_] as values, ast.Load()):
            if any(isinstance(value, ast.Constant) for value in values):
                yield from (ast.Tuple(left, ast.Load()) for left in _all_but_one(values))
        case ast.comprehension(target, source, [_, *_] as filters, is_async):
            for left in _all_but_one(filters):
                yield ast.comprehension(target, source, left, is_async)
        case ast.If(_, body, other):
            yield ast.If(ast.Constant(True), body, other)
            yield ast.If(ast.Constant(False), body, other)
        case ast.IfExp(_, body, other):
            yield body
            yield other
        case ast.Expr(ast.Call()) | ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()
        case ast.AugAssign(target, _, value):
            yield ast.Assign([target], value)
            yield ast.Pass()
        case ast.Return(value) if not isinstance(value, ast.Constant | None):
            yield ast.Return(ast.Constant(None))


def _places(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Every node below `node`, with where it hangs; what is only for readers is left out."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr | ast.Import):
                yield node, field, index if isinstance(value, list) else None, child
                yield from _places(child)


def _head(statement: ast.stmt) -> str:
    """A statement without what is below it."""
    return ast.unparse(ast.fix_missing_locations(statement)).splitlines()[0]


def _functions(top: ast.stmt) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(top) if isinstance(node, ast.FunctionDef)]


def is_inside(top: ast.stmt, line: int) -> bool:
    """True if a line of a statement of a module runs when something is called."""
    return any(one.body[0].lineno <= line <= (one.end_lineno or 0) for one in _functions(top))


def mutants(path: Path) -> Iterator[Mutant]:
    """All changes of one file."""
    tree = ast.parse(path.read_text())
    for top, whole in enumerate(tree.body):
        statement = whole
        for parent, field, index, node in [(tree, "body", top, whole), *_places(whole)]:
            if isinstance(node, ast.stmt):
                statement = node
            line = getattr(node, "lineno", statement.lineno)
            if isinstance(whole, ast.ClassDef) and not any(
                one.lineno <= line <= (one.end_lineno or 0) for one in _functions(whole)
            ):
                continue
            for variant in _variants(node):
                before = _head(statement)
                _put(parent, field, index, ast.copy_location(variant, node))
                after = _head(variant if isinstance(variant, ast.stmt) else statement)
                module = ast.fix_missing_locations(ast.Module([tree.body[top]], []))
                code = compile(module, str(path.resolve()), "exec")
                _put(parent, field, index, node)
                yield Mutant(line, top, f"- {before}\n    + {after}", code)


def _put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node
