"""GPT-2 in float64 NumPy: forward, backward derived by hand, AdamW and Muon. What the backends are held to.

Nothing here is fast; everything is written as the formula reads. Parameters go by canonical name.
Axes: B rows, T positions, D width, H heads, K head width, V vocabulary, F hidden width of the MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from gpt_data.batch import IGNORE, Batch
from gpt_trainer.backend import OptimizerConfig
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.philox import Site, dropout_key, dropout_mask
from numpy.typing import NDArray

EPSILON = 1e-5
GELU_SCALE = np.sqrt(2.0 / np.pi)
GELU_CUBIC = 0.044715
MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)

Array = NDArray[Any]
Tree = dict[str, Array]


class Mask(NamedTuple):
    """Where and how dropout draws; ``rate`` 0 means none."""

    seed: int
    step: int
    first_row: int
    rate: float

    def factor(self, shape: tuple[int, ...], layer: int, site: Site) -> Array:
        """``keep / (1 - rate)`` for every element of a tensor of ``shape``."""
        if self.rate == 0.0:
            return np.ones(shape)
        key = dropout_key(self.seed, self.step, layer, site)
        return dropout_mask(shape, key, self.rate, self.first_row) / (1.0 - self.rate)


NO_DROPOUT = Mask(0, 0, 0, 0.0)


def layer_norm(x: Array, gain: Array, bias: Array) -> tuple[Array, tuple[Array, Array]]:
    """``y = gain * x_hat + bias`` over the last axis; keeps ``x_hat`` and ``rstd``."""
    centred = x - x.mean(-1, keepdims=True)
    rstd = 1.0 / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
    x_hat = centred * rstd
    return gain * x_hat + bias, (x_hat, rstd)


def layer_norm_vjp(saved: tuple[Array, Array], gain: Array, d_y: Array) -> tuple[Array, Array, Array]:
    """All three gradients: ``d_x = rstd (g - mean(g) - x_hat mean(g x_hat))``, ``g = gain d_y``."""
    x_hat, rstd = saved
    g = gain * d_y
    d_x = rstd * (g - g.mean(-1, keepdims=True) - x_hat * (g * x_hat).mean(-1, keepdims=True))
    rows = tuple(range(d_y.ndim - 1))
    return d_x, (d_y * x_hat).sum(rows), d_y.sum(rows)


def gelu(x: Array) -> Array:
    """``x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`` (Hendrycks and Gimpel 2016)."""
    return 0.5 * x * (1.0 + np.tanh(GELU_SCALE * (x + GELU_CUBIC * x**3)))


def gelu_vjp(x: Array, d_y: Array) -> Array:
    """``d_y`` times the derivative of ``gelu`` at ``x``."""
    t = np.tanh(GELU_SCALE * (x + GELU_CUBIC * x**3))
    inner = GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * x**2)
    return d_y * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t**2) * inner)


def linear(x: Array, weight: Array, bias: Array) -> Array:
    """``x W + b``."""
    return x @ weight + bias


def linear_vjp(x: Array, weight: Array, d_y: Array) -> tuple[Array, Array, Array]:
    """Gradients of input, weight and bias."""
    d_weight = x.reshape(-1, x.shape[-1]).T @ d_y.reshape(-1, d_y.shape[-1])
    return d_y @ weight.T, d_weight, d_y.sum(tuple(range(d_y.ndim - 1)))


def visible(batch: Batch) -> Array:
    """``[B, 1, T, T]``: whether query t may see key s."""
    time = np.arange(batch.tokens.shape[1])
    causal = time[:, None] >= time[None, :]
    if batch.segment_starts is None:
        return np.broadcast_to(causal, (len(batch.tokens), 1, *causal.shape))
    return (causal & (time >= batch.segment_starts[:, :, None]))[:, None]


def split_heads(qkv: Array, n_head: int) -> tuple[Array, Array, Array]:
    """``[B, T, 3 D]`` to three ``[B, H, T, K]``."""
    rows, time, _ = qkv.shape
    q, k, v = np.moveaxis(qkv.reshape(rows, time, 3, n_head, -1), (2, 3), (0, 2))
    return q, k, v


def merge_heads(x: Array) -> Array:
    """``[B, H, T, K]`` to ``[B, T, D]``."""
    rows, heads, time, width = x.shape
    return x.transpose(0, 2, 1, 3).reshape(rows, time, heads * width)


def attention(qkv: Array, n_head: int, seen: Array, factor: Array | float = 1.0) -> tuple[Array, tuple]:
    """Causal self-attention, ``factor`` on the weights; keeps q, k, v and the weights."""
    q, k, v = split_heads(qkv, n_head)
    scores = np.where(seen, q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]), -np.inf)  # [B, H, T, T]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    return merge_heads((weights * factor) @ v), (q, k, v, weights, factor)


def attention_vjp(saved: tuple, d_out: Array) -> Array:
    """Gradient of ``qkv``; through the softmax, ``d_scores = p (d_p - sum(p d_p))``."""
    q, k, v, weights, factor = saved
    rows, heads, time, width = q.shape
    d_out = d_out.reshape(rows, time, heads, width).transpose(0, 2, 1, 3)
    d_v = (weights * factor).swapaxes(-1, -2) @ d_out
    d_weights = (d_out @ v.swapaxes(-1, -2)) * factor
    d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True))
    scale = 1.0 / np.sqrt(width)
    d_q, d_k = d_scores @ k * scale, d_scores.swapaxes(-1, -2) @ q * scale
    return np.concatenate([merge_heads(d) for d in (d_q, d_k, d_v)], axis=-1)


def cross_entropy(logits: Array, targets: Array) -> tuple[Array, Array]:
    """Negative log-likelihood of each target (0 where ignored), and its gradient with respect to logits."""
    keep = (targets != IGNORE)[..., None]
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    index = np.where(targets == IGNORE, 0, targets)[..., None]
    nll = -np.take_along_axis(log_p, index, -1) * keep
    one_hot = np.zeros_like(logits)
    np.put_along_axis(one_hot, index, 1.0, -1)
    return nll[..., 0], (np.exp(log_p) - one_hot) * keep


def block_names(layer: int) -> dict[str, str]:
    """Short names of one block's modules to canonical prefixes."""
    prefix = f"transformer.h.{layer}."
    return {
        name: prefix + name
        for name in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    }


