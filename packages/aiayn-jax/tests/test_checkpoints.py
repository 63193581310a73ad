"""Checkpoints: what is saved comes back, and what is not whole or of another kind is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiayn_jax.checkpoints import (
    Saved,
    config_from_json,
    keep_newest,
    load,
    load_model,
    save,
    scheduled_steps,
)
from aiayn_jax.config import TransformerConfig, parameter_shapes
from aiayn_jax.engine import Engine
from aiayn_jax.settings import RuntimeSection
from gpt_trainer.checkpoint import (
    CheckpointState,
    find_steps,
    load_checkpoint,
    save_checkpoint,
    step_or_newest,
)
from gpt_trainer.errors import InputError
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.origin import open_model
from gpt_trainer.parameters import init_parameters

CONFIG = TransformerConfig(vocab_size=11, n_layer=1, n_head=2, d_model=4, d_ff=6, longest=9)


def make_state(step: int = 7) -> Saved:
    rng = np.random.default_rng(step)
    arrays = [
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in parameter_shapes(CONFIG).items()}
        for _ in range(3)
    ]
    return Saved(step, CONFIG, arrays[0], b"{}", {"state": {"evaluated": 3}}, (arrays[1], arrays[2]))


def trees(saved: Saved) -> tuple[dict[str, np.ndarray], ...]:
    assert saved.moments is not None
    return (saved.parameters, *saved.moments)


def test_a_step_comes_back_to_the_bit(tmp_path: Path) -> None:
    state = make_state()
    folder = save(tmp_path, state)
    assert folder == tmp_path / "checkpoints" / "step-00000007"
    found = load(folder)
    assert found[:2] == state[:2]
    assert found[3:5] == state[3:5]
    for saved, want in zip(trees(found), trees(state), strict=True):
        assert list(saved) == list(want)
        assert all(np.array_equal(saved[name], want[name]) for name in want)
    assert load_model(folder)[:2] == (7, CONFIG)
    assert load_model(folder).moments is None


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "optimizer.safetensors",
        "config.json",
        "tokenizer.json",
        "trainer.json",
        "manifest.json",
    ],
)
def test_one_flipped_bit_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, make_state())
    whole = (folder / name).read_bytes()
    for place in {0, len(whole) // 2, len(whole) - 1}:
        content = bytearray(whole)
        content[place] ^= 4
        (folder / name).write_bytes(content)
        with pytest.raises(InputError, match="refused step-00000007: "):
            load(folder)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "tokenizer.json", "manifest.json"]
)
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, make_state())
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"refused step-00000007: .*{name}.* is missing"):
        load(folder)


# "use another step, or resume the run's folder", it said once, and that none was whole
def test_a_run_of_the_other_kind_is_no_damaged_one(tmp_path: Path) -> None:
    save(tmp_path / "ours", make_state())
    refused: list[str] = []
    config = tmp_path / "ours" / "checkpoints" / "step-00000007" / "config.json"
    said = f"^{config}: model_type is 'aiayn-transformer', only 'gpt2' can be loaded$"
    with pytest.raises(InputError, match=said):
        step_or_newest(tmp_path / "ours", load_checkpoint, refused.append)
    with pytest.raises(InputError, match=said):
        open_model(tmp_path / "ours")
    size = ModelConfig(n_layer=1, n_head=1, d_model=2, context=2, vocab_size=3)
    weights = init_parameters(size, seed=0)
    save_checkpoint(tmp_path / "gpt2", CheckpointState(1, size, weights, {}, {}, None))
    for reader in (load, load_model):
        with pytest.raises(InputError, match=r"/config.json: model_type is 'gpt2', expected 'aiayn-[a-z]+'$"):
            step_or_newest(tmp_path / "gpt2", reader, refused.append)
    assert not refused


@pytest.mark.parametrize("place", range(3))
def test_what_is_not_finite_is_not_saved(tmp_path: Path, place: int) -> None:
    state = make_state()
    trees(state)[place]["embedding"][3, 1] = np.nan
    with pytest.raises(ValueError, match="of embedding are not finite"):
        save(tmp_path, state)
    assert find_steps(tmp_path) == []


VALUES = json.loads(
    '{"model_type": "aiayn-transformer", "vocab_size": 11, "n_layer": 1, "n_head": 2, "d_model": 4}'
)
VALUES |= {"d_ff": 6, "dropout": 0.1, "label_smoothing": 0.1, "longest": 9}


def test_sizes_are_read_as_written() -> None:
    assert config_from_json(VALUES, Path("config.json")) == CONFIG


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v | {"model_type": "gpt2"}, "model_type is 'gpt2', expected 'aiayn-transformer'"),
        (lambda v: {k: v[k] for k in v if k != "d_ff"}, "expected model_type, n_layer"),
        (lambda v: v | {"extra": 1}, "expected model_type, n_layer"),
        (lambda v: v | {"n_layer": True}, "n_layer is True"),
        (lambda v: v | {"n_layer": 1.0}, r"n_layer is 1\.0"),
        (lambda v: v | {"d_model": 1 << 25}, "d_model is 33554432"),
        # names of layers are made before the file is looked at: no more than a model has
        (lambda v: v | {"n_layer": 100_000}, "n_layer is 100000, at most 512"),
        (lambda v: v | {"n_head": 3}, "d_model=4 is not an even multiple of n_head=3"),
    ],
    ids=["kind", "missing", "extra", "bool", "float", "huge", "deep", "unfit"],
)
def test_hostile_sizes_are_refused(change: Callable[[dict[str, Any]], dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_from_json(change(VALUES), Path("config.json"))


def test_steps_saved_on_a_signal_push_no_scheduled_one_out(tmp_path: Path) -> None:
    """With a step every 10 and two to be averaged; 0, 13 and 17 were saved on a signal."""
    kept = []
    for step in (0, 10, 13, 17, 20, 30):
        save(tmp_path, make_state(step))
        keep_newest(tmp_path, 2, 10, 30)
        kept.append([number for number, _ in find_steps(tmp_path)])
    assert kept == [[0], [0, 10], [0, 10, 13], [0, 10, 13, 17], [0, 10, 13, 17, 20], [20, 30]]
    assert [step for step, _ in scheduled_steps(tmp_path, 10, 30)] == [20, 30]


@pytest.mark.parametrize("choice", ["unroll", "wide_logits", "deterministic"])
@pytest.mark.parametrize("value", [True, False])
def test_what_a_run_chooses_reaches_its_plan(choice: str, value: bool) -> None:
    runtime = RuntimeSection(device="cpu", **{choice: value})  # type: ignore[arg-type]
    assert getattr(Engine(CONFIG, runtime).plan, choice) is value
