"""What the repository weighs: each member's size, what one step takes to read, and the way into the loop.

One training step of a backend takes the files that its ``step.py`` imports, directly or not, from its own
package; gpt-triton's takes those of one set of ops besides, and on a Hopper GPU a few kernels once more.

The way is walked in a real run of a tiny GPT-2, from the command's entry point to the first call of a
function ``run`` in a file ``loop.py``. Its steps are gpt-trainer's own functions and those of the
backend's ``commands.py``, each once, at its first call; comprehensions, lambdas and special methods
count as part of their caller, and what an import runs does not count. A return is a change of file, by a
call or by its end, to a file that was walked before. Two rows: the trunk, no deeper below the entry
point than the loop itself, and all of it.
"""

from __future__ import annotations

import ast
import sys
import tempfile
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
LONG = 40
STEPS = (
    ("gpt_torchfunc",),
    ("gpt_jax",),
    ("gpt_triton", "reference"),
    ("gpt_triton", "kernels"),
    ("gpt_triton", "kernels", "kernels.hopper"),
)
HOPPER = "kernels.hopper"
TEXT = "def function(x):\n    return x + 1\n" * 12
TINY = "--n-layer=1 --n-head=1 --d-model=16 --context=16 --device=cpu --steps=1 --micro-batch=2 --plain"


class Step(NamedTuple):
    """A function of ours being entered or left, and how many of ours are below it on the stack."""

    file: str
    name: str
    depth: int
    enters: bool


class Arrived(BaseException):
    """The loop has been reached."""


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from ``def`` to the end, without the docstring."""
    first = function.body[0]
    described = ast.get_docstring(function) is not None
    return function.end_lineno - function.lineno + 1 - described * (first.end_lineno - first.lineno + 1)


def weigh(folder: Path) -> tuple[int, int, int]:
    """Files, lines, and functions of over 40 lines of the Python below a folder."""
    texts = [path.read_text() for path in folder.rglob("*.py")]
    functions = [
        node
        for text in texts
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lines = sum(text.count("\n") for text in texts)
    return len(texts), lines, sum(code_lines(function) > LONG for function in functions)


def imported_files(package: str, *modules: str) -> list[Path]:
    """The files of these modules and of all that they import from their package, in functions too.

    Those of ``HOPPER`` only where it is named: they compute what others of the files do.
    """
    sources = next(ROOT.glob(f"packages/*/src/{package}"))
    found: list[Path] = []
    todo = [f"{package}.{module}" for module in modules]
    while todo:
        module = todo.pop()
        if HOPPER in module and HOPPER not in modules:
            continue
        place = sources.joinpath(*module.split(".")[1:])
        path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if place == sources or path in found or not path.is_file():
            continue
        found.append(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
                todo += [str(node.module), *(f"{node.module}.{name.name}" for name in node.names)]
    return found


def is_ours(path: str) -> bool:
    return "/gpt_trainer/" in path or path.endswith("/commands.py")


def watch(steps: list[Step]) -> Any:
    """A profiling function that notes our own functions, until the loop is reached."""

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event not in ("call", "return") or not is_ours(code.co_filename) or code.co_name[:1] == "<":
            return
        if code.co_name.startswith("__"):
            return
        depth, above = 0, frame.f_back
        while above is not None and above.f_code is not walk.__code__:
            if above.f_code.co_name == "<module>":
                return
            depth += is_ours(above.f_code.co_filename) and above.f_code.co_name[:1] != "<"
            above = above.f_back
        steps.append(Step(code.co_filename, code.co_qualname, depth, event == "call"))
        if code.co_name == "run" and Path(code.co_filename).name == "loop.py":
            sys.setprofile(None)
            raise Arrived

    return note


def walk(command: str) -> list[Step]:
    """The steps of ``command`` ("gpt-jax-train") from its entry point into the loop."""
    package = import_module(command.removesuffix("-train").replace("-", "_") + ".commands")
    steps: list[Step] = []
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts"
        texts.mkdir()
        for number in range(60):
            (texts / f"{number}.txt").write_text(TEXT)
        places = [f"--data=text:{texts}", f"--data-cache={folder}/cache", f"--out={folder}/run"]
        sys.argv = [command, "--tokenizer=bytes", "--tokens-per-step=32", *places, *TINY.split()]
        sys.setprofile(watch(steps))
        try:
            with redirect_stdout(sys.stderr):
                package.train()
        except Arrived:
            return steps
        finally:
            sys.setprofile(None)
    raise SystemExit(f"{command} ended without a loop")


def measure(steps: list[Step], depth: float) -> tuple[int, int, int]:
    """Calls, files and returns of a walk, no deeper than ``depth`` calls below the entry point."""
    stack: list[tuple[Step, bool]] = []
    known: set[tuple[str, str]] = set()
    trail: list[str] = []
    for step in steps:
        if step.depth > depth:
            continue
        if step.enters:
            new = (step.file, step.name) not in known and all(counted for _, counted in stack)
            known.add((step.file, step.name))
            stack.append((step, new))
            trail += [step.file] * new
        elif stack.pop()[1] and stack:
            trail.append(stack[-1][0].file)
    changes = [file for before, file in zip([None, *trail], trail, strict=False) if file != before]
    files = len(set(trail))
    return len(known), files, len(changes) - files


def main() -> None:
    """Print the tables; the command to walk is the first argument, ``gpt-jax-train`` without one."""
    print("| member | files | lines | over 40 | test files | test lines |\n|---|--:|--:|--:|--:|--:|")
    total = [0] * 5
    for member in sorted(path.parent for path in ROOT.glob("*/*/pyproject.toml")):
        files, lines, long = weigh(member / "src")
        test_files, test_lines, _ = weigh(member / "tests")
        row = [files, lines, long, test_files, test_lines]
        total = [a + b for a, b in zip(total, row, strict=True)]
        print(f"| {member.name} | " + " | ".join(f"{value:,}" for value in row) + " |")
    print("| all | " + " | ".join(f"{value:,}" for value in total) + " |\n")
    print("| one step | files | lines |\n|---|--:|--:|")
    for package, *ops in STEPS:
        read = imported_files(package, "step", *ops)
        lines = sum(path.read_text().count("\n") for path in read)
        print(f"| {' over '.join([package, *ops])} | {len(read)} | {lines:,} |")
    print()
    command = sys.argv[1] if len(sys.argv) > 1 else "gpt-jax-train"
    steps = walk(command)
    print(f"| {command} | calls | files | returns |\n|---|--:|--:|--:|")
    for name, depth in (("trunk", steps[-1].depth), ("all", float("inf"))):
        print(f"| {name} | " + " | ".join(map(str, measure(steps, depth))) + " |")


if __name__ == "__main__":
    main()