def forward(p: Tree, batch: Batch, config: ModelConfig, mask: Mask = NO_DROPOUT) -> tuple[Array, list, tuple]:
    """Logits ``[B, T, V]``, what each block saved, and what the ends saved."""
    x = p["transformer.wte.weight"][batch.tokens] + p["transformer.wpe.weight"][batch.positions]
    x = x * mask.factor(x.shape, 0, Site.EMBEDDING)
    seen = visible(batch)
    tape = []
    for layer in range(config.n_layer):
        x, saved = block(p, x, layer, config, seen, mask)
        tape.append(saved)
    x, norm = layer_norm(x, p["transformer.ln_f.weight"], p["transformer.ln_f.bias"])
    return x @ p["transformer.wte.weight"].T, tape, (x, norm)


def log_probs(logits: Array, targets: Array) -> Array:
    """``[B, T]``: log-probability of each target, 0 where there is none."""
    nll, _ = cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.ravel())
    return -nll.reshape(targets.shape)


def block(p: Tree, x: Array, layer: int, config: ModelConfig, seen: Array, mask: Mask) -> tuple[Array, tuple]:
    """One block: ``x += attention(norm(x))``, then ``x += mlp(norm(x))``."""
    n = block_names(layer)

    def apply(name: str, value: Array) -> Array:
        return linear(value, p[n[name] + ".weight"], p[n[name] + ".bias"])

    rows, time, _ = x.shape
    h1, norm1 = layer_norm(x, p[n["ln_1"] + ".weight"], p[n["ln_1"] + ".bias"])
    factor = mask.factor((rows, config.n_head, time, time), layer, Site.ATTENTION)
    mixed, attended = attention(apply("attn.c_attn", h1), config.n_head, seen, factor)
    keep1 = mask.factor(x.shape, layer, Site.ATTENTION_RESIDUAL)
    x = x + apply("attn.c_proj", mixed) * keep1
    h2, norm2 = layer_norm(x, p[n["ln_2"] + ".weight"], p[n["ln_2"] + ".bias"])
    pre = apply("mlp.c_fc", h2)
    keep2 = mask.factor(x.shape, layer, Site.MLP_RESIDUAL)
    x = x + apply("mlp.c_proj", gelu(pre)) * keep2
    return x, (h1, norm1, attended, mixed, keep1, h2, norm2, pre, keep2)


