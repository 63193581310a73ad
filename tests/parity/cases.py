"""The questions of the parity matrix and, from the float64 referee, their answers, as files.

A model case holds parameters, the batches of twenty steps and what must come of them; an op case holds
one op's inputs and what must come out, forward and backward. Backends read ``inputs``, only the comparer
reads ``expected``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import referee
from gpt_data.batch import IGNORE, Batch
from gpt_trainer.backend import OptimizerConfig
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import parameter_shapes
from op_cases import op_cases
from safetensors.numpy import load_file, save_file

Array = np.ndarray
STEPS = 20
SEED = 20170612
LEARNING_RATE = 3e-3
# A key bias has no gradient, as softmax ignores a constant: only rounding noise is left, which AdamW
# would blow up to a full step. An epsilon well above that noise keeps the weights comparable.
OPTIMIZER = OptimizerConfig(epsilon=1e-3)
# 40 positions and 211 ids are no multiple of any tile; heads of 16 are the narrowest a tensor core takes
MODEL = ModelConfig(n_layer=2, n_head=3, d_model=48, context=40, vocab_size=211)


@dataclass(frozen=True)
class ModelCase:
    """One row of the matrix: which packing, which dropout, how many micro-batches of how many rows.

    With ``contexts``, lengths of some, continuations of them are scored, by rows and through forks of a
    decoder, and nothing is trained.
    """

    name: str
    documents: bool = False
    dropout: float = 0.0
    micro_batches: int = 1
    rows: int = 4
    contexts: tuple[int, ...] = ()
    optimizer: OptimizerConfig = OPTIMIZER

    @property
    def model(self) -> ModelConfig:
        """The sizes, with this case's dropout."""
        return replace(MODEL, dropout=self.dropout)


MODEL_CASES = (
    ModelCase("stream"),
    ModelCase("documents", documents=True),
    ModelCase("micro-batches", micro_batches=4, rows=1),
    ModelCase("dropout", dropout=0.1),
    ModelCase("muon", optimizer=replace(OPTIMIZER, optimizer="muon", muon_lr_factor=2.0)),
    ModelCase("documents-dropout-micro-batches", documents=True, dropout=0.1, micro_batches=2, rows=2),
    ModelCase("forks", contexts=(0, 1, 17, 39)),
)


def draw_parameters(config: ModelConfig, stream: np.random.Generator) -> referee.Tree:
    """Parameters with nothing zero and nothing one, so that a term left out is seen."""
    values = {}
    for name, shape in parameter_shapes(config).items():
        centre = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0
        values[name] = (centre + 0.1 * stream.standard_normal(shape)).astype(np.float32)
    return values


def draw_batch(case: ModelCase, stream: np.random.Generator) -> Batch:
    """Random tokens whose successor is a function of the token half of the time, so that loss can fall."""
    shape = (case.rows, MODEL.context)
    tokens = stream.integers(0, MODEL.vocab_size, shape, dtype=np.int32)
    follow = (tokens * 7 + 3) % MODEL.vocab_size
    targets = np.where(stream.random(shape) < 0.5, follow, np.roll(tokens, -1, axis=1)).astype(np.int32)
    targets[stream.random(shape) < 0.05] = IGNORE
    if not case.documents:
        return Batch(tokens, targets)
    opens = stream.random(shape) < 0.1
    opens[:, 0] = True
    starts = np.maximum.accumulate(np.where(opens, np.arange(MODEL.context), 0), axis=1).astype(np.int32)
    targets[:, :-1][opens[:, 1:]] = IGNORE
    return Batch(tokens, targets, starts)


def draw_forks(case: ModelCase, stream: np.random.Generator) -> dict[str, Array]:
    """Contexts that end together, and continuations of them up to the model's context; few targets."""
    lengths, rows = np.array(case.contexts), np.array([3, 0, 1, 2, 2, 0, 1, 2], np.int32)
    width, room = lengths.max(), MODEL.context
    contexts = stream.integers(0, MODEL.vocab_size, (len(lengths), width), dtype=np.int32)
    tokens, targets = stream.integers(0, MODEL.vocab_size, (2, len(rows), room), dtype=np.int32)
    targets[stream.random(targets.shape) < 0.6] = IGNORE
    targets[np.arange(room) >= room - lengths[rows][:, None]] = IGNORE
    filling = (width - lengths).astype(np.int32)
    return {"contexts": contexts, "filling": filling, "rows": rows, "tokens": tokens, "targets": targets}


