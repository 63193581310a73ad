"""The pages: every piece of code that they cut by name is there, and every op has a formula that renders."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

SITE = Path(__file__).parents[1] / "shared" / "site"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SITE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


cells, kept, wire = _load("cells"), _load("kept"), _load("wire")


@pytest.mark.parametrize(("package", "reference"), list(cells.references()), ids=":".join)
def test_every_cell_is_cut_from_a_source(package: str, reference: str) -> None:
    found = cells.cut(package, reference)
    name = reference.rpartition(":")[2].rpartition(".")[2]
    assert f" {name}" in found.text
    assert '"""' not in found.text.partition(":\n")[2].partition("\n")[0], "without its docstring"
    compile(found.text, reference, "exec")


def test_the_readme_s_table_of_places_names_what_is_there() -> None:
    readme = (SITE.parents[1] / "README.md").read_text("utf-8")
    rows = re.findall(r"(?m)^\| (.+) \|$", readme.partition("| where is |")[2].partition("\n\n")[0])[1:]
    assert len(rows) > 10
    for row in rows:
        title, *dialects = row.split(" | ")
        assert len(dialects) == 4, title
        for name, package, file in re.findall(r"\[`(\w+)`\]\(packages/[\w-]+/src/(\w+)/([\w/.]+)\)", row):
            assert cells.cut(package, f"{file}:{name}").text
        assert row.count("](") == len(re.findall(r"\[`\w+`\]\(packages/[\w-]+/src/", row)), title


def test_every_op_has_all_three_dialects_and_its_words() -> None:
    for op in cells.step_table():
        assert op["words"].endswith("."), op["title"]
        assert all(op[dialect] for dialect in cells.DIALECTS), op["title"]


def test_calls_stand_in_the_order_of_the_text() -> None:
    tree = cells.call_tree("gpt_torchfunc", "model.py:apply_block", ("model.py", "dropout.py"))
    names = [call.name.partition(":")[2] for call in tree.calls]
    assert names == ["project", "mix", "merge", "expand", "contract"]


def test_a_variable_of_a_function_s_name_is_no_call_and_a_custom_derivative_is_one() -> None:
    files = ("model.py", "dropout.py", "gathering.py")
    # its variable `multiply` is not dropout's function
    linear = cells.call_tree("gpt_jax", "model.py:linear", files)
    assert [call.name for call in linear.calls] == ["model.py:matrix_product", "model.py:add_bias"]
    # handed on by `of_chunk or chunk_loss_and_gradients`
    loss = cells.call_tree("gpt_torchfunc", "loss.py:head_loss_and_gradients", ("loss.py",))
    assert [call.name.partition(":")[2] for call in loss.calls] == ["chunk_loss_and_gradients", "_chunks"]
    gather = cells.call_tree("gpt_jax", "gathering.py:gather_rows", files)
    assert [call.name.partition(":")[2] for call in gather.calls] == ["gather_rows_fwd", "gather_rows_bwd"]


def test_a_name_that_is_gone_is_told() -> None:
    with pytest.raises(LookupError, match=r"gpt_jax/model\.py defines no layer_norn"):
        cells.cut("gpt_jax", "model.py:layer_norn")


def test_what_a_block_keeps_is_what_the_packages_say() -> None:
    strips = kept.strips()
    # as gpt_jax.model, gpt_torchfunc.gradients and gpt_triton.ops promise
    assert {dialect: strip.widths for dialect, strip in strips.items()} == {
        "JAX": 10,
        "torch.func": 10,
        "Triton, --keep less": 7,
        "Triton, --keep all": 16,
    }
    assert all(strip.widths + sum(widths for _, widths in strip.again) >= 16 for strip in strips.values())
    assert kept.drawn(strips).count("<rect") == sum(len(s.kept) + len(s.again) for s in strips.values())


def test_what_goes_over_the_wire_is_the_ring_s_share() -> None:
    config = wire.MODEL_PRESETS["gpt2-124m"]
    count = 124_439_808
    assert sum(wire.sizes(config)) == count
    # a sum on all of two GPUs: each sends half of the gradient twice
    assert wire.traffic(config, "none", 2).bytes == 4 * count
    ends, blocks = wire.sizes(config)
    assert wire.traffic(config, "all", 8).bytes == 7 / 8 * (8 * ends + (2 + 2 + 4) * blocks)
    eight, many = wire.plan("gpt2-124m", "none", 8), wire.plan("gpt2-124m", "none", 512, step=2.0)
    assert eight.wire == pytest.approx(2 * 7 / 8 * 4 * count / 450e9 * 1e3)
    assert eight.state == pytest.approx(16 * count / 1e9)
    assert (eight.first, many.first) == ("the GPU itself", "the wire")
    assert wire.table(wire.weak()).count("<tr>") == 1 + 2 * 4 * 3
