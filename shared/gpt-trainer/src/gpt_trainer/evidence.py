"""What is kept of a step whose loss or gradient was not finite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gpt_trainer.errors import NonFiniteError
from gpt_trainer.run.task import Batch, Numbers


def refuse_non_finite(
    run: Path | None, step: int, batch: Batch, metrics: Numbers, parameters: Mapping[str, np.ndarray]
) -> NonFiniteError:
    """Write the batch and the norm of each weight into the run's folder; the error that ends the run.

    Args:
        run: The folder; None to write nothing.
    """
    head = f"step {step + 1}: loss {metrics.loss}, gradient norm {metrics.grad_norm}; the weights are kept"
    advice = "what was saved is as it was: resume it, or start anew with a lower --lr"
    if run is None:
        return NonFiniteError(f"{head}; {advice}")
    path = run / f"non-finite-step-{step + 1:08d}.npz"
    weights = {name: np.linalg.norm(value) for name, value in parameters.items()}
    arrays = {name: value for name, value in batch._asdict().items() if value is not None}
    arrays |= {"names": np.array(list(weights)), "norms": np.array(list(weights.values()))}
    try:
        np.savez(path, **arrays, step=step, loss=metrics.loss, grad_norm=metrics.grad_norm)
        written = f"its batch is in {path}"
    except OSError as error:
        written = f"its batch could not be written ({error.strerror or error})"
    return NonFiniteError(f"{head}; {written}; {advice}")
