"""Let one backend answer the cases: run in that backend's own environment, meeting the others only in files.

    python emit.py IN OUT --backend gpt-jax --label gpt-jax-written --precision float32 --option layers=scan

Answers lie under ``OUT/LABEL/PRECISION``. ``--save`` trains half of the exchange case and leaves a
checkpoint; ``--resume`` continues the checkpoint that another backend left.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import cases
import numpy as np
from cases import save
from gpt_data.batch import IGNORE, Batch
from gpt_trainer.backend import Backend, OptimizerConfig, Runtime
from gpt_trainer.checkpoint import CheckpointState, load_checkpoint, save_checkpoint, step_or_newest
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.registry import find_backend

EXCHANGE_CASES = ("stream", "muon")
HALF = cases.STEPS // 2


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--label", required=True)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--steps", type=int, default=cases.STEPS)
    parser.add_argument("--only", action="append", default=[], metavar="CASE")
    parser.add_argument("--plant", help="a deliberate error, to see the matrix fail")
    parser.add_argument("--save", action="store_true", help="train half of the exchange case and save it")
    parser.add_argument(
        "--resume", action="append", default=[], metavar="LABEL", help="continue what LABEL saved"
    )
    return parser.parse_args(argv)


def adapter(backend: str) -> Any:
    """The module that knows one backend's ops by their names."""
    return importlib.import_module(f"adapters.{backend.replace('-', '_')}")


def options_of(kind: type[Any], given: list[str]) -> Any:
    """The backend's option dataclass, ``NAME=VALUE`` pairs applied to its defaults."""
    known = {field.name for field in fields(kind)}
    pairs = dict(text.split("=", 1) for text in given)
    if unknown := pairs.keys() - known:
        raise ValueError(f"unknown option {sorted(unknown)}, known: {sorted(known)}")
    truth = {"true": True, "false": False}
    return kind(**{name: truth.get(value, value) for name, value in pairs.items()})


def build(arguments: argparse.Namespace, facts: dict[str, Any]) -> Backend:
    """The backend for one model case."""
    model, optimizer = ModelConfig(**facts["model"]), OptimizerConfig(**facts["optimizer"])
    runtime = Runtime(precision=arguments.precision, device=arguments.device, seed=facts["seed"])
    if arguments.backend == "yardstick":
        return adapter("yardstick").Yardstick(model, optimizer, runtime)
    spec = find_backend(arguments.backend)
    return spec.create(model, optimizer, runtime, options_of(spec.options, arguments.option))


def model_cases(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any], dict[str, np.ndarray]]]:
    """Name, facts and inputs of every model case asked for."""
    for folder in sorted((arguments.cases / "model").iterdir()):
        if not arguments.only or folder.name in arguments.only:
            yield folder.name, json.loads((folder / "case.json").read_text()), cases.read_inputs(folder)


