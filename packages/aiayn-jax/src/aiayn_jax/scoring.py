"""How good translations are: BLEU as sacreBLEU counts it, or the share that is exactly right."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from gpt_trainer.errors import InputError

from aiayn_jax.data.sources import Score


class Result(NamedTuple):
    """A score and how it was made.

    Attributes:
        name: ``bleu`` or ``exact_match``.
        value: BLEU points, or per cent.
        signature: sacreBLEU's signature; for exact matches a sentence.
        sentences: Translations scored.
    """

    name: Score
    value: float
    signature: str
    sentences: int

    def __str__(self) -> str:
        if self.name == "bleu":
            return f"BLEU {self.value:.2f} on {self.sentences:,} sentences ({self.signature})"
        return f"exact match {self.value:.1f} % of {self.sentences:,}"


def check_available(name: Score) -> None:
    """Refuse a score that cannot be computed here, before anything long begins.

    Raises:
        InputError: If sacreBLEU is needed and not installed.
    """
    if name == "bleu" and find_spec("sacrebleu") is None:
        raise InputError("BLEU needs sacrebleu: install the extra aiayn-jax[bleu]")


def score(name: Score, translations: Sequence[str], references: Sequence[str]) -> Result:
    """Score translations against one reference each.

    Args:
        name: ``bleu``: cased, tokenised by sacreBLEU's 13a; or ``exact_match``.

    Raises:
        InputError: If the two differ in number, or there is none.
    """
    if len(translations) != len(references) or not references:
        raise InputError(f"{len(translations):,} translations and {len(references):,} references to score")
    if name == "exact_match":
        right = sum(one == other for one, other in zip(translations, references, strict=True))
        percent = 100.0 * right / len(references)
        return Result(name, percent, "per cent of lines equal to the reference", len(references))
    check_available(name)
    metric: Any = import_module("sacrebleu.metrics").BLEU()
    found = metric.corpus_score(list(translations), [list(references)])
    return Result(name, float(found.score), str(metric.get_signature()), len(references))
