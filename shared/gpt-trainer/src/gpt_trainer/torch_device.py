"""What the backends that have torch ask of a device: which it is, what it holds, the way to it and back."""

from __future__ import annotations

import torch
from jaxtyping import Float32
from torch import Tensor

from gpt_trainer.backend import StepMetrics
from gpt_trainer.machine import cpu_name, peak_process_bytes


def has_gpu() -> bool:
    """Whether torch can use a CUDA device here."""
    return torch.cuda.is_available()


def choose_device(name: str) -> torch.device:
    """The device for ``Runtime.device``; ``"auto"`` takes a GPU if there is one.

    Raises:
        ValueError: If the name is unknown, or a GPU is asked for and there is none.
    """
    if name not in ("auto", "cpu", "gpu"):
        raise ValueError(f"device={name!r} is not one of auto, cpu, gpu")
    if name == "gpu" and not has_gpu():
        raise ValueError("device='gpu', but torch finds no CUDA device; use device='cpu'")
    on_gpu = name != "cpu" and has_gpu()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def device_name(device: torch.device) -> str:
    """The device as its vendor names it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def peak_memory_bytes(device: torch.device) -> int:
    """Highest memory allocated on a GPU since the start; the process's peak on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_process_bytes()


def synchronize(device: torch.device) -> None:
    """Wait until all launched work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small host tensor on its way to the device, without waiting for the work before it.

    The pinned copy may be dropped at once: torch's host allocator uses it again only after it was read.
    """
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class PendingMetrics:
    """Loss, norm and whether the weights moved, on their way to the host."""

    def __init__(self, values: Float32[Tensor, " 3"]) -> None:
        # a copy into pinned memory does not hold the host up
        self._values = torch.empty(3, pin_memory=values.is_cuda).copy_(values, non_blocking=True)
        self._arrived = None
        if values.is_cuda:
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def fetch(self) -> StepMetrics:
        """Wait for the step, not for those after it, and return its metrics."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, grad_norm, updated = self._values.tolist()
        return StepMetrics(loss, grad_norm, bool(updated))