def parameters_of(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters of a case, by canonical name."""
    return {name.removeprefix("parameter."): v for name, v in inputs.items() if name.startswith("parameter.")}


def batches_of(facts: dict[str, Any], inputs: dict[str, np.ndarray], step: int) -> list[Batch]:
    """The micro-batches of one step."""
    return cases.read_batches(inputs, step % facts["distinct"], facts["micro_batches"])


def answer(
    backend: Backend, facts: dict[str, Any], inputs: dict[str, np.ndarray], steps: int
) -> dict[str, np.ndarray]:
    """Everything that a model case asks."""
    backend.load(parameters_of(inputs))
    first = batches_of(facts, inputs, 0)
    answers = {"logits": backend.logits(first[0])}
    if not facts["steps"]:
        log_probs = backend.log_probs(first[0])
        # the yardstick has no decoder
        forked = forked_log_probs(backend, inputs) if hasattr(backend, "decoder") else log_probs
        return answers | {"log_probs": log_probs, "forked_log_probs": forked[forked != 0.0]}
    loss, gradients = backend.gradients(first, 0)
    answers["loss"] = np.array([loss])
    answers |= {f"gradient.{name}": value for name, value in gradients.items()}
    losses = train(backend, facts, inputs, range(1))
    answers |= {f"weight.{name}": value for name, value in backend.export().items()}
    answers["losses"] = np.array(losses + train(backend, facts, inputs, range(1, steps)))
    return answers


def forked_log_probs(backend: Backend, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Log-probabilities of continuations through forks of their contexts' decoder, 0 where ignored."""
    contexts, filling, rows, tokens, targets = (
        inputs[f"fork.{name}"] for name in ("contexts", "filling", "rows", "tokens", "targets")
    )
    room = contexts.shape[1] + tokens.shape[1]
    decoder = backend.decoder(len(contexts), room=room, filling=filling)
    decoder.log_probs(contexts, np.full_like(contexts, IGNORE))
    return decoder.fork(rows).log_probs(tokens, targets)


def train(
    backend: Backend, facts: dict[str, Any], inputs: dict[str, np.ndarray], steps: range
) -> list[float]:
    """Take the steps; return their losses."""
    pending = [backend.train_step(batches_of(facts, inputs, s), facts["learning_rate"], s) for s in steps]
    return [each.fetch().loss for each in pending]


def emit(arguments: argparse.Namespace) -> None:
    """Answer every model case and every op case."""
    place = arguments.answers / arguments.label / arguments.precision
    for name, facts, inputs in model_cases(arguments):
        backend = build(arguments, facts)
        save(answer(backend, facts, inputs, arguments.steps), place / "model" / f"{name}.safetensors")
        info = {"device": backend.device_name(), "choices": dict(backend.choices())}
        (place / "info.json").write_text(json.dumps(info, indent=2) + "\n")
    ops = adapter(arguments.backend).Ops.of_run(arguments.precision, arguments.device, arguments.option)
    for folder in sorted((arguments.cases / "op").iterdir()):
        if not arguments.only or folder.name in arguments.only:
            op = getattr(ops, folder.name.partition("-")[0])
            save(op(cases.read_inputs(folder)), place / "op" / f"{folder.name}.safetensors")


def exchange_save(arguments: argparse.Namespace) -> None:
    """Train half of each exchange case and save a checkpoint."""
    arguments.only = list(EXCHANGE_CASES)
    for name, facts, inputs in model_cases(arguments):
        backend = build(arguments, facts)
        backend.load(parameters_of(inputs))
        losses = train(backend, facts, inputs, range(HALF))
        arrays = (backend.export(), backend.export_optimizer_state())
        state = CheckpointState(HALF, backend.config, *arrays, {}, None)
        run = arguments.answers / arguments.label / "exchange" / name
        run.mkdir(parents=True)
        save_checkpoint(run, state)
        save({"losses": np.array(losses)}, run / "first-half.safetensors")


def exchange_resume(arguments: argparse.Namespace, saver: str) -> None:
    """Continue the run that another backend saved."""
    arguments.only = list(EXCHANGE_CASES)
    for name, facts, inputs in model_cases(arguments):
        backend = build(arguments, facts)
        state = step_or_newest(arguments.answers / saver / "exchange" / name, load_checkpoint, print)
        backend.load(state.parameters, state.optimizer_state)
        losses = train(backend, facts, inputs, range(state.step, cases.STEPS))
        save(
            {"losses": np.array(losses)},
            arguments.answers / arguments.label / "resumed" / saver / f"{name}.safetensors",
        )


def plant_in_fork(backend: str) -> None:
    """Let forks go on from the row before theirs."""
    decoder = importlib.import_module(f"{backend.replace('-', '_')}.decoding").Decoder
    fork = decoder.fork
    decoder.fork = lambda self, rows: fork(self, np.maximum(rows - 1, 0))


def main() -> None:
    """Answer, save or resume, as the command line asks."""
    arguments = parse()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.path.insert(0, str(Path(__file__).parents[2] / "packages/gpt-triton/tests"))
        importlib.import_module("gpt_triton_interpreting").replace_language_once()
    if arguments.plant == "fork":
        plant_in_fork(arguments.backend)
    elif arguments.plant:
        adapter(arguments.backend).plant(arguments.plant)
    if arguments.save:
        exchange_save(arguments)
    elif arguments.resume:
        for saver in arguments.resume:
            exchange_resume(arguments, saver)
    else:
        emit(arguments)


if __name__ == "__main__":
    main()
