"""Hugging Face's GPT-2 as it comes, under the same training loop.

Shapes: B rows, n new tokens, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gpt_data.batch import IGNORE
from gpt_trainer import torch_device as devices
from gpt_trainer.backend import OptimizerConfig, Runtime
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import Parameters
from gpt_trainer.registry import BackendSpec
from jaxtyping import Float, Int64
from torch import Tensor, nn

from gpt_compare.baseline import Baseline, Compile

NAME = "transformers"


@dataclass(frozen=True)
class Options:
    """Flags that only this one has.

    Attributes:
        compile: Compile the model with ``torch.compile``, which the library leaves to its user;
            ``"auto"``: on a GPU.
    """

    compile: Compile = "off"


class HuggingFace(nn.Module):
    """``GPT2LMHeadModel`` with SDPA and its own GELU, and the loss that it would take of its logits."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        sizes = GPT2Config(
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.d_model,
            n_positions=config.context,
            vocab_size=config.vocab_size,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        sizes._attn_implementation = "sdpa"
        self.lm: Any = GPT2LMHeadModel(sizes)

    def forward(
        self, tokens: Int64[Tensor, "B T"], targets: Int64[Tensor, "B T"], reduction: str = "sum"
    ) -> Float[Tensor, "..."]:
        """Negative log-likelihoods of the targets in nats: their sum, or [B*T] without ``reduction``."""
        logits = self.lm(input_ids=tokens, use_cache=False).logits.float().flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, reduction=reduction)

    def named(self) -> dict[str, Tensor]:
        """Its parameters by canonical name, which is the library's own."""
        return dict(self.lm.named_parameters())

    @torch.no_grad()
    def take_over(self, parameters: Parameters) -> None:
        """Copy canonical parameters."""
        for name, own in self.named().items():
            own.copy_(torch.tensor(parameters[name]))

    def canonical(self, name: str, value: Float[Tensor, "..."]) -> Float[np.ndarray, "..."]:
        """A parameter, or what has its shape: its layout is the canonical one."""
        del name
        return np.ascontiguousarray(value.detach().float().cpu().numpy())

    def feeder(self) -> Callable[[Int64[Tensor, "B n"]], Float[Tensor, "B V"]]:
        """Keys and values are kept in the library's cache."""
        from transformers import DynamicCache

        cache = DynamicCache()

        def feed(tokens: Int64[Tensor, "B n"]) -> Float[Tensor, "B V"]:
            # by its place: the argument's name changes from version to version
            found = self.lm(tokens, cache, use_cache=True, logits_to_keep=1)
            return found.logits[:, -1]  # type: ignore[no-any-return]

        return feed


def create(config: ModelConfig, optimizer: OptimizerConfig, runtime: Runtime, options: Options) -> Baseline:
    """The library's model.

    Raises:
        ValueError: If the library is not installed, or as ``Baseline``.
    """
    try:
        import transformers
    except ImportError:
        raise ValueError("transformers is not installed: it is an extra, gpt-compare[transformers]") from None
    more = {"transformers": transformers.__version__}
    return Baseline(NAME, HuggingFace(config), config, optimizer, runtime, options.compile, more)


SPEC = BackendSpec(name=NAME, options=Options, create=create, has_gpu=devices.has_gpu)  # type: ignore[arg-type]
