"""Causal attention by cuDNN whose derivative has the same bits every time.

torch's fused attention runs cuDNN's kernels too, but does not ask for the deterministic one of the backward
pass: where bits must not change it falls back on FlashAttention-2, which takes half as long again. NVIDIA's
own Python package, ``nvidia-cudnn-frontend``, can ask.

Shapes: B rows, T positions, H heads, K head width, M tokens of all rows (B T).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import BFloat16, Float32
from torch import Tensor

QKV = tuple[BFloat16[Tensor, "B H T K"], BFloat16[Tensor, "B H T K"], BFloat16[Tensor, "B H T K"]]


def has_repeatable(device: torch.device) -> bool:
    """Whether cuDNN can be asked on this device: with the package, on Hopper, where it was seen to hold."""
    if importlib.util.find_spec("cudnn") is None or device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device)[0] == 9 and _fits()


def _fits() -> bool:
    """Whether the package takes the cuDNN that torch brought: one built for a later cuDNN fails on it."""
    try:
        _graph((1, 1, 128, 64), ((8192, 8192, 64, 1),) * 5)
    except Exception:  # noqa: BLE001 - the package's own errors have no common name
        return False
    return True


def takes_heads(q: Tensor) -> bool:
    """Whether cuDNN has a derivative for heads of this type and these sizes."""
    return q.dtype == torch.bfloat16 and q.shape[2] % 2 == 0 and q.shape[3] % 8 == 0 and q.shape[3] <= 128


def attend_repeatably(
    q: BFloat16[Tensor, "B H T K"], k: BFloat16[Tensor, "B H T K"], v: BFloat16[Tensor, "B H T K"]
) -> tuple[BFloat16[Tensor, "M D"], Callable[[BFloat16[Tensor, "M D"]], QKV]]:
    """Causal attention, and the function that takes its result's gradient to those of q, k and v."""
    out, log_sums, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, True, 0.0, True, False
    )

    def pull_back(d_out: Tensor) -> QKV:
        d_heads = d_out.unflatten(0, q.shape[::2]).unflatten(-1, q.shape[1::2]).transpose(1, 2)
        return _derivative(q, k, v, out, d_heads, log_sums)

    return out.transpose(1, 2).flatten(2).flatten(0, 1), pull_back


def _derivative(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, d_out: Tensor, log_sums: Float32[Tensor, "B H T *one"]
) -> QKV:
    given = q, k, v, out, d_out
    graph, handle = _graph(tuple(q.shape), tuple(each.stride() for each in given))
    grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    space = torch.empty(graph.get_workspace_size(), dtype=torch.uint8, device=q.device)
    _cudnn().set_stream(handle, torch.cuda.current_stream(q.device).cuda_stream)
    graph.execute(dict(enumerate((*given, log_sums, *grads))), space, handle)
    return grads


@cache
def _graph(shape: tuple[int, ...], strides: tuple[tuple[int, ...], ...]) -> Any:
    """A plan for tensors laid out so, and its handle; tensors go by their place among the arguments."""
    cudnn = _cudnn()
    rows, heads, context, width = shape
    handle = cudnn.create_handle()
    graph = cudnn.pygraph(
        io_data_type=cudnn.data_type.BFLOAT16,
        intermediate_data_type=cudnn.data_type.FLOAT,
        compute_data_type=cudnn.data_type.FLOAT,
        handle=handle,
    )
    given = [graph.tensor(dim=shape, stride=stride, uid=uid) for uid, stride in enumerate(strides)]
    sums = (rows, heads, context, 1), (heads * context, context, 1, 1)
    log_sums = graph.tensor(dim=sums[0], stride=sums[1], data_type=cudnn.data_type.FLOAT, uid=len(given))
    grads = graph.sdpa_backward(
        *given,
        log_sums,
        attn_scale=1 / math.sqrt(width),
        use_causal_mask=True,
        use_deterministic_algorithm=True,
    )
    for uid, (grad, stride) in enumerate(zip(grads, strides, strict=False), len(given) + 1):
        grad.set_output(True).set_dim(shape).set_stride(stride).set_uid(uid)
    graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    return graph, handle


def _cudnn() -> Any:
    """NVIDIA's package, imported when it is first used."""
    import cudnn

    return cudnn
