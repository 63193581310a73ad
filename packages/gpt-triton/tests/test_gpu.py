"""On a GPU: the compiled kernels under the whole model, recorded and not, against the reference ops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from gpt_data.batch import Batch
from gpt_trainer.backend import OptimizerConfig, Runtime
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import Parameters, init_parameters
from gpt_triton.backend import TritonBackend
from gpt_triton.options import Options
from gpt_triton_plain import PlainModel

Check = Callable[..., None]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
GPU = Runtime(device="gpu", seed=5)


def make(config: ModelConfig, weights: Parameters, options: Options, runtime: Runtime = GPU) -> TritonBackend:
    backend = TritonBackend(config, OptimizerConfig(), runtime, options)
    backend.load(weights)
    return backend


def run(backend: TritonBackend, batch: Batch, steps: int = 3) -> list[bytes]:
    parts = [batch.rows(0, 2), batch.rows(2, 4)]
    pending = [backend.train_step(parts, 1e-3, step) for step in range(steps)]
    metrics = np.array([p.fetch()[:2] for p in pending])
    assert np.isfinite(metrics).all()
    arrays = [*backend.export().values(), *backend.export_optimizer_state()["second"].values()]
    return [metrics.tobytes(), *(a.tobytes() for a in arrays)]


@pytest.mark.parametrize("rate", [0.0, 0.2])
@pytest.mark.parametrize("kernels", ["triton", "reference"])
@pytest.mark.parametrize("boundaries", [False, True])
def test_float32_gradients_keep_the_rule(
    rate: float,
    kernels: str,
    boundaries: bool,
    config: ModelConfig,
    weights: Parameters,
    batch: Batch,
    packed: Batch,
    assert_close: Check,
) -> None:
    config = replace(config, dropout=rate)
    rows = packed if boundaries else batch
    loss, gradients = make(config, weights, Options(kernels)).gradients([rows], 4)
    model = PlainModel(config, rows, (5, 4, 0))
    wide = {name: torch.from_numpy(value).double() for name, value in weights.items()}
    want, want_loss = torch.func.grad_and_value(model.loss)(wide)
    assert_close("loss", loss, float(want_loss), "float32")
    for name, value in gradients.items():
        assert_close(name, value, want[name], "float32")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernels", ["triton", "reference"])
def test_a_recorded_step_equals_a_launched_one_to_the_bit(
    precision: str, kernels: str, config: ModelConfig, weights: Parameters, packed: Batch
) -> None:
    config, runtime = replace(config, dropout=0.1), replace(GPU, precision=precision)
    recorded, again, launched = (
        run(make(config, weights, Options(kernels, cuda_graph), runtime), packed)
        for cuda_graph in (True, True, False)
    )
    assert recorded == again
    assert recorded == launched


def test_recording_changes_no_weight_and_no_moment(
    config: ModelConfig, weights: Parameters, batch: Batch
) -> None:
    backend = make(config, weights, Options())
    backend.gradients([batch], 0)
    assert not backend.train_step([batch], 1e-3, 0, skip_above=0.0).fetch().updated
    for name, value in backend.export().items():
        assert value.tobytes() == weights[name].tobytes(), name
    assert not any(value.any() for value in backend.export_optimizer_state()["second"].values())


def test_bfloat16_gradients_err_at_most_twice_as_much_as_plain_torch() -> None:
    config = ModelConfig(n_layer=2, n_head=3, d_model=192, context=200, vocab_size=1009)
    weights = init_parameters(config, 0)
    tokens = np.random.default_rng(0).integers(0, 1009, (4, 201), dtype=np.int32)
    batch = Batch(tokens[:, :-1].copy(), tokens[:, 1:].copy())
    _, ours = make(config, weights, Options(), replace(GPU, precision="bfloat16")).gradients([batch], 0)
    model = PlainModel(config, batch)
    want, theirs = (
        torch.func.grad(model.loss)({name: torch.from_numpy(v).to(dtype) for name, v in weights.items()})
        for dtype in (torch.float64, torch.bfloat16)
    )
    for name, value in ours.items():
        off = (torch.from_numpy(value).double() - want[name]).norm()
        theirs_off = (theirs[name].double() - want[name]).norm()
        assert off <= 2.0 * theirs_off, f"{name}: {off:.2e} against {theirs_off:.2e}"


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_sums_to_which_programs_add_in_turn_repeat_to_the_bit(rate: float) -> None:
    from gpt_triton.dropout import Dropout
    from gpt_triton.kernels import attention_bwd, attention_fwd

    stream = torch.Generator("cuda").manual_seed(3)
    qkv, d_out = (
        torch.randn(8, 2048, width, generator=stream, device="cuda").bfloat16() for width in (2304, 768)
    )
    site = Dropout(rate, torch.tensor([1, 2, 0], device="cuda"), 2048) if rate else None
    _, res = attention_fwd(qkv, 12, None, site)
    want = attention_bwd(res, d_out, 12, site)
    for _ in range(20):
        assert torch.equal(attention_bwd(res, d_out, 12, site), want)


def test_more_logits_than_31_bits_count() -> None:
    from gpt_triton.kernels import linear_cross_entropy

    # 43,000 rows of 50,304 columns are 2.16e9 logits in one chunk
    rows, width, vocab = 43_000, 512, 50_257
    stream = torch.Generator("cuda").manual_seed(3)
    x = torch.randn(rows, width, generator=stream, device="cuda").bfloat16()
    wte = torch.randn(50_304, width, generator=stream, device="cuda").mul_(0.05).bfloat16()
    wte[vocab:] = 0
    targets = torch.randint(0, vocab, (rows,), generator=stream, device="cuda", dtype=torch.int32)
    scale, d_wte = torch.tensor(1.0 / rows, device="cuda"), torch.zeros(50_304, width, device="cuda")
    whole, parts = (
        linear_cross_entropy(x, wte, targets, vocab, scale, d_wte, chunk) for chunk in (rows, 8192)
    )
    for ours, want in zip(whole, parts, strict=True):
        assert torch.equal(ours, want)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_decoder_follows_the_whole_forward(
    precision: str, config: ModelConfig, weights: Parameters, batch: Batch
) -> None:
    backend = make(config, weights, Options(), replace(GPU, precision=precision))
    logits = backend.logits(batch)
    # bfloat16 rounds each activation to 2^-9: another order of a sum may move a value by one such step
    limit = 1e-5 if precision == "float32" else 2e-2
    # the second begins when the first has gone, and what it recorded with it
    for decoder in (backend.decoder(4) for _ in range(2)):
        for begin, end in ((0, 5), (5, 6), (6, 7), (7, 8), (8, 13)):
            got = decoder.feed(batch.tokens[:, begin:end])
            error = np.linalg.norm(got - logits[:, end - 1]) / np.linalg.norm(got)
            assert error <= limit, f"after {end}: {error:.1e}"


def test_says_what_it_uses(config: ModelConfig, weights: Parameters, batch: Batch) -> None:
    backend = make(config, weights, Options())
    backend.train_step([batch], 1e-3, 0)
    backend.synchronize()
    assert backend.choices()["kernels"] == "triton"
    assert backend.choices()["cuda_graph"] == "on"
    assert backend.peak_memory_bytes() > 0
    assert backend.device_name() == torch.cuda.get_device_name()
