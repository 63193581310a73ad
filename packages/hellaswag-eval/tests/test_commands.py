"""The command: one line per failure, a status, and the same figures as the library."""

from __future__ import annotations

import json
import resource
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import bpe_scratch
import gpt_trainer.registry as registry
import hellaswag_eval.models as models
import numpy as np
import pytest
from gpt_data.batch import Batch
from gpt_data.terminal import guarded
from gpt_trainer.backend import Decoder
from gpt_trainer.checkpoint import CheckpointState, save_checkpoint
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import init_parameters
from gpt_trainer.registry import BackendSpec
from hellaswag_eval import encode_items, evaluate_backend, read_items
from hellaswag_eval.models import encoder
from hellaswag_eval.score_command import run as score
from hellaswag_toy import ToyBackend, ToyModel, spec

CONFIG = ModelConfig(1, 1, 8, 64, 257)
ITEM = {"ctx": "A man runs. he", "endings": ["stops.", "falls", "is Ünïcode 🙂", "a"], "label": 2}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, BackendSpec]:
    """The backends that are there, by name."""
    found = {"gpt-toy": spec("gpt-toy")}

    def points(*, group: str) -> list[EntryPoint]:
        return [EntryPoint(name, "nowhere:SPEC", group) for name in found]

    monkeypatch.setattr(registry, "entry_points", points)
    monkeypatch.setattr(EntryPoint, "load", lambda point: found[point.name])
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    weights = init_parameters(CONFIG, 0)
    tokenizer = bpe_scratch.Tokenizer.from_bytes().to_json().encode()
    save_checkpoint(tmp_path / "run", CheckpointState(0, CONFIG, weights, {}, {}, tokenizer))
    return tmp_path / "run"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "items.jsonl"
    rows = [{**ITEM, "ctx": f"{n} {ITEM['ctx']}", "activity_label": "Running"} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def call(*arguments: object) -> int:
    return guarded("hellaswag-eval", lambda: score([str(argument) for argument in arguments]))


def test_a_full_disk_takes_neither_the_figures_nor_the_answers_of_before(
    installed: Any, run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("what another run found\n")
    given = "--model", run, "--data", data, "--limit", 5
    # what is imported, and compiled, is kept on disk too: Python would leave half of it there
    assert call(*given) == 0
    capsys.readouterr()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        assert call(*given, "--out", out) == 73
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert out.read_text() == "what another run found\n"
    assert not list(tmp_path.glob(".*"))
    found = capsys.readouterr()
    assert "harness: acc " in found.out
    assert found.err.startswith(f"hellaswag-eval: --out: cannot write {out}: File too large")


def test_json_holds_what_the_library_finds(
    installed: Any, run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    assert call("--model", run, "--data", data, "--limit", 5, "--seed", 1, "--json", "--out", out) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [values["protocol"] for values in shown] == ["completion", "harness"]
    toy = ToyBackend(CONFIG, None, type("Runtime", (), {"precision": ""}), None)
    toy.load(init_parameters(CONFIG, 0))
    tokenizer = bpe_scratch.Tokenizer.from_bytes()
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    rows = [answer["row"] for answer in answers[:5]]
    assert rows != list(range(5))
    items = [item for item in read_items(data) if item.row in rows]
    for protocol, values, given in zip(
        ("completion", "harness"), shown, (answers[:5], answers[5:]), strict=True
    ):
        found = evaluate_backend(toy, encode_items(items, encoder(tokenizer), protocol), protocol=protocol)
        assert [tuple(answer["log_probs"]) for answer in given] == [a.log_probs for a in found.answers]
        assert values | {"seconds": 0} == {
            "model": str(run), "backend": "gpt-toy", "device": "toy", "precision": "float32",
            **found.as_json(), "seconds": 0,
        }  # fmt: skip


def test_lines_name_everything(
    installed: Any, run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--model", run, "--data", data, "--protocol", "harness", "--no-share-context") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"model {run}, backend gpt-toy, device toy, precision float32"
    assert second.startswith("harness: acc ")
    assert "(12 items)" in second


class Silent(Decoder):
    """A decoder of nothing."""

    def log_probs(self, tokens: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return np.zeros(targets.shape, np.float32)

    def fork(self, rows: np.ndarray) -> Silent:
        return self


def test_flags_decide_the_batches(
    installed: Any, run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[tuple[int, ...]] = []

    def log_probs(self: ToyModel, batch: Batch) -> np.ndarray:
        batches.append(batch.tokens.shape)
        return np.zeros(batch.tokens.shape, np.float32)

    def decoder(self: ToyModel, rows: int, *, room: int, filling: np.ndarray) -> Silent:
        batches.append((rows, room))
        return Silent()

    def shapes(*flags: object) -> list[tuple[int, ...]]:
        batches.clear()
        assert call("--model", run, "--data", data, "--protocol", "completion", *flags) == 0
        return sorted(batches)

    monkeypatch.setattr(ToyBackend, "log_probs", log_probs)
    monkeypatch.setattr(ToyBackend, "decoder", decoder)
    with data.open("a") as file:
        file.write(json.dumps({**ITEM, "ctx": "a" * 45}) + "\n")
    # contexts of 32 and 64 tokens at most, and an ending of 18
    assert shapes() == [(1, 64 + 18), (12, 32 + 18)]
    assert shapes("--shapes", 1) == [(13, 64 + 18)]
    assert shapes("--tokens-per-batch", 64) == [(1, 64 + 18)] + [(2, 32 + 18)] * 6
    assert shapes("--limit", 2) == [(2, 32 + 18)]
    assert sum(rows for rows, _ in shapes("--no-share-context")) == 4 * 13


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        # no items, perhaps from a hub that does not answer, are waited for
        (["--model", "none", "--data", "absent"], 65, "none is not a folder"),
        (["--model", "RUN", "--data", "none"], 65, "none is missing"),
        (
            ["--model", "RUN", "--data", "absent", "--backend", "gpt-x"],
            65,
            "backend 'gpt-x' is not installed",
        ),
        (["--model", "RUN", "--data", "absent", "--limit", "0"], 65, "--limit 0 is not positive"),
        (["--model", "RUN", "--data", "DATA", "--shapes", "0"], 65, "--shapes 0 is not positive"),
        (["--model", "RUN", "--data", "DATA", "--tokens-per-batch", "0"], 65, "--tokens-per-batch 0"),
        (["--model", "RUN", "--data", "DATA", "--out", "no/where"], 73, "there is no folder no"),
        (["--model", "none", "--data", "DATA", "--out", "."], 73, "--out .: it is a folder"),
        (["--model", "none", "--data", "DATA", "--out", "x" * 300], 73, "x: File name too long"),
        (["--model", "x" * 300, "--data", "DATA"], 65, "x: File name too long"),
        (["--model", "none", "--data", "DATA", "--out", "DATA"], 65, "is the file of --data"),
        (["--model", "RUN", "--data", "DATA", "--tokenizer-files", "none"], 65, "has no tokenizer"),
        (["--model", "hf:none", "--data", "DATA"], 65, "--model hf:none: there is no such folder"),
        (["--model", "hf:none", "--data", "DATA", "--backend", "gpt-toy"], 65, "does not go with"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else str(value),
)
def test_what_is_wrong_is_one_line(
    installed: Any, run: Path, data: Path, capsys: pytest.CaptureFixture[str],
    arguments: list[str], status: int, words: str,
) -> None:  # fmt: skip
    places = {"RUN": str(run), "DATA": str(data)}
    assert call(*(places.get(word, word) for word in arguments)) == status
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("hellaswag-eval: ")
    assert error.count("\n") == 1


def test_items_without_a_title_are_known_before_the_model_is_opened(
    installed: Any, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "untitled.jsonl"
    path.write_text("".join(json.dumps({**ITEM, **more}) + "\n" for more in ({"activity_label": "A"}, {})))
    said = "item 1 has no activity_label, which the protocol harness needs"
    assert call("--model", run, "--data", path) == 0
    shown = capsys.readouterr()
    assert shown.err == f"{said}: completion alone\n"
    assert [line.partition(":")[0] for line in shown.out.splitlines()[1:]] == ["completion"]
    # this is no model: were it opened first, that would be said
    assert call("--model", tmp_path, "--data", path, "--protocol", "harness") == 65
    assert capsys.readouterr().err == f"hellaswag-eval: {said}; completion does without it\n"
    path.write_text(json.dumps({**ITEM, "endings": ["a", "[title]"], "label": 0, "activity_label": "A"}))
    assert call("--model", tmp_path, "--data", path) == 65
    assert capsys.readouterr().err == "hellaswag-eval: item 0: ending 1 is empty without its markers\n"


def test_the_fastest_backend_that_runs_here_is_taken(installed: dict[str, BackendSpec]) -> None:
    installed.clear()
    with pytest.raises(ValueError, match="no backend is installed"):
        models.choose_backend(None, "auto")
    installed.update({name: spec(name) for name in reversed(models.FASTEST["gpu"])})
    assert models.choose_backend(None, "auto")[0].name == models.FASTEST["cpu"][0]
    assert models.choose_backend("gpt-jax", "auto")[0].name == "gpt-jax"
    installed["gpt-jax"] = spec("gpt-jax", gpu=True)
    assert models.choose_backend(None, "auto") == (installed["gpt-jax"], "gpu")
    installed["gpt-triton"] = spec("gpt-triton", gpu=True)
    assert models.choose_backend(None, "gpu")[0].name == "gpt-triton"
    assert models.choose_backend(None, "cpu")[1] == "cpu"


def test_a_signal_ends_it(
    installed: Any, run: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import os
    import signal

    def interrupted(self: ToyModel, batch: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return np.zeros(batch.tokens.shape, np.float32)

    monkeypatch.setattr(ToyBackend, "log_probs", interrupted)
    assert call("--model", run, "--data", data, "--tokens-per-batch", 64, "--no-share-context") == 130
    assert "stopped after 1 of 48 endings" in capsys.readouterr().err
