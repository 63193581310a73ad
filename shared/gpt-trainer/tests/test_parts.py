"""Generation, spike guard, metrics file, display, FLOPs and plot, each by itself."""

from __future__ import annotations

import itertools
import math
import re
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpt_data.batch import IGNORE, Batch
from gpt_trainer.backend import OptimizerConfig, Runtime
from gpt_trainer.evaluate.validation import Evaluation
from gpt_trainer.flops import flops_per_token, peak_flops
from gpt_trainer.micro_batches import target_weight
from gpt_trainer.model_config import MODEL_PRESETS, ModelConfig
from gpt_trainer.parameters import init_parameters
from gpt_trainer.report.display import Ahead, LiveDisplay, PlainDisplay, describe, duration, sparkline
from gpt_trainer.report.metrics import MetricsFile, read_metrics
from gpt_trainer.report.plot import draw_losses, smooth
from gpt_trainer.sample.drawing import SamplingConfig
from gpt_trainer.sample.generation import generate
from gpt_trainer.spikes import SpikeGuard
from gpt_trainer_toy import ToyBackend, ToyOptions

CONFIG = ModelConfig(n_layer=1, n_head=1, d_model=8, context=6, vocab_size=11)


@pytest.fixture
def backend() -> ToyBackend:
    toy = ToyBackend(CONFIG, OptimizerConfig(), Runtime(), ToyOptions())
    toy.load(init_parameters(CONFIG, 1))
    return toy


def test_the_toys_gradient_is_that_of_its_loss(backend: ToyBackend) -> None:
    """Central differences in float64: the toy must be a real model for the tests to mean anything."""
    backend.params = {name: value.astype(np.float64) for name, value in init_parameters(CONFIG, 1).items()}
    tokens = np.array([[1, 2, 3, 4, 5, 6]], np.int32)
    batch = [Batch(tokens, np.array([[2, 3, 4, 5, 6, -1]], np.int32))]
    _, grads = backend.gradients(batch, 0)
    for name in ("transformer.wte.weight", "transformer.h.0.mlp.c_fc.weight", "transformer.wpe.weight"):
        value = backend.params[name]
        before = value[2, 3]
        losses = []
        for shift in (1e-5, -1e-5):
            value[2, 3] = before + shift
            losses.append(backend.gradients(batch, 0)[0])
        value[2, 3] = before
        assert grads[name][2, 3] == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5)


# a run that diverged once filled a line with the digits of its perplexity
@pytest.mark.parametrize(
    ("loss", "perplexity"), [(0.0, "1.00"), (7.0, "1,096.63"), (203.2164, "1.80e+88"), (1000.0, "inf")]
)
def test_a_perplexity_of_any_size_can_be_read(loss: float, perplexity: str) -> None:
    assert str(Evaluation(loss, 1)) == f"validation loss {loss:.4f}, perplexity {perplexity}"


