"""A run that changes its framework and its number of processes twice ends where one that stays ends.

And Hugging Face agrees.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BIN = Path(sys.executable).parent
PARITY = Path(__file__).parent / "parity"
SIZES = [
    *("--preset", "cpu-demo", "--tokenizer", "bytes", "--device", "cpu", "--plain"),
    *("--n-layer", "2", "--d-model", "48", "--n-head", "3", "--context", "64", "--dropout", "0.1"),
    # Muon's state is of more kinds than AdamW's, whose exchange the parity matrix has too
    *("--optimizer", "muon", "--muon-lr-factor", "3"),
    *("--tokens-per-step", "512", "--micro-batch", "4", "--schedule", "constant", "--warmup", "2"),
    *("--eval-every", "0", "--eval-rows", "8", "--sample-every", "0", "--save-every", "0"),
]


def run(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    text = "".join(f"{n} squared is {n * n}, cubed it is {n**3}.\n" for n in range(4000))
    (folder / "text").mkdir()
    for name in ("train", "val"):
        (folder / "text" / f"{name}.txt").write_text(text)
    given = [*SIZES, "--data", f"text:{folder / 'text'}", "--data-cache", folder / "cache"]
    run(BIN / "gpt-triton-train", *given, "--steps", 6, "--out", folder / "whole")
    chain, shared = folder / "chain", ("--shard", "optimizer")
    run(BIN / "gpt-torchfunc-train", *given, *shared, "--devices", 2, "--steps", 2, "--out", chain)
    run(BIN / "gpt-jax-train", "--resume", chain, "--devices", 1, "--shard", "none", "--steps", 4)
    run(BIN / "gpt-triton-train", "--resume", chain, "--devices", 4, *shared, "--steps", 6)
    return folder


def losses(run_folder: Path) -> np.ndarray:
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return np.array([line["loss"] for line in lines if "loss" in line])


def test_the_losses_of_the_chain_are_those_of_one_backend(runs: Path) -> None:
    whole, chain = losses(runs / "whole"), losses(runs / "chain")
    assert len(whole) == len(chain) == 6
    assert np.abs(chain / whole - 1.0).max() <= 1e-5


def test_every_backend_and_hugging_face_see_the_same_validation_loss(runs: Path) -> None:
    pytest.importorskip("transformers")
    text = run(sys.executable, PARITY / "huggingface_loss.py", runs / "chain")
    theirs = float(text.split("loss ")[1].split()[0])
    for backend in ("gpt-jax", "gpt-torchfunc", "gpt-triton"):
        words = ("--resume", runs / "chain", "--eval-only", "--json", "--device", "cpu")
        ours = json.loads(run(BIN / f"{backend}-train", *words).splitlines()[-1])["val_loss"]
        assert abs(ours - theirs) <= 1e-4, backend


def test_greedy_text_is_that_of_transformers_behind_the_end_of_text(runs: Path) -> None:
    transformers = pytest.importorskip("transformers")
    step = max((runs / "chain" / "checkpoints").glob("step-*"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(step)
    model = transformers.AutoModelForCausalLM.from_pretrained(step)
    prompt = "12 squared"
    ids = tokenizer(tokenizer.eos_token + prompt, return_tensors="pt")
    theirs = model.generate(**ids, max_new_tokens=20, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    words = (
        "--model",
        runs / "chain",
        "--prompt",
        prompt,
        "--tokens",
        20,
        "--temperature",
        0,
        "--device",
        "cpu",
    )
    ours = run(BIN / "gpt-torchfunc-sample", *words)
    assert ours.removesuffix("\n") == tokenizer.decode(theirs[0], skip_special_tokens=True)
