"""The two commands from end to end: what they print, what they refuse, and how they end."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from aiayn_jax.commands import train_main, translate_main
from aiayn_jax.translation import Translator
from aiayn_runs import TINY, write_pairs
from gpt_trainer.checkpoint import find_steps


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """Numbers, of which the model learns next to nothing in three steps."""
    flags = [*TINY, "--data=numbers", "--max-pairs=40", "--steps=3", "--eval-every=0", "--longest=20"]
    assert train_main([*flags, f"--out={place / 'run'}"]) == 0
    return place / "run"


def test_numbers_are_scored_by_exact_match(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score = json.loads((run / "score.json").read_text())
    assert (score["name"], score["sentences"], score["averaged_steps"]) == ("exact_match", 600, [3])


def test_the_start_says_what_is_learnt_from_and_the_end_what_to_type(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*TINY, f"--data={write_pairs(place)}", "--steps=2", "--eval-every=0"]
    assert train_main([*flags, f"--out={place / 'is said'}"]) == 0
    captured = capsys.readouterr()
    said, noted = captured.out.splitlines(), captured.err.splitlines()
    assert noted[0] == "pairs: 23 training, 1 validation, 1 test"
    assert noted[3].startswith("batches: 3 an epoch in 1 shapes 8x(8+8); ")
    assert noted[3].endswith("% of the positions are filled up")
    assert said[-1].startswith(f"next: aiayn-jax-translate --model '{place / 'is said'}' --text ")
    assert any(line.startswith("test: BLEU ") and "tok:13a" in line for line in said)


def test_a_terminal_says_what_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of what is then not there, which is sooner tested."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.chdir(tmp_path)
    assert train_main([f"--data=multi30k:{tmp_path}"]) == 65
    assert "preparing the pairs" in capsys.readouterr().err
    assert translate_main([f"--model={tmp_path}", "--text=7"]) == 65
    assert "loading the model" in capsys.readouterr().err


def test_a_line_out_for_every_line_in(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["12", "", "4,096\r", "a line that is longer than twenty tokens\u2028is cut, and said so"]
    (tmp_path / "in").write_bytes("\n".join(lines).encode())
    assert translate_main([f"--model={run}", f"--input={tmp_path / 'in'}", "--device=cpu", "--beam=1"]) == 0
    captured = capsys.readouterr()
    found = captured.out.split("\n")[:-1]
    assert len(found) == 4
    assert found[1] == ""
    assert captured.err == "1 of 4 sentences cut, longer than 20 tokens (line 4)\n"
    for line, want in zip(lines[:3], found, strict=False):
        assert translate_main([f"--model={run}", "--text", line, "--device=cpu", "--beam=1"]) == 0
        assert capsys.readouterr().out == f"{want}\n"


def test_a_reference_is_scored(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").write_text("7\n8\n")
    flags = [f"--model={run}", f"--input={tmp_path / 'in'}", "--device=cpu", "--beam=1"]
    assert translate_main(flags) == 0
    (tmp_path / "reference").write_text(capsys.readouterr().out)
    assert translate_main([*flags, f"--reference={tmp_path / 'reference'}"]) == 0
    assert capsys.readouterr().err == "aiayn-jax-translate: exact match 100.0 % of 2\n"


def test_a_step_and_its_run_differ_by_the_average(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One checkpoint: the mean of one is itself."""
    for model in (run, find_steps(run)[-1][1]):
        assert translate_main([f"--model={model}", "--text=31", "--device=cpu", "--beam=1"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


def command(name: str, *flags: str) -> list[str]:
    return [sys.executable, "-c", f"from aiayn_jax.commands import {name}; {name}()", *flags]


def test_the_standard_input_is_read_from_a_pipe(run: Path, tmp_path: Path) -> None:
    # no more lines are translated together than are read at a time
    flags = [f"--model={run}", "--device=cpu", "--beam=1", f"--batch={10**19}"]
    done = subprocess.run(
        command("translate", *flags), input="5\n\n6", capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 3


def test_a_full_disk_behind_the_output_is_one_line(run: Path) -> None:
    flags = [f"--model={run}", "--device=cpu", "--beam=1", "--text=5"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command("translate", *flags), stdout=full, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert done.returncode == 73
    assert done.stderr == (
        "aiayn-jax-translate: cannot write to the standard output: No space left on device\n"
    )


def test_ctrl_c_lets_the_search_under_way_end(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's end under XLA's work was a crash: status -11."""
    search, ended = Translator._search, []

    def interrupted(*given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        found = search(*given)
        ended.append(found.shape[0])
        return found

    monkeypatch.setattr(Translator, "_search", interrupted)
    flags = [f"--model={run}", "--device=cpu", "--beam=1", "--batch=1"]
    assert translate_main([*flags, "--text=1\n2\n3"]) == 130
    assert ended == [1]


@pytest.mark.parametrize("signal_of", [signal.SIGINT, signal.SIGTERM], ids=lambda one: one.name)
def test_a_signal_before_the_first_step_leaves_nothing(
    place: Path,
    signal_of: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def learn(*_: object) -> None:
        os.kill(os.getpid(), signal_of)
        time.sleep(20)

    monkeypatch.setattr("aiayn_jax.data.preparation.learn_tokenizer", learn)
    began = time.monotonic()
    assert train_main([*TINY, "--data=numbers", f"--out={place / 'early'}"]) == 75
    assert time.monotonic() - began < 10
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "aiayn-jax-train: stopped before the first step; the same command begins again"
    assert not (place / "early").exists()


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--data=wmt15"], 65, "--data wmt15 is none of numbers, "),
        (["--preset=huge"], 65, "unknown preset 'huge'; choose one of demo, small, base, big"),
        (["--steps=0"], 65, "steps=0 is not positive and finite"),
        ([f"--beam={10**19}"], 65, f"beam={10**19} is above 1024"),
        (["--lr-scale=inf"], 65, "lr_scale=inf is not positive and finite"),
        (["--lr-scale=nan"], 65, "lr_scale=nan is not positive and finite"),
        (["--length-penalty=nan"], 65, "length_penalty=nan is not in [0, infinity)"),
        (["--length-penalty=inf"], 65, "length_penalty=inf is not in [0, infinity)"),
        (["--dropout=nan"], 65, "dropout=nan is not in [0, 1)"),
        (["--label-smoothing=nan"], 65, "label_smoothing=nan is not in [0, 1)"),
        (["--n-head=3"], 65, "is not an even multiple of n_head=3"),
        (["--vocab=256"], 65, "--vocab 256: "),
        (["--longest=1"], 65, "raise --longest"),
        (["--resume=nowhere"], 65, "--resume nowhere: there is no such folder"),
        (["--resume=nowhere", "--preset=demo"], 65, "--preset demo does not go with --resume"),
        (["--config=nowhere"], 65, "--config: nowhere is missing"),
        (["--out=/dev/null/x"], 73, "cannot create /dev/null/x"),
        (["--data=pairs:long,short"], 65, "long has 3 lines and short has 2"),
        (["--data=pairs:long,bytes"], 65, "bytes line 2 is not UTF-8 at byte 1"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_done_ends_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long").write_bytes(b"a\nb\nc\n")
    (tmp_path / "short").write_bytes(b"a\nb\n")
    (tmp_path / "bytes").write_bytes(b"a\n\xff\nc\n")
    assert train_main(["--device=cpu", "--max-pairs=40", *flags]) == status
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("aiayn-jax-train: ")
    assert message in captured.err.splitlines()[-1]
    assert "Traceback" not in captured.err
    # nothing came of it, so nothing is left of it
    assert not any(path.is_file() for path in tmp_path.rglob("runs/**/*"))


def test_a_run_is_neither_overwritten_nor_changed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_main(["--steps=1", f"--out={run}"]) == 65
    assert "holds a run already" in capsys.readouterr().err
    assert train_main([f"--resume={run}", "--d-model=16"]) == 65
    line = capsys.readouterr().err
    assert "--d-model 16 cannot change on resume" in line
    assert "--init-from" not in line, "there is no such flag here"
    assert train_main([f"--resume={run}", "--steps=2"]) == 65
    assert "has taken 3 already" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_weights(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*TINY, f"--data={write_pairs(place)}", "--eval-every=0", "--save-every=1", "--lr-scale=1e18"]
    assert train_main([*flags, f"--out={place / 'wild'}"]) == 70
    line = capsys.readouterr().err.splitlines()[-1]
    assert "what was saved is as it was" in line
    assert len(list((place / "wild").glob("non-finite-step-*.npz"))) == 1
    # the steps before it are whole
    assert translate_main([f"--model={place / 'wild'}", "--text=one", "--device=cpu", "--beam=1"]) == 0


def test_other_data_is_refused_on_resume(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*TINY, f"--data={write_pairs(place)}", "--steps=2", "--eval-every=0"]
    assert train_main([*flags, f"--out={place / 'one'}"]) == 0
    (place / "src").write_text((place / "src").read_text().replace("two", "six"))
    assert train_main([f"--resume={place / 'one'}"]) == 65
    line = capsys.readouterr().err
    assert "is other data than" in line
    assert "--init-from" not in line, "there is no such flag here"


def test_the_commands_refuse_each_others_models(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = shutil.copytree(find_steps(run)[-1][1], tmp_path / "step")
    from gpt_jax.options import SPEC
    from gpt_trainer.commands import sample_main

    assert sample_main(SPEC, [f"--model={step}", "--device=cpu"]) == 65
    assert "model_type" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=nowhere"], "nowhere is not a folder"),
        (["--model=."], "holds no checkpoint"),
        (["--model=.", "--text=a", "--input=b"], "--text and --input do not go together"),
        (["--model=.", "--beam=0"], "--beam 0 is not positive"),
        (["--model=.", f"--beam={10**19}"], f"--beam {10**19} is above 1024"),
        (["--model=.", "--length-penalty=-1"], "--length-penalty -1.0 is not in [0, infinity)"),
        (["--model=.", "--length-penalty=inf"], "--length-penalty inf is not in [0, infinity)"),
        (["--model=.", "--text=\udcff"], "--text is not UTF-8"),
        (["--model=.", "--input=."], "holds no checkpoint"),
        (["--model=.", "--input=x", "--reference=y"], "2 lines to translate, but --reference y has 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_translate_refuses_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    (tmp_path / "x").write_text("a\nb\n")
    (tmp_path / "y").write_text("a\n")
    assert translate_main([*flags, "--device=cpu"]) == 65
    captured = capsys.readouterr()
    assert captured.err.startswith("aiayn-jax-translate: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
