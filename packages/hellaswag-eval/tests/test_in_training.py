"""The evaluation that a training run makes: its items, its metrics, and what is refused before it begins."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import bpe_scratch
import pytest
from gpt_data.stopping import StopFlag
from gpt_trainer.errors import InputError
from hellaswag_eval import choose, encode_items, evaluate_backend, read_items
from hellaswag_eval.in_training import SPEC, Options, prepare
from hellaswag_eval.items import Item
from hellaswag_eval.models import encoder
from hellaswag_toy import ToyModel

TOKENIZER = bpe_scratch.Tokenizer.from_bytes()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "items.jsonl"
    rows = [
        {
            "ctx": f"Number {n} is here. it",
            "endings": ["goes.", "stays.", "is red.", "was."],
            "label": n % 4,
            "activity_label": "Counting",
        }
        for n in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_it_is_registered() -> None:
    points = entry_points(group="gpt_trainer.evaluations")
    assert [point.load() for point in points if point.name == "hellaswag"] == [SPEC]


def test_metrics_name_the_protocol(data: Path) -> None:
    toy = ToyModel()
    options = Options(5, 20, data, "both")
    measure = prepare(options, toy.config, TOKENIZER)
    found = measure(toy, StopFlag())  # type: ignore[arg-type]
    assert found is not None
    assert found.keys() == {
        f"hellaswag_{protocol}_{name}"
        for protocol in ("completion", "harness")
        for name in (
            "items", "truncated", "acc", "acc_stderr", "acc_norm", "acc_norm_stderr", "acc_bytes",
            "acc_bytes_stderr",
        )
    }  # fmt: skip
    assert found["hellaswag_completion_items"] == 20
    assert 0.0 <= found["hellaswag_harness_acc"] <= 1.0
    assert found == measure(toy, StopFlag()), "the subset is fixed"  # type: ignore[arg-type]
    shapes = set(toy.shapes)
    measure(toy, StopFlag())  # type: ignore[arg-type]
    assert toy.shapes == shapes
    one = prepare(replace(options, eval_hellaswag_protocol="completion"), toy.config, TOKENIZER)
    few = one(toy, StopFlag())  # type: ignore[arg-type]
    assert few == {name: value for name, value in found.items() if "completion" in name}


def test_the_items_are_drawn_and_not_the_first(data: Path) -> None:
    toy, items = ToyModel(), read_items(data)

    def accuracies(chosen: list[Item]) -> list[float]:
        examples = encode_items(chosen, encoder(TOKENIZER), "completion")
        return [figure.value for figure in evaluate_backend(toy, examples).figures.values()]

    found = prepare(Options(5, 7, data), toy.config, TOKENIZER)(toy, StopFlag())  # type: ignore[arg-type]
    assert found is not None
    got = [found[f"hellaswag_completion_{name}"] for name in ("acc", "acc_norm", "acc_bytes")]
    assert got == accuracies(choose(items, 7, seed=0)) != accuracies(items[:7])


def test_a_signal_ends_it(data: Path) -> None:
    toy, stop = ToyModel(), StopFlag()
    measure = prepare(Options(5, 20, data), toy.config, TOKENIZER)
    stop.received = 15  # type: ignore[assignment]
    assert measure(toy, stop) is None  # type: ignore[arg-type]
    assert not toy.shapes


@pytest.mark.parametrize(
    ("context", "vocab", "tokenizer", "items", "words"),
    [
        (64, 257, None, 20, "the data's tokenizer is not known"),
        (64, 200, TOKENIZER, 20, "the data's tokenizer has 257 ids"),
        (7, 257, TOKENIZER, 20, "has 8 tokens, the model's context is 7"),
        (64, 257, TOKENIZER, 0, "--eval-hellaswag-items 0 is not positive"),
    ],
    ids=["no tokenizer", "vocabulary", "context", "items"],
)
def test_what_does_not_fit_the_model_is_refused(
    data: Path, context: int, vocab: int, tokenizer: bpe_scratch.Tokenizer | None, items: int, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        prepare(Options(1, items, data), ToyModel(vocab, context).config, tokenizer)
    assert words in str(caught.value)


def test_missing_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none is missing"):
        prepare(Options(1, 9, tmp_path / "none"), ToyModel().config, TOKENIZER)
