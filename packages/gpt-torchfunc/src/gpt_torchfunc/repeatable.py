"""Causal attention by cuDNN whose derivative has the same bits every time.

torch's fused attention runs cuDNN's kernels too, but does not ask for the deterministic one of the backward
pass: where bits must not change it falls back on FlashAttention-2, which takes half as long again. NVIDIA's
own Python package, ``nvidia-cudnn-frontend``, can ask, and can give cuDNN dropout masks of ours.

Shapes: B rows, T positions, H heads, K head width, M tokens of all rows (B T).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import BFloat16, Float32, Int32
from torch import Tensor

from gpt_torchfunc.model import Inputs, Plan

QKV = tuple[BFloat16[Tensor, "B H T K"], BFloat16[Tensor, "B H T K"], BFloat16[Tensor, "B H T K"]]
Shape = tuple[int, ...]


def has_repeatable(device: torch.device) -> bool:
    """Whether cuDNN can be asked on this device: with the package, on Hopper, where it was seen to hold."""
    if importlib.util.find_spec("cudnn") is None or device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device)[0] == 9 and _fits()


def _fits() -> bool:
    """Whether the package takes the cuDNN that torch brought: one built for a later cuDNN fails on it."""
    try:
        _derivative((1, 1, 128, 64), ((8192, 8192, 64, 1),) * 5)
    except Exception:  # noqa: BLE001 - the package's own errors have no common name
        return False
    return True


def takes(plan: Plan, inputs: Inputs, width: int, *, drops: bool = False) -> bool:
    """Whether attention is cuDNN's: it is not told of documents, and has no derivative for all sizes.

    Args:
        width: Of a head, K.
        drops: With dropout of the weights, whose mask is read by whole tiles.
    """
    sizes = inputs.tokens.shape[1] % (64 if drops else 2) == 0 and width % 8 == 0 and width <= 128
    whole = inputs.segment_starts is None
    return plan.attention == "cudnn" and plan.dtype == torch.bfloat16 and whole and sizes


def attend_repeatably(
    q: BFloat16[Tensor, "B H T K"],
    k: BFloat16[Tensor, "B H T K"],
    v: BFloat16[Tensor, "B H T K"],
    write: Callable[[Int32[Tensor, "B H T half"]], None] | None = None,
    rate: float = 0.0,
) -> tuple[BFloat16[Tensor, "M D"], Callable[[BFloat16[Tensor, "M D"]], QKV]]:
    """Causal attention, and the function that takes its result's gradient to those of q, k and v.

    Args:
        write: Writes the dropout mask of the weights, see ``spread_weights``, forward and again back, into
            one square that all layers use: it is larger than all that a block keeps. ``None``: no dropout.
    """
    if write is None:
        out, log_sums, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, True, False
        )
    else:
        out, log_sums = torch.empty_like(q), q.new_empty((*q.shape[:3], 1), dtype=torch.float32)
        _run(_forward(*_layout(q, k, v)), q, k, v, _written(q, write), _factor(q.device, rate), out, log_sums)

    def pull_back(d_out: Tensor) -> QKV:
        d_heads = d_out.unflatten(0, q.shape[::2]).unflatten(-1, q.shape[1::2]).transpose(1, 2)
        given, drops = [q, k, v, out, d_heads], list[Tensor]()
        if write is not None:
            # the inverse factor, with which its documentation scales the sum of d_out out, is not read
            given[3] = out * (1.0 - rate)
            drops = [_written(q, write), _factor(q.device, rate), _factor(q.device, 0.0)]
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        _run(_derivative(*_layout(*given), drops=bool(drops)), *given, log_sums, *drops, *grads)
        return grads

    return out.transpose(1, 2).flatten(2).flatten(0, 1), pull_back


def _run(planned: tuple[Any, Any], *tensors: Tensor) -> None:
    graph, handle = planned
    device = tensors[0].device
    space = torch.empty(graph.get_workspace_size(), dtype=torch.uint8, device=device)
    _cudnn().set_stream(handle, torch.cuda.current_stream(device).cuda_stream)
    graph.execute(dict(enumerate(tensors)), space, handle)


def _layout(*given: Tensor) -> tuple[Shape, tuple[Shape, ...]]:
    return tuple(given[0].shape), tuple(each.stride() for each in given)


def _written(q: Tensor, write: Callable[[Tensor], None]) -> BFloat16[Tensor, "B H T T"]:
    square = _square(q.device, *q.shape[:3])
    write(square.view(torch.int32))
    return square


@cache
def _square(device: torch.device, rows: int, heads: int, context: int) -> BFloat16[Tensor, "B H T T"]:
    """Where the masks of each layer are written in turn; zeros where no tile looks."""
    return torch.zeros(rows, heads, context, context, dtype=torch.bfloat16, device=device)


@cache
def _factor(device: torch.device, rate: float) -> Float32[Tensor, "1 1 1 1"]:
    return torch.full((1, 1, 1, 1), 1.0 / (1.0 - rate), device=device)


@cache
def _forward(shape: Shape, strides: tuple[Shape, ...]) -> tuple[Any, Any]:
    """A plan of attention with dropout for tensors laid out so, and its handle."""
    graph, handle, given = _begin(shape, strides)
    drops = _dropout(graph, shape, len(given), 1)
    out, log_sums = graph.sdpa(*given, is_inference=False, dropout=drops, **_causal(shape))
    uid = len(given) + len(drops)
    out.set_output(True).set_dim(shape).set_stride(strides[0]).set_uid(uid)
    dim, stride, kind = _sums(shape)
    log_sums.set_output(True).set_dim(dim).set_stride(stride).set_data_type(kind).set_uid(uid + 1)
    return _built(graph), handle


@cache
def _derivative(shape: Shape, strides: tuple[Shape, ...], *, drops: bool = False) -> tuple[Any, Any]:
    """A plan of its derivative for tensors laid out so, and its handle."""
    graph, handle, given = _begin(shape, strides)
    dim, stride, kind = _sums(shape)
    given.append(graph.tensor(dim=dim, stride=stride, data_type=kind, uid=len(given)))
    dropped = _dropout(graph, shape, len(given), 2) if drops else ()
    grads = graph.sdpa_backward(
        *given, dropout=dropped or None, use_deterministic_algorithm=True, **_causal(shape)
    )
    for uid, (grad, stride) in enumerate(zip(grads, strides, strict=False), len(given) + len(dropped)):
        grad.set_output(True).set_dim(shape).set_stride(stride).set_uid(uid)
    return _built(graph), handle


def _begin(shape: Shape, strides: tuple[Shape, ...]) -> tuple[Any, Any, list[Any]]:
    """An empty plan, its handle, and the heads that go in; tensors go by their place among ``_run``'s."""
    cudnn = _cudnn()
    handle = cudnn.create_handle()
    graph = cudnn.pygraph(
        io_data_type=cudnn.data_type.BFLOAT16,
        intermediate_data_type=cudnn.data_type.FLOAT,
        compute_data_type=cudnn.data_type.FLOAT,
        handle=handle,
    )
    given = [graph.tensor(dim=shape, stride=stride, uid=uid) for uid, stride in enumerate(strides)]
    return graph, handle, given


