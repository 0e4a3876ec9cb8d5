"""Shrinking: find a shorter program that fails alike, by removing lines, arguments and operands."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator, Sequence, Set


def shrunk(
    lines: Sequence[str], fails: Callable[[list[str]], bool], lasting: Set[str] = frozenset()
) -> list[str]:
    """Remove one thing after the other as long as the program `fails`, and return the shortest."""
    best, smaller = list(lines), True
    while smaller:
        smaller = False
        for candidate in _candidates(best, lasting):
            if fails(candidate):
                best, smaller = candidate, True
                break
    return best


def _candidates(lines: list[str], lasting: Set[str]) -> Iterator[list[str]]:
    """Yield programs without a half, a quarter, ... a line, later ones first; then simpler
    lines."""
    size = len(lines) // 2
    while size:
        for start in range(len(lines) - size, -1, -1):
            yield lines[:start] + lines[start + size :]
        size //= 2
    for number, line in reversed(list(enumerate(lines))):
        for simpler in simpler_lines(line, lasting):
            yield [*lines[:number], simpler, *lines[number + 1 :]]


def simpler_lines(line: str, lasting: Set[str]) -> Iterator[str]:
    """Yield the line without one keyword, or with a part of an expression instead of the whole."""
    tree = ast.parse(line)
    nodes = list(ast.walk(tree))
    for place, node in enumerate(nodes):
        if isinstance(node, ast.Call):
            for index, keyword in enumerate(node.keywords):
                if keyword.arg in lasting:
                    continue
                changed = copy.deepcopy(tree)
                del list(ast.walk(changed))[place].keywords[index]  # type: ignore[attr-defined]
                yield ast.unparse(changed)
    for node in nodes:
        for name, field in ast.iter_fields(node):
            for index, child in enumerate(field if isinstance(field, list) else [field]):
                if isinstance(child, ast.expr) and not isinstance(child, (ast.Name, ast.Constant)):
                    for part in _parts(child):
                        if isinstance(part, ast.Name) and part.id in lasting:
                            continue
                        _put(node, name, index, part)
                        yield ast.unparse(tree)
                    _put(node, name, index, child)


def _parts(node: ast.expr) -> list[ast.expr]:
    """Return the operands of an expression, which may replace it."""
    if isinstance(node, ast.Call):
        of = [node.func.value] if isinstance(node.func, ast.Attribute) else []
        return [*of, *node.args]
    if isinstance(node, (ast.Subscript, ast.Attribute)):
        return [node.value]
    return [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]


def _put(node: ast.AST, name: str, index: int, child: ast.expr) -> None:
    field = getattr(node, name)
    if isinstance(field, list):
        field[index] = child
    else:
        setattr(node, name, child)
