"""Cuts functions out of the sources by name, so that a page can show them and never go stale.

Standard library only: the tests hold every name on the pages to the sources without building them.
"""

from __future__ import annotations

import ast
import textwrap
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
STEP = Path(__file__).with_name("step.toml")
DIALECTS = {"jax": "gpt_jax", "torchfunc": "gpt_torchfunc", "triton": "gpt_triton"}
Definition = ast.FunctionDef | ast.ClassDef


class Cut(NamedTuple):
    """A definition as it stands in its file, without its docstring.

    Attributes:
        path: Relative to the repository.
        line: Where it begins, from 1.
        text: Source.
    """

    path: str
    line: int
    text: str


def sources_of(package: str) -> Path:
    """The folder of a package's modules.

    Args:
        package: Import name, as ``gpt_jax``.
    """
    member = package.replace("_", "-")
    return next(ROOT.glob(f"*/{member}/src/{package}"))


def cut(package: str, reference: str) -> Cut:
    """A function or class.

    Args:
        package: Import name.
        reference: ``file.py:name`` relative to the package; ``name`` may be ``Class.method``.

    Raises:
        LookupError: If it is not there.
    """
    file, _, name = reference.partition(":")
    path = sources_of(package) / file
    text = path.read_text("utf-8")
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        found = [n for n in getattr(node, "body", ()) if isinstance(n, Definition) and n.name == part]
        if not found:
            raise LookupError(f"{path.relative_to(ROOT)} defines no {name}")
        node = found[0]
    assert isinstance(node, Definition)
    return Cut(str(path.relative_to(ROOT)), node.lineno, _without_docstring(text.splitlines(), node))


def _without_docstring(lines: list[str], node: Definition) -> str:
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    kept = list(range(first, (node.end_lineno or node.lineno) + 1))
    body = node.body[0]
    if ast.get_docstring(node) is not None and len(node.body) > 1:
        gone = range(body.lineno, (body.end_lineno or body.lineno) + 1)
        kept = [number for number in kept if number not in gone]
    return textwrap.dedent("\n".join(lines[number - 1] for number in kept)).strip("\n")


@cache
def step_table() -> list[dict[str, Any]]:
    """The ops of one training step in their order: title, formula, words, and each dialect's cells."""
    table: list[dict[str, Any]] = tomllib.loads(STEP.read_text("utf-8"))["op"]
    return table


def references() -> Iterator[tuple[str, str]]:
    """Package and reference of every cell that is cut from a source."""
    for op in step_table():
        for dialect, package in DIALECTS.items():
            for cell in op[dialect]:
                if not cell.startswith("= "):
                    yield package, cell


def _called(node: ast.FunctionDef) -> list[str]:
    """Names that a function calls, or hands to another that calls it, each once, in the order of the text."""
    # a parameter or variable of a function's name is not that function
    own = {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
    own |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    found: dict[str, tuple[int, int]] = {}
    for used in ast.walk(node):
        if isinstance(used, ast.Call) and isinstance(used.func, ast.Attribute):
            name, used = used.func.attr, used.func
        elif isinstance(used, ast.Name) and used.id not in own:
            name = used.id
        else:
            continue
        place = (used.lineno, used.col_offset)
        found[name] = min(place, found.get(name, place))
    return sorted(found, key=lambda name: found[name])


class Call(NamedTuple):
    """A definition, and those of its package that it calls, in the order of the text.

    Attributes:
        name: ``file.py:name``.
        calls: Each once; empty where it stands in the tree already.
    """

    name: str
    calls: list[Call]


def call_tree(package: str, root: str, files: tuple[str, ...]) -> Call:
    """Who calls whom, from one function on.

    Args:
        package: Import name.
        root: ``file.py:name`` of the function to begin with.
        files: Modules whose definitions are followed; others are left out.
    """
    names: dict[str, tuple[str, list[str]]] = {}
    for file in files:
        for node in ast.parse((sources_of(package) / file).read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                names[node.name] = (f"{file}:{node.name}", _called(node))
            match node:
                # in a step JAX calls these two in the function's place
                case ast.Expr(ast.Call(ast.Attribute(ast.Name(name), "defvjp"), pair)):
                    names[name] = (
                        names[name][0],
                        [other.id for other in pair if isinstance(other, ast.Name)],
                    )
    seen: set[str] = set()

    def walk(name: str) -> Call:
        label, called = names[name]
        if name in seen:
            return Call(label, [])
        seen.add(name)
        return Call(label, [walk(other) for other in called if other in names and other != name])

    return walk(root.partition(":")[2])
