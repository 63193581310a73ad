"""Against lm-evaluation-harness, in an environment that has it: `nox -s harness`.

Its own hellaswag task, Hugging Face's own GPT-2 and a small random checkpoint: the same requests, the same
log-probabilities, the same answers item by item. Then our checkpoint as a model of the harness.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("transformers")

import bpe_scratch
from gpt_trainer.checkpoint import CheckpointState, save_checkpoint
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import init_parameters
from hellaswag_eval import choose, encode_items, evaluate_backend, read_items
from hellaswag_eval.items import Item, read_item
from hellaswag_eval.lm_eval_model import GPTFromScratch
from hellaswag_eval.models import encoder, open_checkpoint
from hellaswag_eval.protocols import split_context
from hellaswag_eval.results import Answer

DATA = Path(__file__).parents[4] / "shared" / "data"
BACKEND = "gpt-torchfunc"
# its own code and its dependencies' warn of what is theirs
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not (DATA / "hellaswag").is_dir(), reason="the data is not on this machine"),
    pytest.mark.skipif(importlib.util.find_spec("gpt_torchfunc") is None, reason=f"{BACKEND} is missing"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two layers with GPT-2's vocabulary, its weights wide enough to prefer something."""
    config = ModelConfig(n_layer=2, n_head=4, d_model=64, context=1024)
    stream = np.random.default_rng(1)
    weights = {
        name: (4.0 * value + 0.1 * stream.standard_normal(value.shape)).astype(np.float32)
        for name, value in init_parameters(config, 0).items()
    }
    files = DATA / "gpt2-tokenizer"
    tokenizer = bpe_scratch.Tokenizer.from_gpt2(files / "encoder.json", files / "vocab.bpe")
    state = CheckpointState(0, config, weights, {}, {}, tokenizer.to_json().encode())
    return save_checkpoint(tmp_path_factory.mktemp("run"), state)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """200 items in their original text, with titles joined and contexts split as the original has them."""
    whole, raw = (
        [json.loads(line) for line in gzip.decompress((DATA / "hellaswag" / name).read_bytes()).splitlines()]
        for name in ("hellaswag_val_preprocessed.jsonl.gz", "hellaswag_val_raw_1000.jsonl.gz")
    )
    path = tmp_path_factory.mktemp("data") / "items.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for values in raw:
            known = {name: whole[values["row"]][name] for name in ("activity_label", "source")}
            first, second = split_context(read_item({**values, **known}, 0, "raw"))
            json.dump({**values, **known, "ctx_a": first, "ctx_b": second}, file)
            file.write("\n")
    return choose(read_items(path), 200, seed=1)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", batch_size=8, dtype="float32")


@pytest.fixture(scope="module")
def samples(theirs: Any, items: list[Item], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the harness's task finds: ``log_probs``, ``acc``, ``acc_norm`` and ``acc_bytes`` of each item."""
    import lm_eval
    from lm_eval.tasks.hellaswag import utils

    path = tmp_path_factory.mktemp("task") / "items.jsonl"
    rows = [
        {
            "activity_label": item.activity,
            "ctx_a": item.parts[0],
            "ctx_b": item.parts[1],
            "endings": list(item.endings),
            "label": str(item.label),
        }
        for item in items
        if item.parts is not None
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "hellaswag_local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(path)}, "cache_dir": str(path.parent)},
        "output_type": "multiple_choice",
        "validation_split": "validation",
        "process_docs": utils.process_docs,
        "doc_to_text": "{{query}}",
        "doc_to_target": "{{label}}",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "acc_bytes")],
    }
    found = lm_eval.simple_evaluate(model=theirs, tasks=[task], bootstrap_iters=0, log_samples=True)
    return sorted(found["samples"]["hellaswag_local"], key=lambda sample: sample["doc_id"])


@pytest.fixture(scope="module", params=[True, False], ids=["shared", "separate"])
def answers(request: pytest.FixtureRequest, folder: Path, items: list[Item]) -> list[Answer]:
    from hellaswag_eval import Plan

    opened = open_checkpoint(folder, BACKEND, device="cpu")
    examples = encode_items(items, encoder(opened.tokenizer), "harness")
    plan = Plan(tokens_per_batch=4096, share=request.param)
    return evaluate_backend(opened.backend, examples, protocol="harness", plan=plan).answers


