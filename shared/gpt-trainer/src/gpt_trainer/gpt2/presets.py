"""Whole configurations by name."""

from __future__ import annotations

from gpt_trainer.gpt2.settings import (
    BatchSection,
    DataSection,
    GPTReportSection,
    OptimizerSection,
    ScheduleSection,
    TrainConfig,
)
from gpt_trainer.model_config import MODEL_PRESETS, ModelSizes

CPU_PRESET, GPU_PRESET = "cpu-demo", "gpt2-124m"

# two minutes on two cores; many small steps, as at this size each update counts for more than its tokens
CPU_DEMO = TrainConfig(
    model=ModelSizes(n_layer=4, n_head=4, d_model=128, context=128),
    data=DataSection(tokenizer="bpe-scratch:2048"),
    batch=BatchSection(tokens_per_step=2048, micro_batch=16),
    optimizer=OptimizerSection(lr=3e-3),
    schedule=ScheduleSection(steps=600, warmup=40),
    reports=GPTReportSection(
        eval_every=100,
        eval_rows=64,
        save_every=100,
        keep_last=2,
        sample_every=200,
        sample_tokens=160,
    ),
)


def _gpt2(name: str, *, lr: float, micro_batch: int, steps: int) -> TrainConfig:
    """A published size with the settings of GPT-3's table 2.1 for it (Brown et al. 2020)."""
    sizes = MODEL_PRESETS[name]
    return TrainConfig(
        model=ModelSizes(sizes.n_layer, sizes.n_head, sizes.d_model, sizes.context),
        batch=BatchSection(tokens_per_step=524_288, micro_batch=micro_batch),
        optimizer=OptimizerSection(lr=lr),
        schedule=ScheduleSection(steps=steps, warmup=700),
    )


PRESETS = {
    CPU_PRESET: CPU_DEMO,
    # 10 billion tokens
    "gpt2-124m": _gpt2("gpt2-124m", lr=6e-4, micro_batch=32, steps=19_073),
    # 30 billion tokens from here on: about what each size makes good use of in this recipe
    "gpt2-350m": _gpt2("gpt2-350m", lr=3e-4, micro_batch=16, steps=57_220),
    "gpt2-774m": _gpt2("gpt2-774m", lr=2.5e-4, micro_batch=8, steps=57_220),
    "gpt2-1.5b": _gpt2("gpt2-1.5b", lr=2e-4, micro_batch=4, steps=57_220),
}
