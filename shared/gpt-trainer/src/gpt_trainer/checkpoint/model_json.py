"""``config.json`` as Hugging Face's GPT-2 writes it, to and from ``ModelConfig``.

What the file may say beyond the sizes is checked, not ignored: a setting that would make another
function of the same weights is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt_data.errors import naming, shown

from gpt_trainer.checkpoint.manifest import ForeignError
from gpt_trainer.errors import InputError
from gpt_trainer.model_config import ModelConfig

LAYER_NORM_EPSILON = 1e-5
SIZE_LIMIT = 1 << 24
LAYER_LIMIT = 512
SIZES = {
    "n_layer": ("n_layer", 12),
    "n_head": ("n_head", 12),
    "d_model": ("n_embd", 768),
    "context": ("n_positions", 1024),
    "vocab_size": ("vocab_size", 50257),
}
"""Field of ``ModelConfig`` -> key in the file, and the value that an absent key stands for."""
DROPOUT_KEYS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
DEFAULT_RATE = 0.1
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate")
"""Names in ``transformers`` of the one function; the first is what GPT-2's own files say."""
FIXED = {
    "activation_function": TANH_GELU[0],
    "layer_norm_epsilon": LAYER_NORM_EPSILON,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "pruned_heads": {},
    "is_encoder_decoder": False,
}
"""Settings that fix the function; an absent key stands for the value here."""
SYNONYMS = {"activation_function": TANH_GELU, "pruned_heads": (None,)}
"""Other values that mean the same."""
ARCHITECTURES = {"GPT2LMHeadModel", "GPT2Model"}


def model_to_json(config: ModelConfig, end_of_text: int | None) -> bytes:
    """The content of ``config.json``."""
    values: dict[str, Any] = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{key: getattr(config, field) for field, (key, _) in SIZES.items()},
        "n_ctx": config.context,
        "n_inner": None,
        **dict.fromkeys(DROPOUT_KEYS, config.dropout),
        **FIXED,
        "reorder_and_upcast_attn": False,
        "initializer_range": 0.02,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": "float32",
        "use_cache": True,
    }
    del values["pruned_heads"], values["is_encoder_decoder"]
    return json.dumps(values, indent=2).encode() + b"\n"


def model_from_json(values: Mapping[str, Any], path: Path) -> ModelConfig:
    """The sizes in a ``config.json``; a rate of dropout only if all three are the same.

    Raises:
        ForeignError: If the file describes another kind of model.
        InputError: If it describes a GPT-2 that this one is not; every difference is named.
    """
    if values.get("model_type") != "gpt2":
        kind = shown(values.get("model_type"))
        raise ForeignError(f"{path}: model_type is {kind}, only 'gpt2' can be loaded")
    wrong = _differences(values)
    if wrong:
        raise InputError(f"{path} describes another model: {'; '.join(wrong)}")
    sizes = {field: values.get(key, default) for field, (key, default) in SIZES.items()}
    rates = {float(values.get(key, DEFAULT_RATE)) for key in DROPOUT_KEYS}
    with naming(path):
        return ModelConfig(**sizes, dropout=rates.pop() if len(rates) == 1 else 0.0)


def _differences(values: Mapping[str, Any]) -> list[str]:
    wrong = [
        f"{key} is {shown(values[key])}, expected {want!r}"
        for key, want in FIXED.items()
        if key in values and values[key] != want and values[key] not in SYNONYMS.get(key, ())
    ]
    names = values.get("architectures")
    if names is not None and names not in ([name] for name in ARCHITECTURES):
        wrong.append(f"architectures is {shown(names)}, expected one of {', '.join(sorted(ARCHITECTURES))}")
    wrong += _size_differences(values)
    for key in DROPOUT_KEYS:
        rate = values.get(key, DEFAULT_RATE)
        if type(rate) not in (int, float) or not 0.0 <= rate < 1.0:
            wrong.append(f"{key} is {shown(rate)}, expected a rate from 0, below 1")
    return wrong


def _size_differences(values: Mapping[str, Any]) -> list[str]:
    wrong = []
    for key, default in SIZES.values():
        value = values.get(key, default)
        limit = LAYER_LIMIT if key == "n_layer" else SIZE_LIMIT
        if type(value) is not int or not 1 <= value <= limit:
            wrong.append(f"{key} is {shown(value)}, expected 1 to {limit}")
    for key, twin, factor in (("n_ctx", "n_positions", 1), ("n_inner", "n_embd", 4)):
        width = values.get(twin, dict(SIZES.values())[twin])
        want = width * factor if type(width) is int else None
        if values.get(key) is not None and values[key] != want:
            wrong.append(f"{key} is {shown(values[key])}, expected {want}")
    return wrong