@pytest.mark.parametrize("length", [1, 5, 6, 7, 20])
def test_generation_restarts_from_half_a_context(
    backend: ToyBackend, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    fed: list[int] = []
    first: list[int] = []
    real = backend.decoder

    def decoder(rows: int) -> object:
        made = real(rows)
        fed.append(0)
        feed = made.feed

        def counted(tokens: np.ndarray) -> np.ndarray:
            first.extend([tokens.shape[1]] if fed[-1] == 0 else [])
            fed[-1] += tokens.shape[1]
            return feed(tokens)

        made.feed = counted  # type: ignore[method-assign]
        return made

    monkeypatch.setattr(backend, "decoder", decoder)
    prompt = np.arange(length, dtype=np.int32) % 11
    drawn = list(itertools.islice(generate(backend, prompt, 2, SamplingConfig()), 14))
    assert len(drawn) == 14
    assert all(row.shape == (2,) and row.min() >= 0 and row.max() < 11 for row in drawn)
    start = length if length <= 6 else 3
    assert first == [start, *[3] * (len(first) - 1)]
    # the first decoder is filled to the context, every later one begins with the last half of it
    whole, used = [6 - start + 1], 14
    assert fed[0] == 6 or used <= whole[0]
    assert all(count == 6 for count in fed[:-1])


def test_greedy_generation_is_the_argmax_of_the_logits(backend: ToyBackend) -> None:
    drawn = next(generate(backend, np.array([4, 7], np.int32), 1, SamplingConfig(temperature=0.0)))
    tokens = np.array([[4, 7]], np.int32)
    assert drawn[0] == backend.logits(Batch(tokens, tokens))[0, -1].argmax()


def test_an_empty_prompt_is_refused(backend: ToyBackend) -> None:
    with pytest.raises(ValueError, match="prompt has no tokens"):
        next(generate(backend, np.array([], np.int32), 1, SamplingConfig()))


def test_the_spike_bound_does_not_depend_on_when_norms_arrive() -> None:
    norms = [1.0 + 0.1 * (step % 7) for step in range(60)]
    early, late = SpikeGuard(3.0), SpikeGuard(3.0)
    for step, norm in enumerate(norms):
        want = early.bound(step)
        assert late.bound(step) == want
        early.observe(step, norm)
        # every seventh step all norms are read at once, as before a checkpoint; then the state is reloaded
        if step > 0 and (step - 1) % 7 != 6:
            late.observe(step - 1, norms[step - 1])
        if step % 7 == 6:
            late.observe(step, norm)
            late = SpikeGuard(3.0, late.state())


def test_spikes_pass_at_first_and_without_a_factor() -> None:
    guard = SpikeGuard(2.0)
    assert guard.bound(0) == math.inf
    for step in range(30):
        # of twenty norms that are known, the last of the step before the one before
        assert math.isfinite(guard.bound(step)) == (step > 20)
        guard.observe(step, 1.0)
    assert guard.bound(30) == pytest.approx(2.0)
    # a spike counts as the bound that it was held to, in a mean of the 31 norms so far
    guard.observe(30, 1e9)
    assert guard.bound(32) == pytest.approx(2.0 * (1.0 + 1.0 / 31.0))
    assert SpikeGuard(None, guard.state()).bound(30) == math.inf


def test_a_lasting_change_raises_the_bound() -> None:
    guard = SpikeGuard(2.0)
    for step in range(30):
        guard.observe(step, 1.0)
    for step in range(30, 230):
        guard.observe(step, 50.0)
    assert guard.bound(230) > 10.0


def test_metrics_are_cut_to_the_checkpoint(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path)
    for step in range(1, 6):
        file.write({"step": step, "loss": 1.0})
        if step % 2 == 0:
            file.write({"step": step, "val_loss": 2.0})
    file.close()
    MetricsFile(tmp_path, last_step=4, last_evaluated=2).close()
    found = [(line["step"], "val_loss" in line) for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert found == [(1, False), (2, False), (2, True), (3, False), (4, False)]


@pytest.mark.parametrize("tail", [b'{"step": 2', b'{"step": 2}', b"\x00\xff\n", b"[]\n", b"{}\n"])
def test_a_damaged_line_ends_the_file(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + tail)
    assert read_metrics(path) == [{"step": 1}]
    file = MetricsFile(tmp_path, last_step=9)
    file.write({"step": 2})
    file.close()
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_a_target_weighs_one_over_all_of_the_step_whoever_has_them() -> None:
    config, row = (
        ModelConfig(n_layer=1, n_head=1, d_model=8, context=4, vocab_size=9),
        np.array([[1, 2, 3, 4]], np.int32),
    )
    batch = Batch(row, np.where(row > 3, IGNORE, row))
    assert target_weight([batch, batch], config) == 1 / 6
    assert target_weight([batch, batch], config, targets=12) == 1 / 12


def test_flops_of_gpt2_by_hand() -> None:
    # 124,439,808 parameters, of which 1024 * 768 are positions; 12 * 12 layers * 768 * 1024 for attention
    want = 6 * (124_439_808 - 786_432) + 12 * 12 * 768 * 1024
    assert flops_per_token(MODEL_PRESETS["gpt2-124m"], 1024) == want


def test_device_peaks() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == pytest.approx(989.4e12)
    assert peak_flops("NVIDIA H100 PCIe", "bfloat16") == pytest.approx(756e12)
    assert peak_flops("NVIDIA H200", "float32") == pytest.approx(66.9e12)
    assert peak_flops("NVIDIA A100-SXM4-80GB", "bfloat16") == pytest.approx(311.8e12)
    # none of these is the product whose name its own begins with, ends with or holds
    others = ("L40", "RTX A1000", "GB200", "GeForce RTX 4090 Laptop GPU", "GeForce RTX 4090 D")
    for name in ("AMD EPYC", *(f"NVIDIA {other}" for other in others), "NVIDIA GeForce RTX 3090 Ti"):
        assert peak_flops(name, "bfloat16") is None, name


LINE = {"step": 4, "loss": 3.25, "lr": 1e-3, "grad_norm": 0.5, "tokens_per_second": 12_345.6}
LINE |= {"peak_memory_bytes": 2_000_000_000}


def test_a_report_in_one_line() -> None:
    assert describe(LINE, None) == "loss 3.2500  lr 1.00e-03  norm 0.50  12,346 tok/s  2.00 GB"
    assert "val 3.5000 at 2" in describe(LINE, (3.5, 2))
    assert "MFU 41.2%" in describe(LINE | {"mfu": 0.412}, None)
    assert duration(3725.4) == "1:02:05"


def test_plain_lines_come_every_so_many_steps(capsys: pytest.CaptureFixture[str]) -> None:
    display = PlainDisplay(every=4)
    with display:
        for step in range(1, 11):
            display.report(LINE | {"step": step}, 10)
            display.validated((2.5, step))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/10", "4/10", "8/10", "10/10"]
    assert ["val 2.5000 at 3" in line for line in lines] == [False, True, False, False]
    assert [line.endswith(" left") for line in lines] == [False, True, True, False]


def test_the_live_display_shows_what_is_said_and_the_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with LiveDisplay() as display:
        display.doing("evaluating", 0, None)
        display.say("step 4: saved [here]")
        display.doing("training", 3, 10)
        display.report(LINE, 10)
        display.validated((2.5, 4))
    said = capsys.readouterr().out
    assert "saved [here]" in said
    assert "loss 3.2500  val 2.5000 at 4" in said
    # the first word is how long it took, the second how long it takes still
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said)
    assert re.search(r"4/10 in 0:00:0\d +--:-- left\s", plain)
    # what the highest and the lowest bar stand for
    assert "loss 3.250 ▁ 3.250, the last 1 steps" in said
    assert "training" in said


def test_what_is_left_goes_by_the_steps_behind_the_first_which_compiles(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    clock = 1000.0
    with LiveDisplay() as display:
        display._bar.get_time = lambda: clock
        display.doing("first step", 600, 640)
        for step, seconds in ((601, 11.0), (602, 0.5), (603, 0.5)):
            clock += seconds
            display.report({**LINE, "step": step}, 640)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    # 37 steps of half a second; by all three it would be 2:28
    assert re.search(r"603/640 in \S+ 00:18 left\s", plain)
    with LiveDisplay() as display:
        display.report(LINE, 4)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    assert re.search(r"4/4 in \S+\s*\n", plain), "nothing is left at the end"
    ahead = Ahead()
    assert ahead.left(4, 10, 5.0) is None
    assert ahead.left(6, 10, 7.0) == 4.0
    assert ahead.left(7, None, 8.0) is None


def test_the_live_display_says_what_takes_the_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with LiveDisplay() as display:
        display.doing("first step", 0, 600)
    said = capsys.readouterr().out
    assert "first step" in said
    assert "0/600" in said
    assert "0:00:00" in said


def test_sparkline_ends() -> None:
    assert sparkline(deque([3.0, 1.0, 2.0])) == "█▁▅"
    assert sparkline(deque([2.0, 2.0])) == "▁▁"


def test_the_smooth_curve_lies_in_the_middle_of_what_it_smooths() -> None:
    """A trailing mean, as it once was, lies above all points of a loss that falls."""
    line = np.linspace(9.0, 2.0, 200)
    assert smooth(line) == pytest.approx(line)
    noise = np.random.default_rng(0).normal(0.0, 0.1, 2000)
    curve = 2.0 + 4.0 * np.exp(-np.arange(2000.0) / 300.0)
    apart = smooth(curve + noise) - curve
    assert abs(apart.mean()) < 0.003
    assert apart.std() < 0.03
    assert smooth(np.array([3.0])) == pytest.approx([3.0])


def drawn(lines: list[dict[str, float]]) -> tuple[list[Any], list[tuple[float, float, str]]]:
    """The panels of the losses' picture, and what is written into the first: place and words."""
    panels = draw_losses(lines, "run").axes
    return panels, [(*text.get_position(), text.get_text()) for text in panels[0].texts]


def test_the_picture_has_its_last_values_where_no_line_is() -> None:
    steps = [{"step": step, "loss": 5.0 - 0.03 * step} for step in range(1, 101)]
    panels, written = drawn([{"step": 0, "val_loss": 5.0}, *steps, {"step": 100, "val_loss": 2.01}])
    assert len(panels) == 1
    assert [words for *_, words in written] == ["2.000", "2.010"]
    assert all(x > 100 for x, *_ in written)
    assert panels[0].get_xlim()[1] > 110
    low, high = panels[0].get_ylim()
    assert written[1][1] - written[0][1] == pytest.approx(0.055 * (high - low))


@pytest.mark.parametrize(("evaluations", "width"), [(2, 0.0), (3, 1.4)])
def test_what_was_evaluated_at_the_ends_alone_is_points_without_a_line(
    evaluations: int, width: float
) -> None:
    steps = [{"step": n, "loss": 3.0 - 0.01 * n} for n in range(1, 101)]
    val = [{"step": 100 * n // (evaluations - 1), "val_loss": 5.0 - n} for n in range(evaluations)]
    panels, _ = drawn([*steps, *val])
    (line,) = (line for line in panels[0].get_lines() if line.get_label() == "validation")
    assert (len(line.get_xdata()), line.get_linewidth()) == (evaluations, width)


def test_accuracies_share_a_panel_and_counts_have_none() -> None:
    """Six panels it was once, of which one said 200 items, and their names lay over each other."""
    told = {"items": 200, "acc": 0.25, "acc_stderr": 0.03, "acc_norm": 0.26, "acc_bytes": 0.5, "truncated": 7}
    line = {f"hellaswag_harness_{name}": value for name, value in told.items()}
    panels, _ = drawn([{"step": 1, "loss": 3.0}, {"step": 5, "loss": 3.0}, {"step": 5, **line}])
    assert [axes.get_ylabel() for axes in panels[1:]] == ["hellaswag\nharness acc"]
    assert [curve.get_ydata()[-1] for curve in panels[1].lines] == [0.25, 0.26, 0.5]
    assert [text.get_text() for text in panels[1].texts] == ["0.250", "0.260 norm", "0.500 bytes"]
    panels[1].figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in panels[1].texts]
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
    assert panels[1].yaxis.label.get_window_extent().height < panels[1].get_window_extent().height * 1.1


def test_the_picture_has_a_panel_for_whatever_else_is_evaluated() -> None:
    steps = [{"step": step, "loss": 3.0} for step in range(1, 9)]
    extra = [{"step": s, "hellaswag_acc": s / 8, "hellaswag_acc_stderr": 0.1} for s in (0, 4, 8)]
    val = [{"step": 8, "val_loss": 2.0, "val_targets": 5, "val_bits_per_byte": 1.5, "val_bleu": 7.0}]
    panels, written = drawn([*steps, *extra, *val])
    assert [axes.get_ylabel() for axes in panels] == ["loss (nats per token)", "hellaswag acc", "val bleu"]
    assert panels[1].lines[0].get_xydata().tolist() == [[0.0, 0.0], [4.0, 0.5], [8.0, 1.0]]
    (scale,) = panels[0].child_axes
    panels[0].set_ylim(2.0, 4.0)
    panels[0].figure.draw_without_rendering()
    assert scale.get_ylim() == pytest.approx((1.5, 3.0))
    assert len(written) == 2
