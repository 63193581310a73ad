"""Every backend answers every HellaSwag item alike, its context shared by the endings or not."""

from __future__ import annotations

import json
from pathlib import Path

import bpe_scratch
import numpy as np
import pytest
from gpt_trainer.checkpoint import CheckpointState, save_checkpoint
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import init_parameters
from hellaswag_eval import Evaluation, Example, Plan, encode_items, evaluate_backend, read_items
from hellaswag_eval.models import Opened, encoder, open_checkpoint

BACKENDS = ("gpt-jax", "gpt-torchfunc", "gpt-triton")
CONTEXT = 96
VERBS = (
    "runs to the door",
    "jumps",
    "falls asleep in the sun",
    "sings a very old song about the sea",
    "waits",
)
NOUNS = (
    "A man",
    "The girl with the red hat",
    "A dog",
    "Grüße aus 東京 🙂",
    "Somebody who is not in the picture",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, odd sizes, weights wide enough to prefer something."""
    config = ModelConfig(n_layer=2, n_head=3, d_model=36, context=CONTEXT, vocab_size=257)
    stream = np.random.default_rng(7)
    weights = {
        name: (4.0 * value + 0.1 * stream.standard_normal(value.shape)).astype(np.float32)
        for name, value in init_parameters(config, 5).items()
    }
    tokenizer = bpe_scratch.Tokenizer.from_bytes().to_json().encode()
    folder = tmp_path_factory.mktemp("run")
    save_checkpoint(folder, CheckpointState(0, config, weights, {}, {}, tokenizer))
    return folder


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """Forty items of many lengths; the contexts of some are longer than the model's."""
    stream = np.random.default_rng(3)
    rows = []
    for number in range(40):
        sentences = [f"{noun} {verb}." for noun in NOUNS for verb in VERBS]
        drawn = stream.choice(sentences, int(stream.integers(1, 4 if number % 5 else 9)))
        endings = [str(verb) for verb in stream.permutation(VERBS)[:4]]
        rows.append({"ctx": f"{' '.join(drawn)} she", "endings": endings, "label": int(stream.integers(4))})
    path = tmp_path_factory.mktemp("data") / "items.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return encode_items(read_items(path), encoder(bpe_scratch.Tokenizer.from_bytes()), "completion")


@pytest.fixture(scope="module")
def found(run: Path, examples: list[Example]) -> dict[tuple[str, bool], Evaluation]:
    """By backend and by whether contexts are shared; few shapes, as JAX compiles each."""
    opened: dict[str, Opened] = {name: open_checkpoint(run, name, device="cpu") for name in BACKENDS}
    plans = {
        share: Plan(tokens_per_batch=4096, most_shapes=1, width_step=64, share=share)
        for share in (True, False)
    }
    return {
        (name, share): evaluate_backend(opened[name].backend, examples, plan=plan)
        for name in BACKENDS
        for share, plan in plans.items()
    }


def log_probs(evaluation: Evaluation) -> np.ndarray:
    return np.array([answer.log_probs for answer in evaluation.answers])


@pytest.mark.parametrize("share", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_items_are_answered_alike(
    found: dict[tuple[str, bool], Evaluation], backend: str, share: bool
) -> None:
    got, want = found[backend, share], found["gpt-torchfunc", False]
    assert log_probs(want).std() > 1.0, "the model prefers nothing"
    # a sum over an ending's tokens, in float32: a millionth of it, or of a hundred nats if it is smaller
    distance = np.abs(log_probs(got) - log_probs(want))
    assert (distance <= 1e-6 * np.maximum(np.abs(log_probs(want)), 100.0)).all()
    assert [answer.predictions for answer in got.answers] == [answer.predictions for answer in want.answers]
    assert len({answer.predictions["acc"] for answer in got.answers}) > 1
    assert got.truncated == want.truncated
    assert 0 < got.truncated < len(got.answers)
