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
from gpt_trainer.philox import Site, dropout_keys, dropout_mask
from safetensors.numpy import load_file, save_file

STEPS = 20
SEED = 20170612
FIRST_ROW = 5
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


def draw_forks(case: ModelCase, stream: np.random.Generator) -> dict[str, np.ndarray]:
    """Contexts that end together, and continuations of them up to the model's context; few targets."""
    lengths, rows = np.array(case.contexts), np.array([3, 0, 1, 2, 2, 0, 1, 2], np.int32)
    width, room = lengths.max(), MODEL.context
    contexts = stream.integers(0, MODEL.vocab_size, (len(lengths), width), dtype=np.int32)
    tokens, targets = stream.integers(0, MODEL.vocab_size, (2, len(rows), room), dtype=np.int32)
    targets[stream.random(targets.shape) < 0.6] = IGNORE
    targets[np.arange(room) >= room - lengths[rows][:, None]] = IGNORE
    filling = (width - lengths).astype(np.int32)
    return {"contexts": contexts, "filling": filling, "rows": rows, "tokens": tokens, "targets": targets}


def whole_rows(forks: dict[str, np.ndarray]) -> Batch:
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
    folder.mkdir(parents=True)
    stream = np.random.default_rng(SEED)
    parameters = draw_parameters(case.model, stream)
    # every fourth step starts over, so that twenty losses fall and a run that drifts shows
    distinct = [[draw_batch(case, stream) for _ in range(case.micro_batches)] for _ in range(4)]
    steps = [distinct[step % len(distinct)] for step in range(STEPS)]
    forks: dict[str, np.ndarray] = {}
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
    save_file(inputs, folder / "inputs.safetensors")
    expected = expected_answers(case, parameters, steps) if steps else expected_scores(parameters, distinct)
    save_file(expected, folder / "expected.safetensors")
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


def read_batches(inputs: dict[str, np.ndarray], step: int, count: int) -> list[Batch]:
    """The micro-batches of one distinct step of a case."""
    return [
        Batch(*(inputs.get(f"batch.{step}.{index}.{field}") for field in Batch._fields))
        for index in range(count)
    ]


def op_cases() -> dict[str, tuple[referee.Tree, referee.Tree]]:
    """Every op's inputs (float32, int32) and expected outputs (float64), by op name."""
    draw = np.random.default_rng(SEED)

    def normal(*shape: int) -> np.ndarray:
        return draw.standard_normal(shape).astype(np.float32)

    # 38 is no multiple of any tile, but even: cuDNN's attention has no derivative for rows of odd length
    rows, time, width, heads, vocab = 2, 38, 48, 3, 211
    flat = rows * time
    cases = {}
    x, gain, bias, d_y = normal(flat, width), normal(width), normal(width), normal(flat, width)
    cases["layer_norm"] = (
        {"x": x, "gain": gain, "bias": bias, "d_y": d_y},
        expect_layer_norm(x, gain, bias, d_y),
    )
    cases["gelu"] = ({"x": 3 * x, "d_y": d_y}, expect_gelu(3 * x, d_y))
    weight, wide_bias, d_wide = normal(width, 80), normal(80), normal(flat, 80)
    given = {"x": x, "weight": weight, "bias": wide_bias, "d_y": d_wide}
    cases["linear"] = (given, expect_linear(**given))
    qkv, d_out = normal(rows, time, 3 * width), normal(rows, time, width)
    opens = draw.random((rows, time)) < 0.15
    opens[:, 0] = True
    starts = np.maximum.accumulate(np.where(opens, np.arange(time), 0), axis=1).astype(np.int32)
    whole = np.zeros_like(starts)
    for name, segment_starts, rate in (
        ("attention", whole, 0.0),
        ("attention-documents", starts, 0.0),
        ("attention-dropout", starts, 0.25),
    ):
        key = dropout_keys(SEED, 1, FIRST_ROW, 4)[3, Site.ATTENTION]
        given = {"qkv": qkv, "d_out": d_out, "segment_starts": segment_starts, "key": key}
        given["rate"], given["n_head"] = np.array([rate], np.float32), np.array([heads], np.int32)
        cases[name] = (given, expect_attention(qkv, d_out, segment_starts, heads, key, rate))
    wte, targets = normal(vocab, width), draw.integers(0, vocab, flat, dtype=np.int32)
    targets[::9] = IGNORE
    cases["cross_entropy"] = ({"x": x, "wte": wte, "targets": targets}, expect_head(x, wte, targets))
    tokens = draw.integers(0, 31, (rows, time), dtype=np.int32)
    positions = np.arange(time, dtype=np.int32) - starts
    given = {"tokens": tokens, "positions": positions, "wte": wte, "wpe": normal(64, width), "d_x": d_out}
    cases["embedding"] = (given, expect_embedding(**given))
    key = dropout_keys(SEED, 4, FIRST_ROW, 2)[1, Site.ATTENTION_RESIDUAL]
    given = {"x": x, "d_y": d_y, "key": key, "rate": np.array([0.1], np.float32)}
    given["rows"] = np.array([rows], np.int32)
    mask = mask_of((rows, time, width), key, float(given["rate"][0]))
    factor = mask.reshape(x.shape) / (1.0 - 0.1)
    cases["dropout"] = (
        given,
        {"y": x * factor, "d_x": d_y * factor, "mask": (factor > 0).astype(np.float64)},
    )
    for name, shape in (("orthogonalize", (3, 24, 70)), ("orthogonalize-tall", (2, 70, 24))):
        x = normal(*shape)
        cases[name] = (
            {"x": x},
            {"y": np.stack([referee.orthogonalize(each) for each in x.astype(np.float64)])},
        )
    return cases


