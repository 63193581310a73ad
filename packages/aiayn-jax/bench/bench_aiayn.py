"""Time a training step of the encoder-decoder on this machine, beside ``torch.nn.Transformer``.

Every program runs in a process of its own, on the same batches and from the same weights, and must see
the same loss before any of its times is believed. Time is by the wall, over many steps without a wait
between them; tokens are source and target tokens, filling not counted; MFU is by ``batch_flops``
against 989 TFLOP/s, the datasheet's figure of an H100 or H200 SXM.

    python packages/aiayn-jax/bench/bench_aiayn.py OUT [--only torch cudnn] [--seconds 6] [--preset base]
    python packages/aiayn-jax/bench/bench_aiayn.py OUT --device cpu --preset demo --rows 8 --length 16
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from aiayn_workload import Case, batch_flops, batch_tokens, learning_rate, make_batches, time_steps

PEAK_FLOPS = 989e12
FREE = {"unroll": True, "deterministic": False}
NARROW = {**FREE, "attention": "cudnn", "wide_logits": False}
CASES = [
    Case("torch", framework="torch"),
    Case("cudnn-free-narrow", **NARROW),
    Case("written-unroll", unroll=True),
    Case("cudnn-free", **FREE, attention="cudnn"),
    Case("torch-graphs", framework="torch", mode="reduce-overhead"),
    Case("torch-nodrop", framework="torch", dropout=0.0),
    Case("cudnn-free-narrow-nodrop", **NARROW, dropout=0.0),
    Case("cudnn-scan-free", attention="cudnn", deterministic=False),
    Case("cudnn-exclude", **FREE, attention="cudnn", xla_flags="--xla_gpu_exclude_nondeterministic_ops=true"),
    Case("written-unroll-narrow", unroll=True, wide_logits=False),
    Case("written-free", **FREE),
    Case("written-scan"),
    Case("cudnn-free-narrow-chunk29", **NARROW, chunk=2**29),
    Case("cudnn-free-narrow-chunk27", **NARROW, chunk=2**27),
]
"""The most telling first. ``free`` and not ``scan``: every layer compiled for itself, not deterministic;
``narrow``: logits in bfloat16, as torch's are; ``nodrop``: without dropout."""


def run_jax(case: Case) -> dict[str, object]:
    """Time this package.

    Args:
        case: Sizes and choices.
    """
    import jax
    from aiayn_jax.model import init_parameters
    from aiayn_jax.plan import make_plan
    from aiayn_jax.step import init_state, make_evaluate, make_step
    from gpt_jax import device as devices

    start, config, batches = time.perf_counter(), case.config, make_batches(case)
    plan = make_plan(
        config,
        precision=case.precision,
        device=case.device,
        attention=case.attention,
        unroll=case.unroll,
        wide_logits=case.wide_logits,
        deterministic=case.deterministic,
    )
    plan = replace(plan, chunk=case.chunk or plan.chunk)
    state = init_state(init_parameters(config, 0), plan)
    total, count = make_evaluate(config, plan)(state.params, batches[0])
    evaluated = time.perf_counter() - start
    start, train, metrics = time.perf_counter(), make_step(config, plan), None

    def step(number: int) -> None:
        nonlocal state, metrics
        lr = learning_rate(config, number)
        state, metrics = train(state, batches[number % len(batches)], lr, 0, number)

    def wait() -> list[float]:
        return np.asarray(metrics).tolist()

    step(0)
    loss = wait()[0]
    first = time.perf_counter() - start
    timed = time_steps(step, wait, case.seconds)
    said = {"first_step_s": first, "evaluate_s": evaluated, "nll": total / count, "loss": loss}
    memory, name = devices.peak_memory_bytes(plan.device), devices.device_name(plan.device)
    return timed | said | {"peak_bytes": memory, "device": name, "versions": f"jax {jax.__version__}"}


