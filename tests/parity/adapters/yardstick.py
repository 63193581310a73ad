"""A plain PyTorch GPT-2 with autograd: how far bfloat16 alone takes an ordinary program from the referee.

Nothing of ours is in it but the dropout masks. Parameters are float32 masters, cast once per step; every
activation and product has the run's precision; the loss is taken in float32, as one would write it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from gpt_data.batch import IGNORE, Batch
from gpt_trainer.backend import OptimizerConfig, Runtime, StepMetrics
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import Parameters
from gpt_trainer.philox import Site, dropout_key, dropout_mask
from torch import Tensor

torch.backends.cuda.matmul.allow_tf32 = False


class Done(StepMetrics):
    """Metrics that are there already."""

    def fetch(self) -> StepMetrics:
        """The step's metrics."""
        return self


class Yardstick:
    """As much of a backend as the matrix asks for."""

    def __init__(self, config: ModelConfig, optimizer: OptimizerConfig, runtime: Runtime) -> None:
        self.config, self.optimizer_config, self.runtime = config, optimizer, runtime
        self.device = "cuda" if runtime.device == "gpu" else "cpu"
        self.dtype = getattr(torch, runtime.precision)

    def load(self, parameters: Parameters) -> None:
        """Take over parameters and start the optimizer anew."""
        self.p = {
            name: torch.nn.Parameter(torch.from_numpy(value.copy()).to(self.device))
            for name, value in parameters.items()
        }
        c = self.optimizer_config
        in_blocks = {name for name, value in self.p.items() if ".h." in name and value.ndim == 2}
        muon = in_blocks if c.optimizer == "muon" else set()
        rest = [value for name, value in self.p.items() if name not in muon]
        groups = [
            {"params": [value for value in rest if value.ndim == 2], "weight_decay": c.weight_decay},
            {"params": [value for value in rest if value.ndim == 1], "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(groups, betas=(c.beta1, c.beta2), eps=c.epsilon)
        # torch's Muon takes matrices (out, in), and each of queries, keys and values for itself
        self.turned = {
            name: [torch.nn.Parameter(part) for part in self.parts(name, self.p[name])]
            for name in sorted(muon)
        }
        turned = [part for parts in self.turned.values() for part in parts]
        self.muon = torch.optim.Muon(turned, weight_decay=c.weight_decay) if turned else None

    def parts(self, name: str, value: Tensor) -> list[Tensor]:
        """Copies of a matrix's own matrices, transposed."""
        count = 3 if name.endswith("c_attn.weight") else 1
        return [part.T.detach().clone() for part in value.chunk(count, dim=1)]

    def keep(self, x: Tensor, step: int | None, first_row: int, layer: int, site: Site) -> Tensor:
        """Dropout by the shared masks; none outside of training."""
        rate = self.config.dropout
        if step is None or rate == 0.0:
            return x
        key = dropout_key(self.runtime.seed, step, layer, site)
        mask = torch.from_numpy(dropout_mask(tuple(x.shape), key, rate, first_row)).to(x.device)
        return x * mask / (1.0 - rate)

    def forward(self, batch: Batch, step: int | None = None, first_row: int = 0) -> Tensor:
        """Logits in the run's precision."""
        p = {name.removeprefix("transformer."): value.to(self.dtype) for name, value in self.p.items()}
        tokens, positions = (self.tensor(v.astype(np.int64)) for v in (batch.tokens, batch.positions))
        x = self.keep(
            p["wte.weight"][tokens] + p["wpe.weight"][positions], step, first_row, 0, Site.EMBEDDING
        )
        rows, time, width = x.shape
        starts = np.zeros((rows, time)) if batch.segment_starts is None else batch.segment_starts
        hidden = self.tensor(_hidden(starts))
        for layer in range(self.config.n_layer):
            n = f"h.{layer}."
            h = F.layer_norm(x, (width,), p[n + "ln_1.weight"], p[n + "ln_1.bias"])
            qkv = h @ p[n + "attn.c_attn.weight"] + p[n + "attn.c_attn.bias"]
            q, k, v = qkv.view(rows, time, 3, self.config.n_head, -1).permute(2, 0, 3, 1, 4)
            scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(hidden, -torch.inf)
            weights = self.keep(scores.softmax(-1), step, first_row, layer, Site.ATTENTION)
            mixed = (weights @ v).transpose(1, 2).reshape(rows, time, width)
            out = mixed @ p[n + "attn.c_proj.weight"] + p[n + "attn.c_proj.bias"]
            x = x + self.keep(out, step, first_row, layer, Site.ATTENTION_RESIDUAL)
            h = F.layer_norm(x, (width,), p[n + "ln_2.weight"], p[n + "ln_2.bias"])
            h = F.gelu(h @ p[n + "mlp.c_fc.weight"] + p[n + "mlp.c_fc.bias"], approximate="tanh")
            out = h @ p[n + "mlp.c_proj.weight"] + p[n + "mlp.c_proj.bias"]
            x = x + self.keep(out, step, first_row, layer, Site.MLP_RESIDUAL)
        return F.layer_norm(x, (width,), p["ln_f.weight"], p["ln_f.bias"]) @ p["wte.weight"].T

    def tensor(self, value: np.ndarray) -> Tensor:
        """An array on the device."""
        return torch.from_numpy(np.ascontiguousarray(value)).to(self.device)

    def backward(self, micro_batches: Sequence[Batch], step: int) -> float:
        """Leave the gradient of the mean loss in the parameters; return the loss."""
        for value in self.p.values():
            value.grad = None
        total = sum(batch.target_count for batch in micro_batches)
        loss, first_row = 0.0, 0
        for batch in micro_batches:
            logits = self.forward(batch, step, first_row).float().flatten(0, 1)
            first_row += len(batch.tokens)
            targets = self.tensor(batch.targets.astype(np.int64)).flatten()
            part = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum") / total
            part.backward()
            loss += part.item()
        return loss

    def logits(self, batch: Batch) -> np.ndarray:
        """All logits, without dropout."""
        with torch.no_grad():
            return self.forward(batch).float().cpu().numpy()

    def log_probs(self, batch: Batch) -> np.ndarray:
        """Of each target, 0 where there is none."""
        logits = torch.from_numpy(self.logits(batch)).flatten(0, 1)
        targets = torch.from_numpy(batch.targets.astype(np.int64)).flatten()
        nll = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
        return -nll.view(batch.targets.shape).numpy()

    def gradients(self, micro_batches: Sequence[Batch], step: int) -> tuple[float, Parameters]:
        """Mean loss and gradients."""
        loss = self.backward(micro_batches, step)
        return loss, {name: value.grad.cpu().numpy() for name, value in self.p.items()}

    def train_step(self, micro_batches: Sequence[Batch], lr: float, step: int) -> Done:
        """Clip, then AdamW or Muon."""
        loss = self.backward(micro_batches, step)
        norm = torch.nn.utils.clip_grad_norm_(list(self.p.values()), self.optimizer_config.clip_norm)
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        if self.muon is not None:
            self.step_muon(self.muon, lr * self.optimizer_config.muon_lr_factor)
        return Done(loss, norm.item(), True)

    def step_muon(self, muon: torch.optim.Muon, lr: float) -> None:
        """Gradients to the turned copies, a step there, and the copies back."""
        for name, parts in self.turned.items():
            for part, grad in zip(parts, self.parts(name, self.p[name].grad), strict=True):
                part.grad = grad
        for group in muon.param_groups:
            group["lr"] = lr
        muon.step()
        with torch.no_grad():
            for name, parts in self.turned.items():
                self.p[name].copy_(torch.cat([part.T for part in parts], dim=1))

    def export(self) -> Parameters:
        """The float32 masters."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self.p.items()}

    def device_name(self) -> str:
        """The device as its vendor names it."""
        return torch.cuda.get_device_name() if self.device == "cuda" else "CPU"

    def choices(self) -> Mapping[str, str]:
        """The framework's version."""
        return {"torch": torch.__version__}


Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Ops:
    """Torch's own ops, in the run's precision, each a method of the case's arrays.

    Attributes:
        dtype: Of everything.
        where: Device.
    """

    dtype: torch.dtype
    where: str

    @classmethod
    def of_run(cls, precision: str, device: str, options: list[str]) -> Ops:
        """The ops as one variant runs them; there are no options."""
        del options
        return cls(getattr(torch, precision), "cuda" if device == "gpu" else "cpu")

    def orthogonalize(self, inputs: Arrays) -> Arrays:
        """Of every matrix: a step of rate 1 from zero, by torch's Muon without momentum."""
        found = []
        for x in torch.from_numpy(inputs["x"]).to(self.where):
            parameter = torch.nn.Parameter(torch.zeros_like(x))
            parameter.grad = x
            torch.optim.Muon([parameter], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False).step()
            found.append(-parameter.detach() / max(1.0, x.shape[0] / x.shape[1]) ** 0.5)
        return {"y": torch.stack(found).cpu().numpy()}

    def layer_norm(self, inputs: Arrays) -> Arrays:
        """Of every row."""

        def function(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
            return F.layer_norm(x, (x.shape[-1],), gain, bias)

        return _answers("y", function, self._floats(inputs, "x", "gain", "bias"), self._float(inputs, "d_y"))

    def gelu(self, inputs: Arrays) -> Arrays:
        """Element by element."""
        given, d_y = self._floats(inputs, "x"), self._float(inputs, "d_y")
        return _answers("y", lambda x: F.gelu(x, approximate="tanh"), given, d_y)

    def linear(self, inputs: Arrays) -> Arrays:
        """Of every row."""
        given, d_y = self._floats(inputs, "x", "weight", "bias"), self._float(inputs, "d_y")
        return _answers("y", lambda x, weight, bias: x @ weight + bias, given, d_y)

    def attention(self, inputs: Arrays) -> Arrays:
        """Of every head, with dropout and documents where the case has them."""
        heads, time = int(inputs["n_head"][0]), inputs["qkv"].shape[1]
        hidden = torch.from_numpy(_hidden(inputs["segment_starts"])).to(self.where)
        shape = (len(inputs["qkv"]), heads, time, time)
        mask = torch.from_numpy(_mask(inputs, shape)).to(self.where) if inputs["rate"][0] else None

        def function(qkv: Tensor) -> Tensor:
            q, k, v = qkv.view(len(qkv), time, 3, heads, -1).permute(2, 0, 3, 1, 4)
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
            if mask is not None:
                weights = weights * mask / (1.0 - float(inputs["rate"][0]))
            return (weights @ v).transpose(1, 2).flatten(2)

        return _answers("out", function, self._floats(inputs, "qkv"), self._float(inputs, "d_out"))

    def cross_entropy(self, inputs: Arrays) -> Arrays:
        """Losses token by token, and the gradients of their mean."""
        targets = self._ids(inputs, "targets")

        def function(x: Tensor, wte: Tensor) -> Tensor:
            return F.cross_entropy((x @ wte.T).float(), targets, ignore_index=IGNORE, reduction="none")

        d_nll = torch.full(targets.shape, 1.0 / int((targets != IGNORE).sum()), device=self.where)
        return _answers("nll", function, self._floats(inputs, "x", "wte"), d_nll)

    def embedding(self, inputs: Arrays) -> Arrays:
        """Rows of both tables, added."""
        tokens, positions = self._ids(inputs, "tokens"), self._ids(inputs, "positions")

        def function(wte: Tensor, wpe: Tensor) -> Tensor:
            return F.embedding(tokens, wte) + F.embedding(positions, wpe)

        return _answers("x", function, self._floats(inputs, "wte", "wpe"), self._float(inputs, "d_x"))

    def dropout(self, inputs: Arrays) -> Arrays:
        """The branch, and its mask."""
        x, rows = inputs["x"], int(inputs["rows"][0])
        mask = _mask(inputs, (rows, len(x) // rows, x.shape[1])).reshape(x.shape)
        factor = torch.from_numpy(mask).to(self.where) / (1.0 - float(inputs["rate"][0]))
        given, d_y = self._floats(inputs, "x"), self._float(inputs, "d_y")
        answers = _answers("y", lambda x: (x * factor).to(self.dtype), given, d_y)
        return answers | {"mask": mask.astype(np.float32)}

    def _float(self, inputs: Arrays, name: str) -> Tensor:
        return torch.from_numpy(inputs[name]).to(self.where, self.dtype)

    def _floats(self, inputs: Arrays, *names: str) -> dict[str, Tensor]:
        return {name: self._float(inputs, name) for name in names}

    def _ids(self, inputs: Arrays, name: str) -> Tensor:
        return torch.from_numpy(inputs[name].astype(np.int64)).to(self.where)


def _hidden(starts: np.ndarray) -> np.ndarray:
    """[B, 1, T, T]: the key (column) comes after the query (row), or before its document."""
    index = np.arange(starts.shape[1])
    return ~((index[:, None] >= index) & (index >= starts[:, :, None]))[:, None]


def _mask(inputs: Arrays, shape: tuple[int, ...]) -> np.ndarray:
    """The shared mask of a case with dropout."""
    k0, k1, first_row = inputs["key"].tolist()
    return dropout_mask(shape, (k0, k1), float(inputs["rate"][0]), first_row)


def _answers(name: str, function: Callable[..., Tensor], given: dict[str, Tensor], d_out: Tensor) -> Arrays:
    """Output and gradients of one op by autograd; the output comes under ``name``."""
    leaves = {each: value.detach().requires_grad_() for each, value in given.items()}
    out = function(**leaves)
    grads = torch.autograd.grad(out, list(leaves.values()), d_out.to(out.dtype))
    found = {f"d_{each}": grad for each, grad in zip(leaves, grads, strict=True)} | {name: out}
    return {each: value.detach().float().cpu().numpy() for each, value in found.items()}
