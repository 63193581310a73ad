"""The command in a process of its own: full outputs, narrow windows, encodings, Ctrl-C at any time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import bpe_scratch
import pytest
from gpt_trainer.checkpoint import CheckpointState, save_checkpoint
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import init_parameters

CONFIG = ModelConfig(1, 1, 8, 64, 257)
TOY = Path(__file__).with_name("hellaswag_toy.py")


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    weights = init_parameters(CONFIG, 0)
    tokenizer = bpe_scratch.Tokenizer.from_bytes().to_json().encode()
    # a folder's name that no encoding of the terminal has
    run = tmp_path / "日本"
    save_checkpoint(run, CheckpointState(0, CONFIG, weights, {}, {}, tokenizer))
    item = {"ctx": "A man runs. he", "endings": ["stops.", "falls"], "label": 1}
    (tmp_path / "items.jsonl").write_text(f"{json.dumps(item)}\n" * 3)
    return ["--model", str(run), "--data", str(tmp_path / "items.jsonl"), "--protocol", "completion"]


def call(*arguments: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f'"$0" "$@" {shell}', sys.executable, TOY, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
    )


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_an_output_that_is_full_is_73_and_one_line(arguments: list[str], flag: list[str]) -> None:
    done = call(*arguments, *flag, shell="> /dev/full")
    assert done.returncode == 73
    assert done.stderr == "hellaswag-eval: cannot write to the standard output: No space left on device\n"


def test_no_encoding_and_no_window_ends_it(arguments: list[str]) -> None:
    done = call(*arguments, PYTHONIOENCODING="ascii", COLUMNS="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "/??, backend gpt-toy" in done.stdout
    assert "completion: acc " in done.stdout
    assert " +- " in done.stdout


def test_help_ends_whatever_the_window_and_shows_what_each_flag_takes() -> None:
    done = call("--help", COLUMNS="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "{None}" not in done.stdout
    for flag in ("--model STR", "--backend STR", "--limit INT", "--tokenizer-files PATH", "--protocol"):
        assert flag in done.stdout, flag


def test_a_flag_of_another_program_is_told_ours() -> None:
    done = call("--batch-size=4")
    assert done.returncode == 65
    assert done.stderr == (
        "hellaswag-eval: unknown flag --batch-size: perhaps you meant --tokens-per-batch\n"
    )


INTERRUPTED = """
import os, signal, sys
from hellaswag_eval.commands import main

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGINT)

wanted = sys.argv.pop(1)
assert wanted not in sys.modules, "it is imported before Ctrl-C is answered"
sys.meta_path.insert(0, Finder)
main()
"""


@pytest.mark.parametrize("module", ["numpy", "tyro", "rich", "bpe_scratch", "gpt_trainer.origin", "torch"])
def test_ctrl_c_while_it_imports_is_130_and_not_a_word(arguments: list[str], module: str) -> None:
    words = [*arguments, "--backend=gpt-torchfunc"] if module == "torch" else arguments
    if module == "torch":
        pytest.importorskip("gpt_torchfunc")
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module, *words], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_without_the_harness_its_extra_is_named() -> None:
    code = (
        "import runpy, sys; sys.modules['lm_eval'] = None; "
        "runpy.run_module('hellaswag_eval.lm_eval_model', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (65, "", 1)
    assert "needs the extra hellaswag-eval[lm-eval]" in done.stderr