def block_vjp(p: Tree, saved: tuple, d_x: Array, layer: int, grads: Tree) -> Array:
    """Gradient of the block's input; adds the parameters' gradients into ``grads``."""
    h1, norm1, attended, mixed, keep1, h2, norm2, pre, keep2 = saved
    n = block_names(layer)

    def back(name: str, value: Array, d_y: Array) -> Array:
        d_value, d_weight, d_bias = linear_vjp(value, p[n[name] + ".weight"], d_y)
        grads[n[name] + ".weight"] += d_weight
        grads[n[name] + ".bias"] += d_bias
        return d_value

    def back_norm(name: str, norm: tuple[Array, Array], d_y: Array) -> Array:
        d_value, d_gain, d_bias = layer_norm_vjp(norm, p[n[name] + ".weight"], d_y)
        grads[n[name] + ".weight"] += d_gain
        grads[n[name] + ".bias"] += d_bias
        return d_value

    d_pre = gelu_vjp(pre, back("mlp.c_proj", gelu(pre), d_x * keep2))
    d_x = d_x + back_norm("ln_2", norm2, back("mlp.c_fc", h2, d_pre))
    d_qkv = attention_vjp(attended, back("attn.c_proj", mixed, d_x * keep1))
    return d_x + back_norm("ln_1", norm1, back("attn.c_attn", h1, d_qkv))


def backward(
    p: Tree, batch: Batch, tape: list, ends: tuple, d_logits: Array, mask: Mask, grads: Tree
) -> None:
    """Add the gradient of every parameter into ``grads``; the head and the embedding share ``wte``."""
    x, norm = ends
    grads["transformer.wte.weight"] += np.einsum("btv,btd->vd", d_logits, x)
    d_x, d_gain, d_bias = layer_norm_vjp(
        norm, p["transformer.ln_f.weight"], d_logits @ p["transformer.wte.weight"]
    )
    grads["transformer.ln_f.weight"] += d_gain
    grads["transformer.ln_f.bias"] += d_bias
    for layer, saved in reversed(list(enumerate(tape))):
        d_x = block_vjp(p, saved, d_x, layer, grads)
    d_x = d_x * mask.factor(d_x.shape, 0, Site.EMBEDDING)
    np.add.at(grads["transformer.wte.weight"], batch.tokens, d_x)
    np.add.at(grads["transformer.wpe.weight"], batch.positions, d_x)


def loss_and_gradients(
    p: Tree, micro_batches: Sequence[Batch], config: ModelConfig, seed: int, step: int
) -> tuple[float, Tree]:
    """Mean loss over all targets of the step, and its gradient by canonical name."""
    grads = {name: np.zeros_like(value) for name, value in p.items()}
    total = sum(batch.target_count for batch in micro_batches)
    loss, first_row = 0.0, 0
    for batch in micro_batches:
        mask = Mask(seed, step, first_row, config.dropout)
        first_row += len(batch.tokens)
        logits, tape, ends = forward(p, batch, config, mask)
        nll, d_logits = cross_entropy(logits, batch.targets)
        loss += float(nll.sum()) / total
        backward(p, batch, tape, ends, d_logits / total, mask, grads)
    return loss, grads


