"""The pages: every piece of code that they cut by name is there, and every op has a formula that renders."""

from __future__ import annotations

import ast
import builtins
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


cells, costs, kept, many, wire = map(_load, ("cells", "costs", "kept", "many", "wire"))


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
    assert names == ["project", "draw_masks", "leave"]


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
    assert wire.traffic(config, "none", 2) == 2 * wire.traffic(config, "none", 2, width=2) == 4 * count
    ends, blocks = wire.sizes(config)
    assert wire.traffic(config, "all", 8) == 7 / 8 * (8 * ends + (2 + 2 + 4) * blocks)
    eight, many = wire.plan("gpt2-124m", "none", 8), wire.plan("gpt2-124m", "none", 512, step=2.0)
    assert 0.3 < wire.reached("gpt2-124m") < wire.reached("gpt2-1.5b") < 1.0
    assert eight.wire == pytest.approx(2 * 7 / 8 * 4 * count / (wire.reached("gpt2-124m") * 450e9) * 1e3)
    assert eight.state == pytest.approx(16 * count / 1e9)
    assert (eight.first, many.first) == ("the GPU itself", "the wire")
    assert wire.table(wire.weak()).count("<tr>") == 1 + 2 * 4 * 3


def seen(shard: str, gpus: int, speed: float, **more: object) -> dict[str, object]:
    """A line of a results file."""
    same = {"backend": "gpt-jax", "preset": "gpt2-124m", "rows": 64, "context": 1024, "precision": "bfloat16"}
    told = {"device": "NVIDIA H200", "choices": {"jax": "0.11.2"}, "date": "2026-11-29T18:12:01+00:00"}
    measured = {"tokens_per_second": speed, "ms": [110.04, 110.26], "peak_memory_bytes": 16.1e9, "note": ""}
    return same | told | measured | {"shard": shard, "gpus": gpus, "unhidden_ms": [1.04, 1.26]} | more


def test_what_was_seen_of_several_is_a_share_of_as_many_alone() -> None:
    ones = [seen("alone", n, n * speed, unhidden_ms=[]) for n, speed in ((1, 500_000.0), (2, 520_000.0))]
    large = seen("all", 2, 20_000.0, preset="gpt2-1.5b", note="slowly")
    ddp = seen("ddp", 2, 999_999.0, backend="plain", unhidden_ms=[1.0, 1.0])
    # another call
    later = [seen("alone", 2, 1_000_000.0, unhidden_ms=[]), seen("none", 2, 970_000.0)]
    without = seen("optimizer", 2, 900_000.0)
    lines = [without, *ones, large, seen("none", 2, 999_600.0), ddp, *later]
    assert many.markdown(lines).splitlines() == [
        "|  | GPUs | tokens/s | of two times one | ms a step | only sending | GB a GPU |",
        "| --- | --- | --: | --: | --: | --: | --: |",
        "| gpt2-124m, gpt-jax | two, `--shard optimizer` | 900,000 |  | 110.3 | 1.0-1.3 | 16.1 |",
        "| gpt2-124m, gpt-jax | one | 510,000 |  | 110.2 |  | 16.1 |",
        "| gpt2-124m, gpt-jax | two, `--shard none` | 999,600 | 0.980 | 110.3 | 1.0-1.3 | 16.1 |",
        "| gpt2-124m, gpt-jax | one | 500,000 |  | 110.2 |  | 16.1 |",
        "| gpt2-124m, gpt-jax | two, `--shard none` | 970,000 | 0.970 | 110.3 | 1.0-1.3 | 16.1 |",
        "| gpt2-124m, `plain.py`, `torch.compile` | two, DDP | 999,999 |  | 110.3 | 1.0 | 16.1 |",
        "| gpt2-1.5b, gpt-jax, slowly | two, `--shard all` | 20,000 |  | 110.3 | 1.0-1.3 | 16.1 |",
    ]
    ddp["tokens_per_second"] = 666_400.0
    assert many.summary(lines) == (
        "Two GPUs of one host give 0.97 to 0.98 times twice what one gives, and by `--shard none` and "
        "`optimizer` so many times the tokens/s of PyTorch's DDP around `plain.py`: "
        "gpt2-124m (gpt-jax 1.48 and 1.35)."
    )
    assert many.heading(lines).startswith("2 x NVIDIA H200 of one host (jax 0.11.2, 2026-11-29), bfloat16")
    assert wire.tabulate(many.whole(lines)).count("<tr>") == 8


def test_the_readme_holds_the_table_of_what_was_seen() -> None:
    readme = (SITE.parents[1] / "README.md").read_text(encoding="utf-8")
    lines = many.read_lines()
    assert many.markdown(lines) in readme, "run shared/site/many.py"
    assert many.summary(lines) in readme


def test_the_readme_holds_the_table_of_what_each_costs() -> None:
    readme = (SITE.parents[1] / "README.md").read_text(encoding="utf-8")
    table = costs.markdown()
    assert table in readme, "run shared/site/costs.py"
    assert len(table.splitlines()) == 9, "seven competitors, to the end"
    assert "stopped" not in table


def test_what_a_docstring_says_is_raised_is_there_and_told_once() -> None:
    sources = [ast.parse(path.read_text("utf-8")) for path in SITE.parents[1].glob("*/*/src/**/*.py")]
    nodes = [node for source in sources for node in ast.walk(source)]
    known = {*dir(builtins), *(node.name for node in nodes if isinstance(node, ast.ClassDef))}
    wrong = []
    for node in nodes:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            told = (ast.get_docstring(node) or "").partition("Raises:\n")[2].partition("\n\n")[0]
            names = re.findall(r"^ {4}(\w+):", told, re.MULTILINE)
            wrong += [(node.name, name) for name in names if name not in known or names.count(name) > 1]
    assert wrong == []