def mask_of(shape: tuple[int, ...], key: np.ndarray, rate: float) -> np.ndarray:
    """The shared mask of a key of three words."""
    k0, k1, first_row = key.tolist()
    return dropout_mask(shape, (k0, k1), rate, first_row)


def expect_layer_norm(x: np.ndarray, gain: np.ndarray, bias: np.ndarray, d_y: np.ndarray) -> referee.Tree:
    """Forward and VJP in float64."""
    x, gain, bias, d_y = (value.astype(np.float64) for value in (x, gain, bias, d_y))
    y, saved = referee.layer_norm(x, gain, bias)
    d_x, d_gain, d_bias = referee.layer_norm_vjp(saved, gain, d_y)
    return {"y": y, "d_x": d_x, "d_gain": d_gain, "d_bias": d_bias}


def expect_gelu(x: np.ndarray, d_y: np.ndarray) -> referee.Tree:
    """Forward and VJP in float64."""
    x = x.astype(np.float64)
    return {"y": referee.gelu(x), "d_x": referee.gelu_vjp(x, d_y.astype(np.float64))}


def expect_linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, d_y: np.ndarray) -> referee.Tree:
    """Forward and VJP in float64."""
    x, weight, bias, d_y = (value.astype(np.float64) for value in (x, weight, bias, d_y))
    d_x, d_weight, d_bias = referee.linear_vjp(x, weight, d_y)
    return {"y": referee.linear(x, weight, bias), "d_x": d_x, "d_weight": d_weight, "d_bias": d_bias}


def expect_attention(
    qkv: np.ndarray, d_out: np.ndarray, starts: np.ndarray, heads: int, key: np.ndarray, rate: float
) -> referee.Tree:
    """Forward and VJP in float64, dropout on the weights at ``rate``."""
    rows, time, _ = qkv.shape
    seen = referee.visible(Batch(starts, starts, starts))
    shape = (rows, heads, time, time)
    factor = mask_of(shape, key, rate) / (1.0 - rate) if rate else 1.0
    out, saved = referee.attention(qkv.astype(np.float64), heads, seen, factor)
    return {"out": out, "d_qkv": referee.attention_vjp(saved, d_out.astype(np.float64))}


def expect_head(x: np.ndarray, wte: np.ndarray, targets: np.ndarray) -> referee.Tree:
    """Losses and the gradient of their mean over targets, in float64."""
    x, wte = x.astype(np.float64), wte.astype(np.float64)
    nll, d_logits = referee.cross_entropy(x @ wte.T, targets)
    d_logits = d_logits / np.count_nonzero(targets != IGNORE)
    return {"nll": nll, "d_x": d_logits @ wte, "d_wte": d_logits.T @ x}


def expect_embedding(
    tokens: np.ndarray, positions: np.ndarray, wte: np.ndarray, wpe: np.ndarray, d_x: np.ndarray
) -> referee.Tree:
    """Sum of the two rows, and the rows' gradients, in float64."""
    d_wte, d_wpe = (np.zeros(table.shape) for table in (wte, wpe))
    np.add.at(d_wte, tokens, d_x.astype(np.float64))
    np.add.at(d_wpe, positions, d_x.astype(np.float64))
    return {
        "x": wte.astype(np.float64)[tokens] + wpe.astype(np.float64)[positions],
        "d_wte": d_wte,
        "d_wpe": d_wpe,
    }


def write_cases(folder: Path) -> None:
    """Write every case below ``folder``: ``model/NAME`` and ``op/NAME``."""
    for case in MODEL_CASES:
        write_model_case(case, folder / "model" / case.name)
    for name, (inputs, expected) in op_cases().items():
        place = folder / "op" / name
        place.mkdir(parents=True)
        save_file(
            {key: np.ascontiguousarray(value) for key, value in inputs.items()}, place / "inputs.safetensors"
        )
        save_file(
            {key: np.ascontiguousarray(value) for key, value in expected.items()},
            place / "expected.safetensors",
        )


def read_inputs(folder: Path) -> dict[str, np.ndarray]:
    """A case's inputs."""
    return load_file(folder / "inputs.safetensors")


if __name__ == "__main__":
    import sys

    write_cases(Path(sys.argv[1]))
