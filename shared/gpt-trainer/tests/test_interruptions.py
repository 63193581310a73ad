"""Signals, outputs and terminals that fail, to the toy's commands in processes of their own."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gpt_trainer.checkpoint import find_steps
from gpt_trainer_runs import start


@pytest.mark.parametrize(
    "command",
    [
        ["sample", "--model=done", "--tokens=4"],
        ["sample", "--model=done", "--tokens=4", "--count=2"],
        ["train", "--resume=done", "--eval-only", "--json"],
        ["train", "--resume=done", "--eval-only"],
    ],
    ids=" ".join,
)
def test_an_output_that_is_full_is_73_and_one_line(
    finished: Path, tmp_path: Path, command: list[str]
) -> None:
    shutil.copytree(finished, tmp_path / "done")
    with Path("/dev/full").open("w") as full, start(*command, cwd=tmp_path, stdout=full) as process:
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 73
    assert said.splitlines()[-1] == (
        f"gpt-toy-{command[0]}: cannot write to the standard output: No space left on device"
    )
    assert "Traceback" not in said


def test_a_standard_error_that_is_full_ends_no_run(flags: list[str], tmp_path: Path) -> None:
    """bpe-scratch tells that Numba is missing, the run that its text is short, and that it heard a signal."""
    (tmp_path / "text.txt").write_text("the cat and the dog and the cow\n" * 100)
    given = [*flags, "--data=text:text.txt", "--data-cache=cache", "--out=run"]
    with (
        Path("/dev/full").open("w") as full,
        start("train", *given, cwd=tmp_path, stderr=full, fault="sigterm:5") as process,
    ):
        assert process.stdout is not None
        assert "stopped by SIGTERM after step 6" in process.stdout.read()
    assert process.returncode == 75


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
@pytest.mark.parametrize("columns", ["1", "80"])
def test_no_terminal_ends_a_run(flags: list[str], tmp_path: Path, encoding: str, columns: str) -> None:
    """A curve of bars that the encoding lacks, and a window of one column."""
    ours, theirs = pty.openpty()
    options = {"PYTHONIOENCODING": encoding, "COLUMNS": columns, "TERM": "xterm"}
    with start(
        "train", *flags, "--out=done", cwd=tmp_path, stdout=theirs, stderr=theirs, environment=options
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 1 << 16)
            except OSError:
                break
    os.close(ours)
    assert process.returncode == 0, shown.decode(errors="replace")
    assert b"Traceback" not in shown
    assert find_steps(tmp_path / "done")[-1][0] == 12
    # what the panel that stays says, in bold
    assert columns == "1" or b"\x1b[1mdone\x1b" in shown
    assert columns == "1" or b"loading the model" in shown
    assert b" left" not in shown.rpartition(b"12/12")[2]


def test_a_pipe_that_lacks_a_character_goes_on_to_the_end(flags: list[str], tmp_path: Path) -> None:
    """The untrained model's samples hold bytes that are no text."""
    with start(
        "train",
        *flags,
        "--out=a run",
        cwd=tmp_path,
        environment={"PYTHONIOENCODING": "ascii", "UV_RUN_RECURSION_DEPTH": "1"},
    ) as process:
        said, _ = process.communicate()
    assert process.returncode == 0
    # who typed `uv run` has no other way to our commands
    assert "next: uv run gpt-toy-sample --model 'a run'" in said
    assert "   or train on: uv run gpt-toy-train --resume 'a run' --steps" in said
    with start("train", *flags, "--out=a run", cwd=tmp_path) as process:
        assert process.communicate()[1].endswith(
            "a run holds a run already: go on with --resume 'a run', or choose another --out\n"
        )


def test_a_signal_while_the_tokenizer_is_built_is_answered(flags: list[str], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"{number:x}{number * 7919 % 10007:o}" for number in range(400_000)))
    # the last words win
    flags = [*flags, f"--data=text:{text}", "--tokenizer=bpe-scratch:30000", f"--data-cache={tmp_path}"]
    with start("train", *flags, cwd=tmp_path, environment={"TOY_LACKS": ""}) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "building the tokenizer" in line:
                break
        time.sleep(0.5)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    assert process.returncode == 75
    # two seconds are promised; the tests share their machine
    assert time.monotonic() - began < 6.0


def test_before_there_is_anything_to_save_a_signal_ends_the_process(tmp_path: Path) -> None:
    """No handler is installed while a model loads: the fault is planted where it is read."""
    code = (
        "import os, signal, sys\n"
        "from gpt_trainer import commands\n"
        "from gpt_trainer.settings import command_line\n"
        "from gpt_trainer_toy import SPEC\n"
        "command_line.existing_run = lambda path: os.kill(os.getpid(), getattr(signal, sys.argv[1]))\n"
        "sys.exit(commands.train_main(SPEC, ['--resume=none']))\n"
    )
    for name, status in (("SIGTERM", -signal.SIGTERM), ("SIGINT", 130)):
        done = subprocess.run(
            [sys.executable, "-c", code, name],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
