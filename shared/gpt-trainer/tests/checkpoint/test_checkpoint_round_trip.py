"""What is saved is what is loaded, under the names and by the rules that the run's folder promises."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gpt_data.store.reading import UnreadableError
from gpt_trainer.checkpoint import (
    CheckpointState,
    find_steps,
    load_checkpoint,
    load_model,
    prune,
    resolve,
    save,
    save_checkpoint,
    step_or_newest,
)
from gpt_trainer.errors import InputError, WriteError
from gpt_trainer.parameters import parameter_shapes

Make = Callable[..., CheckpointState]
Same = Callable[[CheckpointState, CheckpointState], bool]
FILES = [
    "config.json",
    "manifest.json",
    "model.safetensors",
    "optimizer.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer.json",
]

# float64 sum of the embedding in the stored steps
GOLDEN_SUM = -0.035274318302981555


def steps_of(run: Path) -> list[int]:
    return [step for step, _ in find_steps(run)]


def fail_on_refusal(message: str) -> None:
    pytest.fail(message)


def test_a_loaded_step_equals_the_saved_one_to_the_bit(
    tmp_path: Path, make_state: Make, same_state: Same
) -> None:
    state = make_state(100)
    folder = save_checkpoint(tmp_path / "deep" / "run", state)
    assert folder == tmp_path / "deep" / "run" / "checkpoints" / "step-00000100"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert same_state(load_checkpoint(folder), state)
    assert list(load_checkpoint(folder).parameters) == list(parameter_shapes(state.model))


def test_the_optimizer_names_its_trees_and_what_they_hold(
    tmp_path: Path, make_state: Make, same_state: Same
) -> None:
    """One that keeps one array of the matrices and two of the rest; and one that keeps nothing."""
    state = make_state(1)
    matrices, rest = (
        {name: value for name, value in state.parameters.items() if (value.ndim == 2) == flat}
        for flat in (True, False)
    )
    for step, trees in enumerate(({"momentum": matrices, "first": rest, "second": rest}, {})):
        given = state._replace(step=step, optimizer_state=trees)
        assert same_state(load_checkpoint(save_checkpoint(tmp_path, given)), given)


def test_special_floats_keep_their_bits(tmp_path: Path, make_state: Make, same_state: Same) -> None:
    state = make_state(1)
    # smallest subnormal, negative zero, largest finite
    state.parameters["transformer.wpe.weight"][:] = [[1e-45, -0.0], [3.4028235e38, -1e-38]]
    assert same_state(load_checkpoint(save_checkpoint(tmp_path, state)), state)


def test_without_a_tokenizer_there_is_no_tokenizer_file(tmp_path: Path, make_state: Make) -> None:
    folder = save_checkpoint(tmp_path, make_state(1)._replace(tokenizer_json=None))
    assert not list(folder.glob("tokenizer*"))
    assert load_checkpoint(folder).tokenizer_json is None
    assert json.loads((folder / "config.json").read_bytes())["eos_token_id"] is None


def test_config_json_describes_a_gpt2(tmp_path: Path, make_state: Make) -> None:
    values = json.loads((save_checkpoint(tmp_path, make_state(1)) / "config.json").read_bytes())
    expected = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 1, "n_head": 1}
    expected |= {"n_embd": 2, "n_positions": 2, "n_ctx": 2, "vocab_size": 5, "tie_word_embeddings": True}
    expected |= {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "torch_dtype": "float32"}
    # the end of text of the tokenizer at hand, not GPT-2's 50256
    expected |= {"bos_token_id": 4, "eos_token_id": 4, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    assert {key: values.get(key) for key in expected} == expected


def test_arrays_changed_after_the_save_do_not_change_the_step(
    tmp_path: Path, make_state: Make, same_state: Same
) -> None:
    state = make_state(1)
    folder = save_checkpoint(tmp_path, state)
    for value in state.parameters.values():
        value += 1
    assert same_state(load_checkpoint(folder), make_state(1))


def test_views_and_other_orders_are_saved_as_their_values(
    tmp_path: Path, make_state: Make, same_state: Same
) -> None:
    state = make_state(1)
    # a transposed view of a transposed copy, and the names in reverse
    strange = {name: np.ascontiguousarray(state.parameters[name].T).T for name in reversed(state.parameters)}
    assert same_state(load_checkpoint(save_checkpoint(tmp_path, state._replace(parameters=strange))), state)


def test_saving_the_same_step_again_changes_nothing(run: Path, make_state: Make) -> None:
    folder = run / "checkpoints" / "step-00000002"

    def identity() -> dict[str, tuple[int, int, int]]:
        stats = {path.name: path.stat() for path in folder.iterdir()}
        return {name: (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats.items()}

    before = identity()
    assert save_checkpoint(run, make_state(2)) == folder
    assert identity() == before
    assert steps_of(run) == [1, 2]


def test_saving_other_content_over_a_whole_step_is_refused(
    run: Path, make_state: Make, same_state: Same
) -> None:
    with pytest.raises(WriteError, match=r"step-00000002 exists with other content; resume from") as caught:
        save_checkpoint(run, make_state(2)._replace(trainer={"position": 0}))
    assert caught.value.exit_status == 73
    assert same_state(load_checkpoint(resolve(run)), make_state(2))
    assert not list((run / "checkpoints").glob(".tmp*"))


def test_a_step_that_cannot_be_read_is_not_taken_for_damaged(
    run: Path, make_state: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise UnreadableError(f"cannot read {folder}: Input/output error")

    monkeypatch.setattr(save, "verify", refuse)
    with pytest.raises(WriteError, match=r"step-00000002 exists: cannot read .*: Input/output error"):
        save_checkpoint(run, make_state(2))
    assert sorted(path.name for path in (run / "checkpoints").iterdir() if path.is_dir()) == [
        "step-00000001",
        "step-00000002",
    ]


@pytest.mark.parametrize("gone", ["", "manifest.json"])
def test_a_damaged_step_is_moved_aside_and_replaced(
    run: Path, make_state: Make, same_state: Same, gone: str
) -> None:
    folder = run / "checkpoints" / "step-00000002"
    (folder / "trainer.json").write_bytes(b"{}")
    if gone:
        (folder / gone).unlink()
    save_checkpoint(run, make_state(2))
    assert same_state(load_checkpoint(folder), make_state(2))
    aside = [path for path in folder.parent.iterdir() if path.name.startswith("damaged-step-00000002-")]
    assert [(path / "trainer.json").read_bytes() for path in aside] == [b"{}"]
    assert steps_of(run) == [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s._replace(step=-1), "step=-1 is negative"),
        (lambda s: s._replace(trainer={"loss": float("nan")}), "not JSON"),
        (lambda s: s._replace(trainer={"path": Path()}), "not JSON"),
        (lambda s: s._replace(tokenizer_json=b"not json"), "tokenizer_json"),
        (
            lambda s: s._replace(parameters=s.parameters | {"extra": np.zeros(1, np.float32)}),
            "unexpected extra",
        ),
        (lambda s: s._replace(optimizer_state={"a": {"b": np.zeros(1, np.float32)}}), "a of .*unexpected b"),
        (lambda s: s._replace(optimizer_state={"a.b": s.parameters}), "'a.b', which is no name"),
        (lambda s: s._replace(optimizer_state={"second": poisoned(s)}), "second of the optimizer: .*NaN"),
        (lambda s: s._replace(parameters=poisoned(s)), "ln_f.bias holds NaN"),
    ],
    ids=[
        "step",
        "nan-in-json",
        "object",
        "tokenizer",
        "extra",
        "extra-state",
        "tree",
        "nan-state",
        "nan-weight",
    ],
)
def test_a_state_that_could_not_be_loaded_is_not_saved(
    change: Callable[[CheckpointState], CheckpointState], message: str, run: Path, make_state: Make
) -> None:
    with pytest.raises(ValueError, match=message):
        save_checkpoint(run, change(make_state(3)))
    assert steps_of(run) == [1, 2]


def poisoned(state: CheckpointState) -> dict[str, np.ndarray]:
    return state.parameters | {"transformer.ln_f.bias": np.array([0, np.nan], np.float32)}


def test_newest_goes_by_number_and_not_by_time(run: Path, make_state: Make) -> None:
    for step in (9, 10, 123456789):
        save_checkpoint(run, make_state(step))
    for age, (_, folder) in enumerate(find_steps(run)):
        for path in [*folder.iterdir(), folder]:
            os.utime(path, (2_000_000_000 - age * 31_536_000,) * 2)
    assert steps_of(run) == [1, 2, 9, 10, 123456789]
    assert step_or_newest(run, load_checkpoint, fail_on_refusal).step == 123456789


def test_junk_in_the_folder_is_passed_over(run: Path, make_state: Make) -> None:
    checkpoints = run / "checkpoints"
    names = ["xstep-00000099", "step-00000099x", "step-00000099.tmp", "step-099", "step-000000099", "step-"]
    names += ["step--0000001", "step-1e000009", "step-٠٠٠٠٠٠٩٩", "step-00000099\n", "STEP-00000099", "99"]
    names += [".tmp-step-00000099-00000000", ".nfs000000000001", "damaged-step-00000099-00000000"]
    for name in names:
        shutil.copytree(checkpoints / "step-00000001", checkpoints / name)
    (checkpoints / "step-00000077").mkdir()
    (checkpoints / "step-00000078").write_bytes(b"a file")
    (checkpoints / "step-00000079").symlink_to(checkpoints / "step-00000001")
    assert steps_of(run) == [1, 2]
    assert step_or_newest(run, load_checkpoint, fail_on_refusal).step == 2
    save_checkpoint(run, make_state(3))
    left = {path.name for path in checkpoints.iterdir()}
    # only what a dead save has left is removed, and only by the next save
    assert set(names) - left == {".tmp-step-00000099-00000000"}


def test_resolve_takes_a_run_its_checkpoints_or_a_step(run: Path) -> None:
    newest = run / "checkpoints" / "step-00000002"
    assert resolve(run) == resolve(run / "checkpoints") == resolve(newest) == newest
    older = run / "checkpoints" / "step-00000001"
    assert resolve(older) == older
    assert step_or_newest(older, load_checkpoint, fail_on_refusal).step == 1
    assert step_or_newest(run, load_checkpoint, fail_on_refusal).step == 2


@pytest.mark.parametrize(
    "take",
    [resolve, lambda path: step_or_newest(path, load_checkpoint, fail_on_refusal)],
    ids=["resolve", "load"],
)
@pytest.mark.parametrize("name", ["missing", "empty", "file"])
def test_a_path_without_a_checkpoint_is_refused_by_name(
    name: str, take: Callable[[Path], object], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=name) as caught:
        take(tmp_path / name)
    assert caught.value.exit_status == 65


def test_sampling_needs_no_optimizer(run: Path, make_state: Make) -> None:
    (resolve(run) / "optimizer.safetensors").unlink()
    model, state = load_model(resolve(run)), make_state(2)
    assert (model.step, model.model, model.tokenizer_json) == (2, state.model, state.tokenizer_json)
    assert all(
        model.parameters[name].tobytes() == state.parameters[name].tobytes() for name in state.parameters
    )


@pytest.mark.parametrize(
    ("keep_last", "best", "left"),
    [
        (1, None, [5]),
        (2, None, [4, 5]),
        (2, 1, [1, 4, 5]),
        (2, 5, [4, 5]),
        (9, None, [1, 2, 3, 4, 5]),
        (1, 77, [5]),
    ],
)
def test_retention_keeps_the_newest_and_the_best(
    keep_last: int, best: int | None, left: list[int], run: Path, make_state: Make
) -> None:
    for step in (3, 4, 5):
        save_checkpoint(run, make_state(step))
    assert prune(run, keep_last, best) == sorted({1, 2, 3, 4, 5} - set(left))
    assert steps_of(run) == left
    assert not list((run / "checkpoints").glob(".trash*"))


def test_a_damaged_step_does_not_count_as_kept(run: Path, make_state: Make) -> None:
    for step in (3, 4):
        save_checkpoint(run, make_state(step))
    assert prune(run, keep_last=3, best_step=None) == [1]
    # the same size and time of change as before: only the content tells
    path = run / "checkpoints" / "step-00000004" / "model.safetensors"
    raw, time = bytearray(path.read_bytes()), path.stat().st_mtime_ns
    raw[-1] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(time, time))
    assert prune(run, keep_last=2, best_step=None) == []
    assert prune(run, keep_last=1, best_step=None) == [2]
    assert steps_of(run) == [3, 4]


def test_retention_refuses_to_keep_nothing(run: Path) -> None:
    with pytest.raises(ValueError, match="keep_last=0"):
        prune(run, 0, None)
    assert prune(run.with_name("nowhere"), 1, None) == []


@pytest.mark.parametrize("version", [1, 2])
def test_steps_of_every_version_are_read(version: int) -> None:
    golden = Path(__file__).parent / "data" / f"version-{version}" / "checkpoints" / "step-00000003"
    state = load_checkpoint(golden)
    assert state.step == 3
    assert state.trainer == {"position": 24, "loss": 3.1, "best": None, "flags": ["a", {"b": True}]}
    embedding = state.parameters["transformer.wte.weight"]
    assert float(embedding.sum(dtype=np.float64)) == GOLDEN_SUM
    assert list(state.optimizer_state) == ["first", "second"]
    for name, value in state.parameters.items():
        first, second = (tree[name] for tree in state.optimizer_state.values())
        assert np.array_equal(first, value * np.float32(0.5)), name
        assert np.array_equal(second, value * value), name
