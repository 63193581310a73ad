"""A model in NumPy: next-token probabilities from all that a position sees, nearer tokens counting more.

Position ids outside its context are an error, and its decoders score whole rows, each time anew, so that two
layouts that mean the same give the same. Shapes: B rows, T positions, n new positions, D width.

As a program it is the command with the toy as its only backend.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
from gpt_data.batch import IGNORE, Batch
from gpt_trainer import registry
from gpt_trainer.backend import Decoder
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import Parameters
from gpt_trainer.registry import BackendSpec
from gpt_trainer.sequences import Sequences


class ToyModel:
    def __init__(self, vocab_size: int = 257, context: int = 64, seed: int = 3) -> None:
        self.config = ModelConfig(1, 1, 8, context, vocab_size)
        stream = np.random.default_rng(seed)
        self.tokens = stream.standard_normal((vocab_size, 8))
        self.places = stream.standard_normal((context, 8))
        self.shapes: set[tuple[int, ...]] = set()

    def log_probs(self, batch: Batch) -> np.ndarray:
        self.shapes.add(batch.tokens.shape)
        return self.score(batch)

    def decoder(self, rows: int, *, room: int | None = None, filling: np.ndarray | None = None) -> ToyDecoder:
        return ToyDecoder(
            self, Sequences.begin(self.config, rows, room, filling), np.zeros((rows, 0), np.int32)
        )

    def score(self, batch: Batch) -> np.ndarray:
        places = batch.positions  # [B, T]
        assert 0 <= places.min() <= places.max() < self.config.context, "a position beyond the context"
        nearness = np.exp(-0.3 * (places[:, :, None] - places[:, None, :])) * visible(batch)  # [B, T, T]
        hidden = nearness @ self.tokens[batch.tokens] + self.places[places]
        logits = hidden @ self.tokens.T  # [B, T, V]
        logits -= logits.max(-1, keepdims=True)
        found = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        picked = np.take_along_axis(found, np.maximum(batch.targets, 0)[..., None], -1)[..., 0]
        return np.where(batch.targets == IGNORE, 0.0, picked).astype(np.float32)

    def log_prob_fn(self, tokens: np.ndarray) -> np.ndarray:
        """The model as the library's function: log p(tokens[b, t] | tokens[b, :t])."""
        found = self.log_probs(Batch(tokens[:, :-1], tokens[:, 1:]))
        return np.pad(found, ((0, 0), (1, 0)), constant_values=np.nan)


class ToyDecoder(Decoder):
    """Sequences that grow; counts the tokens that it was given."""

    fed = 0

    def __init__(self, model: ToyModel, sequences: Sequences, tokens: np.ndarray) -> None:
        self.model, self.sequences, self.tokens = model, sequences, tokens

    def log_probs(self, tokens: np.ndarray, targets: np.ndarray) -> np.ndarray:
        ToyDecoder.fed += tokens.size
        self.sequences.append(tokens, targets)
        before, self.tokens = self.tokens.shape[1], np.concatenate([self.tokens, tokens], axis=1)
        values = np.zeros(targets.shape, np.float32)
        for row, wanted in enumerate(targets):
            if (count := int(np.flatnonzero(wanted != IGNORE).max(initial=-1)) + 1) > 0:
                own = self.tokens[row : row + 1, self.sequences.filling[row] : before + count]
                asked = np.full_like(own, IGNORE)
                asked[0, -count:] = wanted[:count]
                values[row, :count] = self.model.score(Batch(own, asked))[0, -count:]
        return values

    def fork(self, rows: np.ndarray) -> ToyDecoder:
        return ToyDecoder(self.model, self.sequences.fork(rows), self.tokens[rows])


def visible(batch: Batch) -> np.ndarray:
    """Whether position t sees position s, [1, T, T]."""
    assert batch.segment_starts is None
    return np.tril(np.ones((1, batch.tokens.shape[1], batch.tokens.shape[1]), bool))


class ToyBackend(ToyModel):
    def __init__(self, config: ModelConfig, optimizer: Any, runtime: Any, options: Any) -> None:
        super().__init__(config.vocab_size, config.context)
        self.precision = runtime.precision

    def load(self, parameters: Parameters, optimizer_state: None = None) -> None:
        self.tokens = self.tokens + parameters["transformer.wte.weight"]

    def device_name(self) -> str:
        return "toy"


class NoOptions:
    pass


def spec(name: str, *, gpu: bool = False) -> BackendSpec:
    return BackendSpec(name, NoOptions, ToyBackend, lambda: gpu)  # type: ignore[arg-type]


SPEC = spec("gpt-toy")

if __name__ == "__main__":
    from hellaswag_eval.commands import main

    registry.entry_points = lambda group: [EntryPoint("gpt-toy", f"{__name__}:SPEC", group)]
    main()
