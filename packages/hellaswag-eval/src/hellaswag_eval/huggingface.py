"""Any causal language model of ``transformers`` in a local folder; needs the extra ``hellaswag-eval[hf]``.

Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from gpt_data.errors import InputError, first_line
from gpt_trainer.backend import Precision

from hellaswag_eval.evaluation import evaluate
from hellaswag_eval.models import Device, Model
from hellaswag_eval.protocols import Example, Ids, Protocol
from hellaswag_eval.results import Evaluation
from hellaswag_eval.scoring import LogProbFn, Plan

LOGITS_IN_FLIGHT = {"gpu": 2**30, "cpu": 2**26}
NO_LIMIT = 2**20
"""Context of a model whose configuration names none."""


def open_huggingface(folder: Path, device: Device, precision: Precision | None) -> Model:
    """Load a model and its tokenizer; no code of the folder's is run, and no network is used.

    Args:
        precision: Of weights and products; bfloat16 on a GPU and float32 on a CPU if None.

    Raises:
        InputError: If the extra is missing, the folder cannot be read, or the device is not there.
    """
    if not folder.is_dir():
        raise InputError(f"--model hf:{folder}: there is no such folder")
    try:
        torch, transformers = (import_module(name) for name in ("torch", "transformers"))
    except ImportError:
        raise InputError("--model hf:... needs the extra hellaswag-eval[hf]") from None
    if device == "gpu" and not torch.cuda.is_available():
        raise InputError("--device gpu: torch finds none")
    place = "cpu" if device == "cpu" or not torch.cuda.is_available() else "gpu"
    chosen = precision or ("bfloat16" if place == "gpu" else "float32")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=getattr(torch, chosen)
        )
    # the library raises whatever the file's reader does
    except Exception as error:
        raise InputError(f"--model hf:{folder}: {first_line(error)}") from error
    model.to("cuda" if place == "gpu" else "cpu").eval()
    return _as_model(folder, torch, tokenizer, model, place, chosen)


def _as_model(folder: Path, torch: Any, tokenizer: Any, model: Any, place: str, precision: str) -> Model:
    context = getattr(model.config, "max_position_embeddings", None) or NO_LIMIT
    log_prob_fn = token_log_probs(torch, model, LOGITS_IN_FLIGHT[place])

    def encode(texts: Sequence[str]) -> list[Ids]:
        found = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [np.array(ids, np.int32) for ids in found]

    def run(examples: Sequence[Example], protocol: Protocol, plan: Plan) -> Evaluation:
        return evaluate(log_prob_fn, examples, context=context, protocol=protocol, plan=plan)

    name = torch.cuda.get_device_name() if place == "gpu" else "cpu"
    description = {
        "model": f"hf:{folder}",
        "backend": "transformers",
        "device": name,
        "precision": precision,
    }
    return Model(encode, run, place, description)


def token_log_probs(torch: Any, model: Any, logits_in_flight: int) -> LogProbFn:
    """A model's log-probabilities of the tokens that it is given, in float32 softmax."""

    def log_prob_fn(tokens: np.ndarray) -> np.ndarray:
        per_row = max(1, (tokens.shape[1] - 1) * model.config.vocab_size)
        height = max(1, logits_in_flight // per_row)
        parts = [part(tokens[at : at + height]) for at in range(0, len(tokens), height)]
        return np.concatenate(parts)

    def part(tokens: np.ndarray) -> np.ndarray:
        ids = torch.from_numpy(tokens).long().to(model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
            values = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        return np.pad(values.cpu().numpy(), ((0, 0), (1, 0)))

    return log_prob_fn
