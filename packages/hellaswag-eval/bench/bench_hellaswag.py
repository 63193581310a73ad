"""Time every backend on all of HellaSwag with a random GPT-2, and hold their answers against each other.

Two steps, as the machine with the GPU may lack the data and the tokenizer. Encode the items:

    python packages/hellaswag-eval/bench/bench_hellaswag.py pack data/hellaswag.npz \
        --data hellaswag_val_preprocessed.jsonl.gz --tokenizer-files gpt2-tokenizer

and run:

    python packages/hellaswag-eval/bench/bench_hellaswag.py run data/hellaswag.npz OUT_FOLDER

Each backend and precision has a process of its own. The first pass over the items compiles, the second is
timed. Log-probabilities are kept in OUT_FOLDER, figures in OUT_FOLDER/figures.json; the table comes last.
As in ``hellaswag-eval``, contexts are shared on a CPU, and each ending has a row of its own on a GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from gpt_trainer.backend import OptimizerConfig, Runtime
from gpt_trainer.model_config import MODEL_PRESETS
from gpt_trainer.parameters import init_parameters
from gpt_trainer.registry import find_backend
from hellaswag_eval import PROTOCOLS, Evaluation, Example, Plan, encode_items, evaluate_backend, read_items

BACKENDS = ("gpt-triton", "gpt-torchfunc", "gpt-jax")
PRECISIONS = ("bfloat16", "float32")
METRICS = ("acc", "acc_norm", "acc_bytes")


def pack(path: Path, data: Path, tokenizer_files: Path) -> None:
    """Encode all items by both protocols into one file of arrays."""
    import bpe_scratch
    from hellaswag_eval.models import encoder

    files = (tokenizer_files / "encoder.json", tokenizer_files / "vocab.bpe")
    encode, items = encoder(bpe_scratch.Tokenizer.from_gpt2(*files)), read_items(data)
    arrays: dict[str, np.ndarray] = {}
    for protocol in PROTOCOLS:
        examples = encode_items(items, encode, protocol)
        parts = [ids for example in examples for ids in (example.context, *example.endings)]
        arrays[f"{protocol}_ids"] = np.concatenate(parts).astype(np.uint16)
        arrays[f"{protocol}_ends"] = np.cumsum([len(ids) for ids in parts])
        arrays[f"{protocol}_lengths"] = np.array([(e.characters, e.utf8_bytes) for e in examples])
        arrays["labels"] = np.array([example.label for example in examples])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    print(f"{len(items):,} items in {path}, {path.stat().st_size / 1e6:.1f} MB")


def unpack(path: Path, protocol: str, limit: int | None) -> list[Example]:
    """The examples of a protocol."""
    with np.load(path) as arrays:
        ends, labels = arrays[f"{protocol}_ends"], arrays["labels"]
        parts = np.split(arrays[f"{protocol}_ids"].astype(np.int32), ends[:-1])
        lengths = arrays[f"{protocol}_lengths"].tolist()
    count = len(labels) if limit is None else min(limit, len(labels))
    examples = []
    for row in range(count):
        context, *endings = parts[5 * row : 5 * row + 5]
        sizes = map(tuple, lengths[row])
        examples.append(Example(context, tuple(endings), int(labels[row]), *sizes, row=row))
    return examples


def measure(options: argparse.Namespace) -> None:
    """One backend at one precision: all passes, figures and log-probabilities into files."""
    name, precision = options.backend, options.precision
    spec = find_backend(name)
    config = MODEL_PRESETS[options.model]
    began = time.perf_counter()
    backend = spec.create(config, OptimizerConfig(), Runtime(precision, options.device), spec.options())
    backend.load(init_parameters(config, 0))
    found: dict[str, Any] = {
        "backend": name, "precision": precision, "device": backend.device_name(),
        "load_seconds": time.perf_counter() - began,
        **{key: str(value) for key, value in backend.choices().items()},
    }  # fmt: skip
    arrays = {}
    plan = Plan(tokens_per_batch=options.tokens, share=options.device == "cpu", width_step=64)
    for protocol in options.protocols:
        examples = unpack(options.examples, protocol, options.limit)
        (first, _), (second, evaluation) = (_timed(backend, examples, protocol, plan) for _ in range(2))
        arrays[protocol] = np.array([answer.log_probs for answer in evaluation.answers])
        found[protocol] = {
            "first_pass_seconds": first, "items_per_second": len(examples) / second,
            "every_shape": evaluation.shapes, **evaluation.as_json() | {"seconds": second},
        }  # fmt: skip
        for metric in METRICS:
            arrays[f"{protocol}_{metric}"] = np.array([a.predictions[metric] for a in evaluation.answers])
    found["peak_memory_bytes"] = backend.peak_memory_bytes()
    np.savez_compressed(options.out / f"{name}-{precision}.npz", **arrays)
    (options.out / f"{name}-{precision}.json").write_text(json.dumps(found, indent=1))


def _timed(backend: Any, examples: list[Example], protocol: Any, plan: Plan) -> tuple[float, Evaluation]:
    backend.synchronize()
    began = time.perf_counter()
    evaluation = evaluate_backend(backend, examples, protocol=protocol, plan=plan)
    return time.perf_counter() - began, evaluation


def run(options: argparse.Namespace, argv: list[str]) -> None:
    """Every backend and precision in its own process, then the comparison."""
    options.out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {"runs": [], "agreement": []}
    for name in options.backends:
        for precision in options.precisions:
            words = [sys.executable, __file__, *argv, "--backend", name, "--precision", precision]
            done = subprocess.run(words, check=False, capture_output=True, text=True)
            if done.returncode:
                print(f"{name} {precision} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}", flush=True)
                continue
            found = json.loads((options.out / f"{name}-{precision}.json").read_text())
            figures["runs"].append(found)
            seconds = ", ".join(f"{each} {found[each]['seconds']:.2f} s" for each in options.protocols)
            print(f"{name} {precision}: {seconds}", flush=True)
    names = [f"{found['backend']}-{found['precision']}" for found in figures["runs"]]
    figures["agreement"] = [_agreement(options.out, one, names) for one in names]
    (options.out / "figures.json").write_text(json.dumps(figures, indent=1))
    _print(figures)


def _agreement(out: Path, one: str, names: list[str]) -> dict[str, Any]:
    """How a run's answers compare with the first float32 run's, and with its own backend's in float32."""
    reference = next((name for name in names if name.endswith("float32")), one)
    own = one.replace("bfloat16", "float32")
    found: dict[str, Any] = {"run": one}
    for what, other in (("reference", reference), ("own_float32", own)):
        if other in names:
            found[what] = {"run": other, **_compare(out / f"{one}.npz", out / f"{other}.npz")}
    return found