def _dropout(graph: Any, shape: Shape, first: int, factors: int) -> tuple[Any, ...]:
    """A mask of the weights, and what cuDNN multiplies by beside it."""
    rows, heads, context, _ = shape
    square = context * context
    mask = graph.tensor(
        dim=(rows, heads, context, context), stride=(heads * square, square, context, 1), uid=first
    )
    kind, ones = _cudnn().data_type.FLOAT, (1, 1, 1, 1)
    places = range(first + 1, first + 1 + factors)
    return mask, *(graph.tensor(dim=ones, stride=ones, data_type=kind, uid=uid) for uid in places)


def _causal(shape: Shape) -> dict[str, Any]:
    return {"attn_scale": 1 / math.sqrt(shape[-1]), "use_causal_mask": True}


def _sums(shape: Shape) -> tuple[Shape, Shape, Any]:
    """Shape, strides and type of the log-sum-exps."""
    rows, heads, context, _ = shape
    return (rows, heads, context, 1), (heads * context, context, 1, 1), _cudnn().data_type.FLOAT


def _built(graph: Any) -> Any:
    modes = _cudnn().heur_mode
    graph.build([modes.A, modes.FALLBACK])
    return graph


def _cudnn() -> Any:
    """NVIDIA's package, imported when it is first used."""
    import cudnn

    return cudnn
