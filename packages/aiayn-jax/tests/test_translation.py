"""From text to text, with a model that is told what to say; and the scores of what it said."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from aiayn_jax import translation
from aiayn_jax.config import TransformerConfig
from aiayn_jax.data.pairs import TextPairs
from aiayn_jax.data.sentences import learn_tokenizer
from aiayn_jax.model import init_parameters
from aiayn_jax.parameters import Parameters
from aiayn_jax.plan import make_plan
from aiayn_jax.scoring import score
from aiayn_jax.translation import Decoding, Translator
from gpt_trainer.errors import InputError
from hypothesis import given, settings
from hypothesis import strategies as st

TOKENIZER = learn_tokenizer(TextPairs(["aa bb"] * 9, ["cc dd"] * 9, range(9)), 262, "gpt2")
CONFIG = TransformerConfig(
    vocab_size=TOKENIZER.vocab_size, n_layer=1, n_head=2, d_model=8, d_ff=16, longest=24
)


@cache
def weights() -> Parameters:
    return init_parameters(CONFIG, 0)


def make_echo(patch: pytest.MonkeyPatch) -> Translator:
    """Repeats the source, then the end of text, and something after it."""

    def repeat(
        params: Any,
        config: Any,
        plan: Any,
        source: Any,
        lengths: Any,
        *,
        end_of_text: int,
        longest: int,
        **how: Any,
    ) -> Any:
        assert source.dtype == lengths.dtype == np.int32
        last = source[np.arange(len(source)), lengths - 1]
        assert (last[lengths > 0] == end_of_text).all(), "cut or not, a source ends"
        ids = np.full((len(source), longest), 7, np.int32)
        width = min(longest, source.shape[1])
        ids[:, :width] = source[:, :width]
        ids[np.arange(len(source)), np.minimum(lengths, longest) - 1] = end_of_text
        return ids if "beam" not in how else (ids, lengths)

    patch.setattr(translation, "greedy", repeat)
    patch.setattr(translation, "beam_search", repeat)
    return Translator(CONFIG, make_plan(CONFIG, device="cpu"), TOKENIZER)


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Translator:
    return make_echo(monkeypatch)


@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=5), max_size=9),
    st.integers(1, 4),
    st.sampled_from([1, 4]),
)
@settings(deadline=None)
def test_lines_come_back_in_their_order_and_empty_ones_stay_empty(
    lines: list[str], rows: int, beam: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        found = make_echo(patch).translate(weights(), lines, Decoding(beam, rows=rows))
    want = [line.replace("\n", " ").replace("\r", " ") if line.strip() else "" for line in lines]
    assert found == want


def test_a_sentence_too_long_is_cut_and_said_so(echo: Translator, capsys: pytest.CaptureFixture[str]) -> None:
    # 23 letters that no merge joins, and the end of text: just short enough
    found = echo.translate(
        weights(), ["xyz", "q" * 23, "q" * 24, "z" * 99], Decoding(1, rows=2), first_line=11
    )
    assert found == ["xyz", "q" * 23, "q" * 23, "z" * 23]
    assert capsys.readouterr().err == "2 of 4 sentences cut, longer than 24 tokens (lines 13, 14)\n"


def test_asked_to_stop_it_gives_nothing(echo: Translator) -> None:
    answers = iter([False, True])
    assert echo.translate_until(weights(), ["a", "b"], Decoding(1, rows=1), lambda: next(answers)) is None


def test_translations_do_not_depend_on_what_they_are_batched_with() -> None:
    plan = make_plan(CONFIG, device="cpu")
    translator, params = Translator(CONFIG, plan, TOKENIZER), weights()
    lines = ["aa", "bb aa bb", "x y"]
    together = translator.translate(params, lines, Decoding(2, rows=3))
    assert together == translator.translate(params, lines[::-1], Decoding(2, rows=3))[::-1]
    assert together[1:2] == translator.translate(params, lines[1:2], Decoding(2, rows=3))


def test_bleu_is_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    found = ["Ein Mann geht über die Straße .", "Zwei Hunde spielen im Schnee."]
    wanted = ["Ein Mann geht über die Straße.", "Zwei Hunde spielen zusammen im Schnee."]
    result = score("bleu", found, wanted)
    assert result.value == sacrebleu.corpus_bleu(found, [wanted]).score
    assert 30 < result.value < 90
    assert result.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert score("bleu", wanted, wanted).value == pytest.approx(100, abs=1e-9)


def test_exact_match_is_the_share_of_equal_lines() -> None:
    result = score("exact_match", ["4,096", "7", "12 ", "x"], ["4,096", "7", "12", "y"])
    assert result.value == 50.0
    assert str(result) == "exact match 50.0 % of 4"


@pytest.mark.parametrize(("found", "wanted"), [(["a"], []), ([], []), (["a"], ["a", "b"])])
def test_different_numbers_of_lines_cannot_be_scored(found: list[str], wanted: list[str]) -> None:
    with pytest.raises(InputError, match=f"{len(found)} translations and {len(wanted)} references"):
        score("exact_match", found, wanted)
