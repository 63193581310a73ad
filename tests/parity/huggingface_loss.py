"""Validation loss of a run's newest step as Hugging Face's own GPT-2 computes it, in float32.

    python huggingface_loss.py RUN

Reads the same validation rows as ``gpt-*-train --eval-only --resume RUN`` and prints the mean in nats.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from gpt_data.batch import IGNORE
from gpt_data.cache import cached_dataset
from gpt_data.loader import BatchLoader
from gpt_trainer.checkpoint import find_steps
from gpt_trainer.gpt2.spec import gpt2_spec
from gpt_trainer.registry import find_backend
from gpt_trainer.run.folder import stored_record
from gpt_trainer.run.record import read_record
from transformers import GPT2LMHeadModel

ROWS = 8


@torch.no_grad()
def main() -> None:
    """Print the loss."""
    run = Path(sys.argv[1])
    step, folder = find_steps(run)[-1]
    record = stored_record(run)
    assert record is not None, f"{run} holds no run"
    config = read_record(record, gpt2_spec(find_backend("gpt-torchfunc")), str(run)).config
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GPT2LMHeadModel.from_pretrained(folder).to(device).eval()
    data = config.data
    cache = data.data_cache or Path.home() / ".cache" / "gpt-data"
    dataset = cached_dataset(data.data, data.tokenizer, cache_dir=cache)
    loader = BatchLoader(dataset.val, rows=ROWS, context=config.model.context, seed=config.runtime.seed)
    total, count = 0.0, 0
    for batch in loader.sequential(config.reports.eval_rows):
        tokens, targets = (
            torch.from_numpy(v.astype(np.int64)).to(device) for v in (batch.tokens, batch.targets)
        )
        logits = model(tokens).logits.flatten(0, 1)
        total += torch.nn.functional.cross_entropy(
            logits.double(), targets.flatten(), ignore_index=IGNORE, reduction="sum"
        ).item()
        count += batch.target_count
    print(f"step {step}: transformers' loss {total / count:.6f} over {count} targets")


if __name__ == "__main__":
    main()
