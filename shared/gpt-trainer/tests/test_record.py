"""What a run wrote down about itself is believed only if it is what a run writes."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gpt_trainer.checkpoint import find_steps
from gpt_trainer.errors import InputError
from gpt_trainer.gpt2.spec import gpt2_spec
from gpt_trainer.run.folder import set_aside_later, store_record, stored_record
from gpt_trainer.run.record import Record, RunState, differences, read_record, read_state
from gpt_trainer.spikes import SpikeGuard
from gpt_trainer_runs import Capture, Train, the_line
from gpt_trainer_toy import SPEC


def forge(step: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change ``trainer.json``, and the manifest with it, as one who wants to be believed would."""
    path = step / "trainer.json"
    values = json.loads(path.read_bytes())
    change(values["trainer"])
    content = json.dumps(values).encode()
    path.write_bytes(content)
    manifest = json.loads((step / "manifest.json").read_bytes())
    manifest["files"]["trainer.json"] = {
        "size": len(content), "sha256": hashlib.sha256(content).hexdigest()
    }  # fmt: skip
    (step / "manifest.json").write_bytes(json.dumps(manifest, indent=2).encode() + b"\n")


def read(state: dict[str, Any], step: int) -> RunState:
    """As a checkpoint of the step gives it."""
    trainer = json.loads(json.dumps({"state": state}))
    return read_state(trainer, step, gpt2_spec(SPEC).check_state, "f")


def test_what_a_run_writes_is_read_back() -> None:
    guard = SpikeGuard(3.0)
    for step, norm in enumerate((1.0, 0.5, 0.7)):
        guard.observe(step, norm)
    first, none = ({"spikes": given.state()} for given in (guard, SpikeGuard(None)))
    for state in (RunState(3, 2, 4.5, 2, -1, first), RunState(0, own=none)):
        assert read({**state.own, **state.as_json()}, state.step) == state
    counted = RunState(3, 2, 4.5, 2, -1, first, tokens=192, seconds=2.5)
    assert read({**counted.own, **counted.as_json(counted=True)}, 3) == counted


STATE = {"spikes": SpikeGuard(None).state(), **RunState(5, 4, 4.5, 4, 4).as_json()}
STRANGE: list[Any] = ["x", True, None, [], {}, 2.5, 10**400, -2, 6]


@pytest.mark.parametrize(
    "name", ["evaluated", "measured", "best_step", "best_loss", "spikes", "tokens", "seconds"]
)
@pytest.mark.parametrize("value", STRANGE, ids=lambda value: str(value)[:8])
def test_a_state_of_other_types_is_refused_by_name(name: str, value: Any) -> None:
    if (name, value) in (("best_loss", 2.5), ("seconds", 2.5), ("tokens", 6)):
        return
    with pytest.raises(
        InputError, match=rf"f is damaged: in the run's state .*{name}|step is None"
    ) as caught:
        read({**STATE, name: value}, 5)
    assert caught.value.exit_status == 65


@pytest.mark.parametrize("name", ["step", "seen", "mean", "earlier_seen", "earlier_mean"])
@pytest.mark.parametrize("value", STRANGE, ids=lambda value: str(value)[:8])
def test_norms_of_other_types_are_refused_by_name(name: str, value: Any) -> None:
    if value == 2.5 and "mean" in name:
        return
    with pytest.raises(InputError, match=rf"in the run's state {name} is"):
        read({**STATE, "spikes": {**STATE["spikes"], name: value}}, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["state"].update(best_loss="x"), "in the run's state best_loss is 'x'"),
        (lambda t: t["state"].pop("evaluated"), "in the run's state evaluated is None"),
        (lambda t: t.update(state=[]), "holds no state"),
        (lambda t: t.update(options={"gpt-toy": "x"}), "options is {'gpt-toy': 'x'}"),
        (lambda t: t.update(evaluations={"hellaswag": []}), "evaluations is {'hellaswag': []}"),
        (lambda t: t.update(data=None), "data is None"),
        (lambda t: t.update(preset=7), "preset is 7"),
        (lambda t: t.update(init_from=["a"]), "init_from is ['a']"),
        (lambda t: t["config"].update(lr=10**400), "lr=1000"),
        (lambda t: t["config"].update(lr=[]), "lr=[] is not a finite number"),
    ],
    ids=["best", "missing", "state", "options", "evaluations", "data", "preset", "origin", "huge", "list"],
)
def test_a_forged_record_ends_a_resume_with_one_line(
    change: Callable[[dict[str, Any]], object], message: str, train: Train, flags: list[str], tmp_path: Path,
    capsys: Capture,
) -> None:  # fmt: skip
    assert train(*flags, "--steps=3", "--out=run") == 0
    forge(find_steps(tmp_path / "run")[-1][1], change)
    capsys.readouterr()
    assert train("--resume=run", "--steps=6") == 65
    assert message in the_line(capsys)


def test_a_record_of_the_future_is_refused() -> None:
    with pytest.raises(InputError, match="f has format 2, expected 1"):
        read_record({"format": 2}, gpt2_spec(SPEC), "f")


def test_no_flipped_bit_in_a_byte_of_a_record_is_believed(tmp_path: Path) -> None:
    spec = gpt2_spec(SPEC)
    record = Record(spec.format, spec.example, "cpu-demo", made_by={"threads": 2}).as_json()
    store_record(tmp_path, record)
    path = tmp_path / "run.json"
    content = path.read_bytes()
    stored = stored_record(tmp_path)
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        # white space may be another: the values are what is vouched for
        with contextlib.suppress(InputError):
            assert stored_record(tmp_path) == stored, f"byte {place}"


# once "keep all -> None; attention None -> written; torch 2.15.0 -> None", a line for each of a dozen
def test_what_another_backend_brings_goes_with_its_name() -> None:
    before = {"backend": "gpt-triton", "numpy": "2.0", "keep": "all", "torch": "2.15", "threads": None}
    now = {"backend": "gpt-jax", "numpy": "2.1", "jax": "0.10", "threads": 1}
    assert differences(before, now) == [
        "backend gpt-triton -> gpt-jax",
        "numpy 2.0 -> 2.1",
        "threads unset -> 1",
    ]
    assert differences(before, {**before, "keep": "less", "attention": "sdpa"}) == [
        "keep all -> less",
        "attention unset -> sdpa",
    ]


def test_a_record_of_the_first_versions_has_no_seal(tmp_path: Path) -> None:
    spec = gpt2_spec(SPEC)
    record = Record(spec.format, spec.example, "cpu-demo").as_json()
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert stored_record(tmp_path) == record


def test_a_step_that_is_taken_again_can_be_set_aside_again(tmp_path: Path) -> None:
    step = tmp_path / "checkpoints" / "step-00000007"
    for content in ("first", "second"):
        step.mkdir(parents=True)
        (step / "model").write_text(content)
        assert set_aside_later(tmp_path, 7) == []
        assert set_aside_later(tmp_path, 6) == [7]
    assert find_steps(tmp_path) == []
    assert sorted(path.read_text() for path in tmp_path.glob("checkpoints/*/model")) == ["first", "second"]