def whole_rows(forks: dict[str, Array]) -> Batch:
    """Each continuation behind a context of its own."""
    contexts, filling = forks["contexts"], forks["filling"]
    parts = [(contexts[row, filling[row] :], line) for line, row in enumerate(forks["rows"])]
    tokens = [np.concatenate([held, forks["tokens"][line]])[: MODEL.context] for held, line in parts]
    none = [np.full(len(held), IGNORE, np.int32) for held, _ in parts]
    targets = [
        np.concatenate([ignored, forks["targets"][line]])[: MODEL.context]
        for ignored, (_, line) in zip(none, parts, strict=True)
    ]
    return Batch(np.stack(tokens), np.stack(targets))


def write_model_case(case: ModelCase, folder: Path) -> None:
    """Write one case's ``case.json``, ``inputs.safetensors`` and ``expected.safetensors``."""
    stream = np.random.default_rng(SEED)
    parameters = draw_parameters(case.model, stream)
    # every fourth step starts over, so that twenty losses fall and a run that drifts shows
    distinct = [[draw_batch(case, stream) for _ in range(case.micro_batches)] for _ in range(4)]
    steps = [distinct[step % len(distinct)] for step in range(STEPS)]
    forks: dict[str, Array] = {}
    if case.contexts:
        forks = draw_forks(case, stream)
        distinct, steps = [[whole_rows(forks)]], []
    inputs = {f"parameter.{name}": value for name, value in parameters.items()}
    for step, batches in enumerate(distinct):
        for index, batch in enumerate(batches):
            inputs |= {
                f"batch.{step}.{index}.{field}": value
                for field, value in batch._asdict().items()
                if value is not None
            }
    inputs |= {f"fork.{name}": value for name, value in forks.items()}
    save(inputs, folder / "inputs.safetensors")
    expected = expected_answers(case, parameters, steps) if steps else expected_scores(parameters, distinct)
    save(expected, folder / "expected.safetensors")
    facts = {
        "model": asdict(case.model),
        "optimizer": asdict(case.optimizer),
        "seed": SEED,
        "steps": len(steps),
        "distinct": len(distinct),
        "micro_batches": case.micro_batches,
        "learning_rate": LEARNING_RATE,
    }
    (folder / "case.json").write_text(json.dumps(facts, indent=2) + "\n")


def expected_answers(case: ModelCase, parameters: referee.Tree, steps: list[list[Batch]]) -> referee.Tree:
    """Logits, loss, gradients, weights after one step, and the losses of all steps, in float64."""
    p = {name: value.astype(np.float64) for name, value in parameters.items()}
    answers = {"logits": referee.forward(p, steps[0][0], case.model)[0]}
    state = referee.optimizer_init(p, case.optimizer)
    losses = []
    for step, batches in enumerate(steps):
        loss, grads = referee.loss_and_gradients(p, batches, case.model, SEED, step)
        losses.append(loss)
        p, state = referee.optimize(p, grads, state, step, LEARNING_RATE, case.optimizer)
        if step == 0:
            answers["loss"] = np.array([loss])
            answers |= {f"gradient.{name}": value for name, value in grads.items()}
            answers |= {f"weight.{name}": value for name, value in p.items()}
    return answers | {"losses": np.array(losses)}


def expected_scores(parameters: referee.Tree, distinct: list[list[Batch]]) -> referee.Tree:
    """Logits, and log-probabilities of the targets, in float64."""
    [[batch]] = distinct
    p = {name: value.astype(np.float64) for name, value in parameters.items()}
    logits = referee.forward(p, batch, MODEL)[0]
    log_probs = referee.log_probs(logits, batch.targets)
    return {"logits": logits, "log_probs": log_probs, "forked_log_probs": log_probs[batch.targets != IGNORE]}


def read_batches(inputs: dict[str, Array], step: int, count: int) -> list[Batch]:
    """The micro-batches of one distinct step of a case."""
    return [
        Batch(*(inputs.get(f"batch.{step}.{index}.{field}") for field in Batch._fields))
        for index in range(count)
    ]


def save(values: dict[str, Array], path: Path) -> None:
    """Write arrays, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(value) for name, value in values.items()}, path)


def write_cases(folder: Path) -> None:
    """Write every case below ``folder``: ``model/NAME`` and ``op/NAME``."""
    for case in MODEL_CASES:
        write_model_case(case, folder / "model" / case.name)
    for name, (inputs, expected) in op_cases(SEED).items():
        save(inputs, folder / "op" / name / "inputs.safetensors")
        save(expected, folder / "op" / name / "expected.safetensors")


def read_inputs(folder: Path) -> dict[str, Array]:
    """A case's inputs."""
    return load_file(folder / "inputs.safetensors")


if __name__ == "__main__":
    import sys

    write_cases(Path(sys.argv[1]))
