"""One shape: the three backends have the same files, and in them the same public names; or a reason.

A name that two dialects have and the third lacks has drifted, unless it stands below with a reason. What one
dialect alone has is its own. gpt-triton's functions come in pairs, ``name_fwd`` and ``name_bwd``, and what
is an op there is a method of ``Ops``. Files that not all have stand in the README's table, with a reason.
"""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BACKENDS = ("gpt_jax", "gpt_torchfunc", "gpt_triton")
FOLDERS = {name: ROOT / "packages" / name.replace("_", "-") / "src" / name for name in BACKENDS}

LACKING = {
    "gpt_jax": {
        "tree.py:ALIGN": "JAX places its arrays itself",
        "tree.py:zeros": "its arrays are not written into: load makes them",
        "dropout.py:LOW": "its words are uint32, and wrap by themselves",
        "plan.py:DTYPES": "JAX takes the names as they are",
        "step.py:accumulate": "a step is one compiled function: the sum is a scan inside it",
        "step.py:finish": "the same",
    },
    "gpt_torchfunc": {},
    "gpt_triton": {
        "attention.py:TILE": "a tile is a program of the kernel, which has its own",
        "attention.py:attend_fused": "its ops are its own fused kernels",
        "attention.py:mix": "its op decides: attention_fwd",
        "attention.py:visible": "the mask of training is inside the op",
        "dropout.py:draw_rows": "drawn where it is used: in a kernel, or by dropout_mask in the reference",
        "dropout.py:draw_tile": "the same",
        "dropout.py:unpack": "the same",
        "loss.py:chunk_logits": "the head and its loss are one op, linear_cross_entropy",
        "loss.py:negative_log_likelihood": "the same",
        "loss.py:token_nll": "the same, without a gradient: linear_nll",
        "model.py:EPSILON": "it stands with the ops: ops.py",
        "model.py:Plan.attention": "Plan.ops decides",
        "model.py:Plan.chunk": "chosen from the shape by either set of ops",
        "model.py:gelu": "a part of reference and kernels: see gelu_linear",
        "model.py:gelu_linear": "GELU follows a product where it is fused: linear_gelu_fwd",
        "model.py:norm_linear": "LayerNorm is an op, whose result is kept or made again",
        "model.py:normalise": "the same",
        "model.py:positions": "counted on the host, with the batch",
        "optimizer.py:StepScalars": "one tensor of four, which the kernel reads",
        "options.py:Options.attention": "kernels decides",
        "plan.py:LOGITS_IN_FLIGHT": "see Plan.chunk",
        "tree.py:Leaves": "some of the parameters are a Stretch of the buffer",
        "tree.py:named_leaves": "the same",
        "tree.py:leaves_from_canonical": "fill, of a Stretch",
    },
}
"""By backend: file and name that it lacks, and why."""


def definitions(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """Public names that a module or a class defines itself."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
    return {name: node for name, node in found.items() if not name.startswith("_")}


def public_names(path: Path) -> set[str]:
    """Names of a file, and of the members of its classes behind a dot."""
    module = definitions(ast.parse(path.read_text("utf-8")).body)
    inside = {
        f"{name}.{member}"
        for name, node in module.items()
        if isinstance(node, ast.ClassDef)
        for member in definitions(node.body)
    }
    return set(module) | inside


def files(backend: str) -> set[str]:
    return {path.name for path in FOLDERS[backend].glob("*.py")} - {"__init__.py"}


SHARED = sorted(set.intersection(*(files(backend) for backend in BACKENDS)))
OPS = public_names(FOLDERS["gpt_triton"] / "ops.py")


def has(backend: str, name: str, names: set[str]) -> bool:
    """Whether a dialect has a name, in its own way."""
    if backend != "gpt_triton":
        return name in names
    return bool({name, f"{name}_fwd"} & names or {f"Ops.{name}", f"Ops.{name}_fwd"} & OPS)


def drifted(file: str) -> set[tuple[str, str]]:
    """Backend, and file and name that it alone lacks."""
    names = {backend: public_names(FOLDERS[backend] / file) for backend in BACKENDS}
    found = set()
    for name in set.union(*names.values()):
        missing = [backend for backend in BACKENDS if not has(backend, name, names[backend])]
        owner = name.partition(".")[0]
        if len(missing) == 1 and (owner == name or has(missing[0], owner, names[missing[0]])):
            found.add((missing[0], f"{file}:{name}"))
    return found


@pytest.mark.parametrize("file", SHARED)
def test_public_names_have_not_drifted(file: str) -> None:
    known = {(backend, name) for backend, lacks in LACKING.items() for name in lacks}
    assert drifted(file) - known == set()
    assert {pair for pair in known if pair[1].startswith(f"{file}:")} <= drifted(file), "a reason too many"


COUNT = runpy.run_path(str(Path(__file__).with_name("count.py")))
READ = {
    ("gpt_torchfunc",): 10,
    ("gpt_jax",): 11,
    ("gpt_triton", "reference"): 11,
    ("gpt_triton", "kernels"): 19,
    ("gpt_triton", "kernels", "kernels.hopper"): 25,
}
"""How many files a reader opens to follow one training step."""


@pytest.mark.parametrize("step", COUNT["STEPS"], ids=" ".join)
def test_a_step_takes_so_many_files_to_read(step: tuple[str, ...]) -> None:
    package, *ops = step
    files = COUNT["imported_files"](package, "step", *ops)
    assert len(files) == READ[step], [path.name for path in files]


def test_the_readme_says_how_many_files_a_step_takes_to_read() -> None:
    told = re.search(r"step takes (\d+) files of .+?, (\d+) of .+?, (\d+) of .+?, (\d+) with", README)
    assert told is not None
    assert [int(count) for count in told.groups()] == list(READ.values())[:4]


@pytest.mark.parametrize(
    "member", sorted({path.parents[1] for path in ROOT.glob("*/*/src/*")}), ids=lambda path: path.name
)
def test_no_file_is_too_long_to_read_at_once(member: Path) -> None:
    lines = {path: path.read_text("utf-8").count("\n") for path in member.glob("src/**/*.py")}
    assert {path.name for path, count in lines.items() if count > 300} == set()


def test_files_that_not_all_have_stand_in_the_readme() -> None:
    table = README.partition("## Side by side")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \| (.+?) \| (.+?) \|$", table, re.MULTILINE)
    told = {
        (f"gpt_{backend}", file)
        for named, where, _ in rows
        for file in re.findall(r"`([a-z_]+\.py)`", named)
        for backend in re.findall(r"gpt-(\w+)", where)
    }
    assert told == {(backend, file) for backend in BACKENDS for file in files(backend) - set(SHARED)}
    for file in SHARED:
        assert f"`{file}`" in table, file
