"""Time lm-evaluation-harness and this package on the same items and checkpoint, and compare the answers.

Runs in an environment with lm-eval, transformers, this package and a backend. The harness runs its own
hellaswag task on Hugging Face's model; the time is that of its ``loglikelihood`` on all requests, ours that
of encoding the items and ``evaluate_backend``. Neither includes loading the model, and each side has a few
items before its clock starts, so that what a process does once (load compiled code, get its memory) is left
out of both. Beside the time on the wall stands that of all processors, which says more on a machine that
is shared.

    python packages/hellaswag-eval/bench/bench_harness.py OUT.json --model FOLDER --items FILE.jsonl
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import torch
from hellaswag_eval import Evaluation, Item, Plan, encode_items, evaluate_backend, read_items
from hellaswag_eval.models import TOKENS_PER_BATCH, encoder, open_checkpoint
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks.hellaswag import utils

WARM_UP = 8
"""Items that each side scores before it is timed."""


class Timed(HFLM):
    """Hugging Face's model, which notes how long its likelihoods take."""

    seconds = 0.0
    cpu_seconds = 0.0

    def loglikelihood(self, requests: list[Any], **settings: Any) -> Any:
        """Likelihoods of the requests."""
        super().loglikelihood(requests[: 4 * WARM_UP], **settings)
        began, began_cpu = time.perf_counter(), time.process_time()
        found = super().loglikelihood(requests, **settings)
        self.seconds, self.cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
        return found


def theirs(folder: Path, items: Path, batch_size: int) -> tuple[Timed, list[dict[str, Any]]]:
    """The harness's model, with its times, and its samples."""
    with tempfile.TemporaryDirectory() as cache:
        task = {
            "task": "hellaswag_local",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"validation": str(items)}, "cache_dir": cache},
            "output_type": "multiple_choice",
            "validation_split": "validation",
            "process_docs": utils.process_docs,
            "doc_to_text": "{{query}}",
            "doc_to_target": "{{label}}",
            "doc_to_choice": "choices",
            "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "acc_bytes")],
        }
        model = Timed(pretrained=str(folder), device="cpu", batch_size=batch_size, dtype="float32")
        found = lm_eval.simple_evaluate(model=model, tasks=[task], bootstrap_iters=0, log_samples=True)
    samples = sorted(found["samples"]["hellaswag_local"], key=lambda sample: sample["doc_id"])
    return model, samples


def ours(
    folder: Path, items: list[Item], backend: str | None, *, share: bool
) -> tuple[float, float, Evaluation]:
    """Seconds and answers of this package."""
    opened = open_checkpoint(folder, backend, device="cpu", precision="float32")
    plan = Plan(tokens_per_batch=TOKENS_PER_BATCH["cpu"], share=share)
    for part in (items[:WARM_UP], items):
        began, began_cpu = time.perf_counter(), time.process_time()
        examples = encode_items(part, encoder(opened.tokenizer), "harness")
        found = evaluate_backend(opened.backend, examples, protocol="harness", plan=plan)
    return time.perf_counter() - began, time.process_time() - began_cpu, found


def compare(evaluation: Evaluation, samples: list[dict[str, Any]]) -> dict[str, float]:
    """How far the answers are apart."""
    want = np.array([[float(pair[0]) for pair in sample["filtered_resps"]] for sample in samples])
    got = np.array([answer.log_probs for answer in evaluation.answers])
    metrics = ("acc", "acc_norm", "acc_bytes")
    differing = {
        f"{name}_differing": sum(
            float(answer.predictions[name] == answer.label) != sample[name]
            for answer, sample in zip(evaluation.answers, samples, strict=True)
        )
        for name in metrics
    }
    return {"largest_log_prob_difference": float(np.abs(got - want).max()), **differing}


def main() -> None:
    """Run what is asked for, print a line for each, and keep the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--items", type=Path, required=True)
    parser.add_argument("--backend")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--shared-only", action="store_true", help="leave out rows that share no context")
    options = parser.parse_args()
    items = read_items(options.items)
    figures: dict[str, Any] = {
        "items": len(items),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    model, samples = theirs(options.model, options.items, options.batch_size)
    seconds, cpu = model.seconds, model.cpu_seconds
    figures["harness"] = {"seconds": seconds, "cpu_seconds": cpu, "batch_size": options.batch_size}
    print(
        f"lm-eval {lm_eval.__version__}, batch {options.batch_size}: {seconds:.1f} s, processors {cpu:.1f} s",
        flush=True,
    )
    for share in (True,) if options.shared_only else (True, False):
        mine, mine_cpu, found = ours(options.model, items, options.backend, share=share)
        name = "shared" if share else "separate"
        ratios = {"ratio": seconds / mine, "cpu_ratio": cpu / mine_cpu}
        figures[name] = {"seconds": mine, "cpu_seconds": mine_cpu, **ratios, **compare(found, samples)}
        print(f"{name}: {mine:.1f} s, {seconds / mine:.2f} x, {figures[name]}", flush=True)
    options.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