def _compare(one: Path, other: Path) -> dict[str, float]:
    found = {}
    with np.load(one) as a, np.load(other) as b:
        for protocol in (name for name in PROTOCOLS if name in a):
            found[f"{protocol}_largest_difference"] = float(np.abs(a[protocol] - b[protocol]).max())
            for metric in METRICS:
                key = f"{protocol}_{metric}"
                found[f"{key}_same"] = float((a[key] == b[key]).mean())
    return found


def _print(figures: dict[str, Any]) -> None:
    print("\nrun | protocol | first pass s | second s | items/s | shapes | acc | acc_norm | peak GB | device")
    for found in figures["runs"]:
        for key in PROTOCOLS:
            if key in found:
                v = found[key]
                print(
                    f"{found['backend']} {found['precision']} | {key} | {v['first_pass_seconds']:.1f} | "
                    f"{v['seconds']:.2f} | {v['items_per_second']:,.0f} | {v['shapes']} | "
                    f"{100 * v['acc']['value']:.2f} | {100 * v['acc_norm']['value']:.2f} | "
                    f"{found['peak_memory_bytes'] / 1e9:.1f} | {found['device']}"
                )
    print("\nrun | against | same acc, acc_norm (completion; harness) | largest difference of a log-prob")
    for line in figures["agreement"]:
        for what in ("reference", "own_float32"):
            if what in line:
                v = line[what]
                scored = [protocol for protocol in PROTOCOLS if f"{protocol}_largest_difference" in v]
                same = "; ".join(
                    ", ".join(f"{100 * v[f'{protocol}_{metric}_same']:.2f} %" for metric in METRICS[:2])
                    for protocol in scored
                )
                largest = max(v[f"{protocol}_largest_difference"] for protocol in scored)
                print(f"{line['run']} | {v['run']} | {same} | {largest:.1e}")


def main() -> None:
    """Read the arguments and do one of the two steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    steps = parser.add_subparsers(dest="step", required=True)
    first = steps.add_parser("pack")
    first.add_argument("examples", type=Path)
    first.add_argument("--data", type=Path, required=True)
    first.add_argument("--tokenizer-files", type=Path, required=True)
    second = steps.add_parser("run")
    second.add_argument("examples", type=Path)
    second.add_argument("out", type=Path)
    second.add_argument("--backends", nargs="+", default=BACKENDS)
    second.add_argument("--model", default="gpt2-124m", choices=sorted(MODEL_PRESETS))
    second.add_argument("--device", default="gpu", choices=("gpu", "cpu"))
    second.add_argument("--limit", type=int)
    second.add_argument("--tokens", type=int, default=65_536)
    second.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    second.add_argument("--protocols", nargs="+", default=PROTOCOLS, choices=PROTOCOLS)
    second.add_argument("--backend")
    second.add_argument("--precision")
    options = parser.parse_args()
    if options.step == "pack":
        pack(options.examples, options.data, options.tokenizer_files)
    elif options.backend is not None:
        measure(options)
    else:
        run(options, sys.argv[1:])


if __name__ == "__main__":
    main()