def work(case: Case) -> None:
    """Run one case in this process, and print its figures as the last line."""
    if case.framework == "torch":
        import aiayn_torch

        result = aiayn_torch.run(case)
    else:
        result = run_jax(case)
    print(json.dumps(result))


def measure(case: Case, folder: Path, seconds: float) -> dict[str, object]:
    """Run one case in a process of its own.

    Args:
        case: What to run.
        folder: Where its messages go.
        seconds: When to give up.
    """
    # the baseline asks this package for weights: on the CPU, the GPU is its own
    settings = {"JAX_PLATFORMS": "cpu"} if case.framework == "torch" else {"XLA_FLAGS": case.xla_flags}
    env = os.environ | settings | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    words = [sys.executable, __file__, str(folder), "--case", json.dumps(asdict(case))]
    try:
        done = subprocess.run(words, capture_output=True, text=True, env=env, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"case": asdict(case), "error": f"not done within {seconds:.0f} s"}
    (folder / f"{case.name}.log").write_text(done.stderr)
    if done.returncode:
        message = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"case": asdict(case), "error": f"exit status {done.returncode}: {message[:300]}"}
    return {"case": asdict(case)} | json.loads(done.stdout.splitlines()[-1])


def add_rates(result: dict, case: Case) -> None:
    """Tokens per second and MFU, by the mean over the batches."""
    batches = make_batches(case)
    tokens = float(np.mean([sum(batch_tokens(batch)) for batch in batches]))
    flops = float(np.mean([batch_flops(batch, case.config) for batch in batches]))
    seconds = result["ms"] / 1e3
    result |= {"tokens": tokens, "flops": flops, "tokens_per_s": tokens / seconds}
    result["mfu"] = flops / seconds / PEAK_FLOPS


def table(results: list[dict]) -> str:
    """One line for each case; losses before training that differ by over 1 % are pointed out."""
    want = next((r["nll"] for r in results if "nll" in r), 0.0)
    head = f"{'case':28}{'ms':>8}{'p20':>8}{'p80':>8}{'tokens/s':>11}"
    lines = [head + f"{'MFU %':>7}{'GB':>7}{'first s':>9}{'nll':>8}"]
    for r in results:
        name = r["case"]["name"]
        if "error" in r:
            lines.append(f"{name:28}{r['error'][:120]}")
            continue
        wrong = "" if abs(r["nll"] / want - 1.0) <= 0.01 else "  ANOTHER LOSS"
        times = f"{name:28}{r['ms']:8.2f}{r['p20']:8.2f}{r['p80']:8.2f}{r['tokens_per_s']:11.0f}"
        rest = f"{r['mfu'] * 100:7.1f}{r['peak_bytes'] / 1e9:7.2f}{r['first_step_s']:9.1f}{r['nll']:8.3f}"
        lines.append(times + rest + wrong)
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for figures and messages")
    parser.add_argument("--only", nargs="*", default=[], help="cases whose name contains one of these")
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--preset")
    parser.add_argument("--seconds", type=float, help="time each case for this long")
    for name in ("vocab-size", "rows", "length"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--budget", type=float, default=570.0, help="start nothing after so many seconds")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Run the chosen cases one after another."""
    given, start = parse(), time.perf_counter()
    if given.case:
        work(Case(**json.loads(given.case)))
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    fields = ("device", "preset", "vocab_size", "rows", "length", "seconds")
    changes = {name: getattr(given, name) for name in fields if getattr(given, name) is not None}
    chosen = [case for case in CASES if not given.only or any(word in case.name for word in given.only)]
    results: list[dict] = []
    for case in (replace(case, **changes) for case in chosen):
        result = measure(case, given.out, max(1.0, given.budget - (time.perf_counter() - start)))
        if "error" not in result:
            add_rates(result, case)
        results.append(result)
        (given.out / "bench_aiayn.json").write_text(json.dumps(results, indent=1))
        print(table([result]).splitlines()[-1], flush=True)
    print(table(results))
    return int(any("error" in r for r in results))


if __name__ == "__main__":
    sys.exit(main())