def test_log_probabilities_of_every_ending_agree(
    answers: list[Answer], samples: list[dict[str, Any]]
) -> None:
    assert len(answers) == len(samples) == 200
    want = np.array([[float(pair[0]) for pair in sample["filtered_resps"]] for sample in samples])
    got = np.array([answer.log_probs for answer in answers])
    assert want.std() > 1.0, "the model prefers nothing"
    # both sum some 30 float32 log-probabilities of size 10 in their own order
    assert np.abs(got / want - 1.0).max() <= 1e-5
    per_token = np.abs(got - want) / np.array([answer.tokens for answer in answers])
    assert per_token.max() <= 1e-4


@pytest.mark.parametrize("metric", ["acc", "acc_norm", "acc_bytes"])
def test_every_item_is_judged_alike(
    answers: list[Answer], samples: list[dict[str, Any]], metric: str
) -> None:
    ours = [float(answer.predictions[metric] == answer.label) for answer in answers]
    assert ours == [sample[metric] for sample in samples]
    assert 0.0 < sum(ours) < 200.0


def instances(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=given, task_name="made") for given in arguments]


@pytest.fixture(scope="module")
def ours(folder: Path) -> GPTFromScratch:
    return GPTFromScratch(str(folder), BACKEND, device="cpu")


# a choice of three, a context with blanks behind it, none at all, one longer than the model's, unicode
PAIRS = [
    ("Question: is it so?\nAnswer:", " yes"),
    ("Question: is it so?\nAnswer:", " no"),
    ("Question: is it so?\nAnswer:", " by no means"),
    ("The end is  ", "near"),
    ("", "Once upon a time"),
    ("a b c d e f g " * 200, " and so on"),
    ("Grüße aus 東京", " 🙂 naïve"),
]


def test_likelihoods_are_those_of_the_harness(ours: GPTFromScratch, theirs: Any) -> None:
    got, want = ours.loglikelihood(instances(*PAIRS)), theirs.loglikelihood(instances(*PAIRS))
    for pair, (value, greedy), (expected, expected_greedy) in zip(PAIRS, got, want, strict=True):
        assert abs(value - expected) <= 1e-4 * max(1.0, abs(expected)), pair[1]
        assert greedy == expected_greedy, pair[1]


def test_what_greedy_decoding_gives_is_called_greedy(ours: GPTFromScratch) -> None:
    context = "The quick brown fox"
    text = ours.generate_until(instances((context, {"max_gen_toks": 3})))[0]
    likely, unlikely = ours.loglikelihood(instances((context, text), (context, text + " fox")))
    assert (likely[1], unlikely[1]) == (True, False)


@pytest.mark.parametrize("words", [1, 300, 1200])
def test_rolling_likelihoods_are_those_of_the_harness(ours: GPTFromScratch, theirs: Any, words: int) -> None:
    text = " ".join(f"word{number % 7}" for number in range(words))
    got, want = (model.loglikelihood_rolling(instances((text,)))[0] for model in (ours, theirs))
    assert abs(got / want - 1.0) <= 1e-5


@pytest.mark.parametrize("until", [[], [" "], "e", ["\n\n", "th"]], ids=repr)
def test_generated_text_is_that_of_the_harness(ours: GPTFromScratch, theirs: Any, until: Any) -> None:
    settings = {"until": until, "max_gen_toks": 12, "do_sample": False}
    requests = instances(("The quick brown fox", settings), ("Once", settings))
    assert ours.generate_until(requests) == theirs.generate_until(requests)


@pytest.mark.parametrize("context", ["Once upon", ""])
def test_a_continuation_without_a_token_is_refused_in_words(ours: GPTFromScratch, context: str) -> None:
    with pytest.raises(ValueError, match=f"continuation '' behind '{context}' makes no token of its own"):
        ours.loglikelihood(instances((context, " a"), (context, "")))


def test_blanks_behind_a_context_belong_to_the_continuation(ours: GPTFromScratch, theirs: Any) -> None:
    got, want = (model.loglikelihood(instances(("Once ", "")))[0][0] for model in (ours, theirs))
    assert abs(got / want - 1.0) <= 1e-5


def test_nought_is_a_length_like_any_other(ours: GPTFromScratch) -> None:
    def text(**settings: Any) -> str:
        return ours.generate_until(instances(("Once", settings)))[0]

    assert text(max_gen_toks=0) == text(max_gen_toks=0, max_new_tokens=3) == ""
    assert text(max_gen_toks=2, top_p=0.0, do_sample=False) == text(max_gen_toks=2)
    assert text(max_gen_toks=None, max_new_tokens=2) == text(max_gen_toks=2) != ""
    for settings in ({"max_gen_toks": -1}, {"top_p": 0.0, "do_sample": True}, {"temperature": -1.0}):
        with pytest.raises(ValueError, match=r"is negative|is not in"):
            text(**settings)
