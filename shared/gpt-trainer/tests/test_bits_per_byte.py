"""Bits per byte: the loss over the bytes of exactly the tokens that are scored, whatever the vocabulary."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bpe_scratch
import numpy as np
import pytest
from gpt_data.batch import IGNORE, Batch
from gpt_data.dataset import Dataset
from gpt_data.prepare import prepare
from gpt_trainer.evaluate.validation import Evaluation, evaluate, token_bytes
from gpt_trainer.ranks.peers import Alone
from gpt_trainer.report.metrics import read_metrics
from gpt_trainer_runs import Capture, Train


def test_the_lengths_of_a_texts_tokens_are_its_bytes() -> None:
    """Also where a token is half a character; the end of a text has none."""
    text = "the theme of the thesis: θέμα, θέσις\n" * 3
    tokenizer = bpe_scratch.train([text], 290)
    lengths = token_bytes(tokenizer)
    ids = tokenizer.encode(f"{text}🙂")
    assert lengths[ids].max() > 2
    assert lengths[ids].sum() == len(f"{text}🙂".encode())
    assert (len(lengths), lengths[tokenizer.end_of_text]) == (tokenizer.vocab_size, 0)


def test_a_sure_model_needs_no_bits_and_one_that_guesses_eight() -> None:
    assert Evaluation(0.0, 3, 9).bits_per_byte == 0.0
    assert Evaluation(math.log(256.0), 7, 7).bits_per_byte == pytest.approx(8.0)
    assert str(Evaluation(math.log(256.0), 7, 14)).endswith(", 4.0000 bits per byte")
    assert Evaluation(1.0, 7).bits_per_byte is None
    # nothing but ends of documents
    assert Evaluation(1.0, 7, 0).bits_per_byte is None


class Fixed:
    """A split of one batch, and a model that finds every target to cost 2 nats."""

    def __init__(self, targets: list[int]) -> None:
        self.batch = Batch(np.zeros((1, len(targets)), np.int32), np.array([targets], np.int32))

    def sequential(self, rows: int) -> Iterator[Batch]:
        yield self.batch

    def evaluate(self, batch: Batch) -> tuple[float, int]:
        return 2.0 * batch.target_count, batch.target_count


def test_what_is_no_target_counts_no_bytes_and_costs_nothing() -> None:
    # the last id, by which -1 would count, has bytes too
    lengths = np.array([1, 10, 100], np.int32)
    scored, nothing = ([IGNORE, 0, 1, IGNORE], Evaluation(2.0, 2, 11)), ([IGNORE], Evaluation(0.0, 0, 0))
    for targets, want in (scored, nothing):
        given: Any = Fixed(targets)
        assert evaluate(given, given, 1, Alone(), lengths) == want


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_a_run_and_its_evaluation_count_the_bytes_that_they_score(
    train: Train, flags: list[str], tmp_path: Path, capsys: Capture, packing: str
) -> None:
    """Four rows of sixteen tokens: the targets are all but the first of 65, each a byte or an end."""
    (tmp_path / "texts").mkdir()
    for number in range(600):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"{number:09d}\n")
    prepare(f"text:{tmp_path / 'texts'}", "bytes", tmp_path / "shards")
    given = [*flags, f"--data=shards:{tmp_path / 'shards'}", f"--packing={packing}", "--steps=1"]
    assert train(*given, "--out=run") == 0
    found = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    data = Dataset.open(tmp_path / "shards")
    targets = data.val.read(0, 65)[1:]
    ends = int(np.count_nonzero(targets == data.vocabulary.end_of_text))
    data.close()
    assert found["val_targets"] == 64
    assert ends > 2
    assert found["val_bits_per_byte"] == pytest.approx(found["val_loss"] * 64 / math.log(2.0) / (64 - ends))
    capsys.readouterr()
    assert train("--resume=run", "--eval-only", "--json") == 0
    assert json.loads(capsys.readouterr().out)["val_bits_per_byte"] == found["val_bits_per_byte"]