def is_muons(name: str, config: OptimizerConfig) -> bool:
    """Whether Muon updates a parameter: a matrix of a block, if it is wanted."""
    return (
        config.optimizer == "muon"
        and ".h." in name
        and name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight"))
    )


def optimizer_init(p: Tree, config: OptimizerConfig) -> dict[str, Tree]:
    """Zeros: Muon's momentum, and AdamW's first and second moments, each of its own parameters."""
    zeros = {name: np.zeros_like(value) for name, value in p.items()}
    muon = {name for name in p if is_muons(name, config)}
    trees = {"momentum": muon, "first": p.keys() - muon, "second": p.keys() - muon}
    return {tree: {name: zeros[name] for name in p if name in names} for tree, names in trees.items()}


def global_norm(grads: Tree) -> float:
    """Root of the sum of all squares."""
    return float(np.sqrt(sum((value**2).sum() for value in grads.values())))


def adamw(
    g: Array, first: Array, second: Array, step: int, config: OptimizerConfig
) -> tuple[Array, Array, Array]:
    """AdamW's direction without decay, and both moments (Loshchilov and Hutter 2019)."""
    first = config.beta1 * first + (1.0 - config.beta1) * g
    second = config.beta2 * second + (1.0 - config.beta2) * g**2
    m_hat = first / (1.0 - config.beta1 ** (step + 1))
    v_hat = second / (1.0 - config.beta2 ** (step + 1))
    return m_hat / (np.sqrt(v_hat) + config.epsilon), first, second


def orthogonalize(x: Array) -> Array:
    """Five Newton-Schulz steps ``X <- a X + (b X X^T + c (X X^T)^2) X`` on ``X / |X|``."""
    a, b, c = NEWTON_SCHULZ
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def muon(g: Array, momentum: Array) -> tuple[Array, Array]:
    """Muon's direction for one matrix ``(in, out)``, and its momentum (Jordan et al. 2024, with Nesterov's).

    Its authors' matrices are ``(out, in)``: their rows over columns are ours upside down.
    """
    momentum = MOMENTUM * momentum + g
    rows, columns = g.shape
    return np.sqrt(max(1.0, columns / rows)) * orthogonalize(g + MOMENTUM * momentum), momentum


def optimize(
    p: Tree, grads: Tree, state: dict[str, Tree], step: int, lr: float, config: OptimizerConfig
) -> tuple[Tree, dict[str, Tree]]:
    """Clip by global norm, then one step of AdamW, or of Muon for the blocks' matrices.

    Args:
        step: Steps taken, from 0.
    """
    norm = global_norm(grads)
    clip = min(1.0, config.clip_norm / norm) if config.clip_norm else 1.0
    new: Tree = {}
    after: dict[str, Tree] = {"momentum": {}, "first": {}, "second": {}}
    for name, value in p.items():
        g, rate = grads[name] * clip, lr
        if is_muons(name, config):
            # queries, keys and values are three maps side by side
            parts = 3 if name.endswith("c_attn.weight") else 1
            pairs = zip(np.split(g, parts, 1), np.split(state["momentum"][name], parts, 1), strict=True)
            directions, momenta = zip(*(muon(*pair) for pair in pairs), strict=True)
            direction, after["momentum"][name] = np.hstack(directions), np.hstack(momenta)
            rate = lr * config.muon_lr_factor
        else:
            kept = (state[tree][name] for tree in ("first", "second"))
            direction, after["first"][name], after["second"][name] = adamw(g, *kept, step, config)
        decay = config.weight_decay if value.ndim == 2 else 0.0
        new[name] = value - rate * (direction + decay * value)
    return new, after
