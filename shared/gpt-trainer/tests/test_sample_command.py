"""The sampling command: what it continues, what it refuses, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gpt_trainer.commands import sample_main
from gpt_trainer.sample import command
from gpt_trainer_runs import Capture, Train, start, the_line
from gpt_trainer_toy import SPEC


def test_sampling_continues_the_prompt_and_repeats_itself(
    train: Train, flags: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(*flags, "--out=done") == 0
    outputs = []
    for seed in (1, 1, 2):
        capsys.readouterr()
        assert sample_main(SPEC, ["--model=done", "--prompt=def ", "--tokens=40", f"--seed={seed}"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]
    assert outputs[0].startswith("def ")
    # nothing is printed until all are drawn: a terminal says how far they are
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert sample_main(SPEC, ["--model=done", "--count=3", "--tokens=5", "--top-k=0"]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("---") == 3
    assert "loading the model" in shown.err
    assert "drawing 3 texts: 5 of 5 tokens each" in shown.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--model=nowhere"], "nowhere is not a folder"),
        (["--model=runs"], "runs holds neither checkpoints nor config.json; give a run, one of its steps"),
        (["--model=done", "--top-p=2"], "top_p=2.0"),
        (["--model=done", "--count=0"], "--count 0"),
        (["--model=done", "--top-k=-1"], "top_k=-1"),
        (["--model=done", "--device=gpu"], "device='gpu'"),
    ],
)
def test_bad_input_to_sampling(
    train: Train, flags: list[str], capsys: Capture, given: list[str], said: str
) -> None:
    Path("runs").mkdir()
    assert train(*flags, "--steps=1", "--out=done") == 0
    capsys.readouterr()
    assert sample_main(SPEC, given) == 65
    assert said in the_line(capsys)


def test_a_continuation_ends_at_the_end_of_text(
    train: Train, flags: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(*flags, "--steps=1", "--out=done") == 0
    a, b, end = 64, 65, 256
    drawn = iter([np.array(ids) for ids in ([a, end], [b, a], [end, a], [a, a])])
    monkeypatch.setattr(command, "generate", lambda *_: drawn)
    capsys.readouterr()
    assert sample_main(SPEC, ["--model=done", "--prompt=x", "--count=2", "--tokens=9"]) == 0
    assert capsys.readouterr().out == "--- 1\nxab\n--- 2\nx\n"
    assert next(drawn).tolist() == [a, a], "once all have ended no more is drawn"


def test_a_signal_ends_sampling_with_what_is_drawn(
    train: Train, flags: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(*flags, "--steps=1", "--out=done") == 0

    def draw(*_: object) -> Iterator[np.ndarray]:
        yield np.array([ord("a")])
        os.kill(os.getpid(), signal.SIGTERM)
        yield from [np.array([ord("b")])] * 9

    monkeypatch.setattr(command, "generate", draw)
    monkeypatch.setattr(command, "encode_prompt", lambda *_: np.zeros(1, np.int32))
    capsys.readouterr()
    assert sample_main(SPEC, ["--model=done", "--prompt=x", "--tokens=10"]) == 130
    assert len(capsys.readouterr().out.strip()) == 2


def test_a_reader_that_leaves_ends_sampling_quietly(train: Train, flags: list[str], tmp_path: Path) -> None:
    assert train(*flags, "--steps=1", "--out=done") == 0
    command = ("sample", "--model=done", "--tokens=100000")
    run = start(*command, cwd=tmp_path, stdout=subprocess.PIPE, environment={"TOY_LACKS": ""})
    assert run.stdout is not None
    run.stdout.read(5)
    run.stdout.close()
    assert run.wait(60) == 0
    assert run.stderr is not None
    assert run.stderr.read() == ""
    run.stderr.close()


def test_the_proposal_and_the_samples_continue_the_text_that_was_learnt(
    train: Train, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("ROMEO:  speak 'again', bright angel!\n" * 400)
    given = [*flags, "--steps=1", "--sample-every=1", f"--data=text:{text}", f"--data-cache={tmp_path}"]
    assert train(*given, "--out=run") == 0
    said = capsys.readouterr().out
    assert "--model run --prompt 'ROMEO: speak'" in said
    assert "sample\nROMEO: speak" in said
    assert train(*given, "--out=other", "--sample-prompt=") == 0
    assert "--prompt" not in capsys.readouterr().out
