"""A step's parts: traces made by hand, and the kernels that the frameworks launch put into their classes."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import gpt_triton
import pytest
from gpt_compare.breakdown import CLASSES, IDLE, class_of, read_profile

# as the profilers of torch 2.11 and JAX 0.11 name them on an H200, and torch on a CPU
KERNELS = {
    "products": [
        "nvjet_sm90_tst_128x256_64x4_1x2_h_bz_coopA_TNT",
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64",
        "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8>",
        "descriptor_kernel", "hopper_kernel", "aten::mm", "aten::addmm", "ynn_fusion", "dot",
        "nvjet_hsh_256x128_64x4_2x1_v_bz_coopA_NNT [jit(train_step)/while/body/dot_general cublas-gemm]",
    ],
    "attention": [
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x64_4x1x1_cga1x1x1",
        "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<pytorch_flash::Flash_bwd>",
        "attention_fwd_hopper_kernel", "attention_rows_kernel", "d_q_kernel", "d_kv_kernel", "_mask_kernel",
        "void cudnn::fusion::matmul_dq<true, 64>(void const*)", "void cudnn::fusion::compute_dot_do_o<true>",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "triton_red_fused__to_copy_arange_ge_mul_prepare_softmax_online_sub_where_5",
    ],
    "cross-entropy": [
        "_cross_entropy_kernel", "triton_red_fused__log_softmax_nll_loss_forward_12",
        "triton_red_fused__to_copy_add_arange_eq_exp_ge_log_masked_fill_mul_prepare_softmax_online_sub_sum_0",
        "triton_red_fused__to_copy_add_amax_arange_eq_exp_ge_log_masked_fill_mul_select_sub_sum_where_0",
        "triton_red_fused__to_copy_add_amax_arange_eq_exp2_ge_log_masked_fill_mul_scalar_tensor_sub_sum_where_0",
        "aten::nll_loss_backward", "input_reduce_fusion_3 [jit(train_step)/exp loss.py:112]",
    ],
    "optimizer": [
        "_adamw_kernel", "_squares_kernel",
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>",
        "loop_fusion_8 [jit(train_step)/sqrt optimizer.py:121]", "aten::_fused_adamw_",
        "triton_poi_fused_abs_add_bitwise_and_clamp_copy__div_eq_le_mul_ne_pow_reciprocal_sqrt_sub_where_25",
    ],
    "norms and elementwise": [
        "_layer_norm_bwd_kernel", "triton_per_fused_native_layer_norm_native_layer_norm_backward_3",
        "triton_poi_fused_gelu_backward_7", "void at::native::vectorized_elementwise_kernel<4, float>",
        "Memset (Device)", "loop_multiply_fusion_5", "aten::add_",
    ],
    "communication": ["ncclDevKernel_AllReduce_Sum_f32_RING_LL", "all-reduce-start"],
    "other": ["something quite new"],
}  # fmt: skip


def test_every_kernel_has_its_class() -> None:
    found = {kind: [class_of(name) for name in names] for kind, names in KERNELS.items()}
    assert found == {kind: [kind] * len(names) for kind, names in KERNELS.items()}
    assert set(KERNELS) == set(CLASSES)


def test_none_of_our_kernels_is_merely_other() -> None:
    sources = Path(gpt_triton.__file__).parent.glob("kernels/**/*.py")
    text = "".join(path.read_text("utf-8") for path in sources)
    names = re.findall(r"^def (\w+kernel)\(", text, re.MULTILINE)
    assert len(names) > 20
    assert [name for name in names if class_of(name) == "other"] == []
    muons = [name for name in names if re.search("muon|momentum|stack|normalise", name)]
    assert {class_of(name) for name in muons} == {"optimizer"}


def event(name: str, begin: float, length: float, thread: int = 1, **more: Any) -> dict[str, Any]:
    return {"ph": "X", "name": name, "ts": begin, "dur": length, "pid": 7, "tid": thread, **more}


def test_kernels_count_and_what_lies_between_them_is_idle(tmp_path: Path) -> None:
    """Two steps: two streams side by side for 20 of 100 microseconds, nothing for 10."""
    events = [
        event("aten::mm", 0, 500, cat="cpu_op"),
        event("nvjet_a", 1000, 40, cat="kernel"),
        event("_adamw_kernel", 1020, 40, thread=2, cat="kernel"),
        event("Memcpy DtoD", 1070, 30, cat="gpu_memcpy"),
    ]
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": events}))
    found = read_profile(tmp_path, 2)
    assert found is not None
    assert (found.launched, found.span, found.busy) == (1.5, pytest.approx(100e-6), pytest.approx(90e-6))
    parts = found.seconds()
    assert sum(parts.values()) == pytest.approx(50e-6)
    assert parts[IDLE] == pytest.approx(5e-6)
    # 40 of 110 microseconds of kernels, which took 90 of the clock
    assert parts["products"] == parts["optimizer"] == pytest.approx(90e-6 * 40 / 110 / 2)


def test_on_a_cpu_an_operation_is_what_it_does_itself(tmp_path: Path) -> None:
    events = [
        event("aten::linear", 0, 100, cat="cpu_op"),
        event("aten::addmm", 10, 70, cat="cpu_op"),
        event("aten::copy_", 20, 30, cat="cpu_op"),
        event("aten::add", 100, 20, cat="cpu_op"),
        event("aten::mul", 0, 10, thread=2, cat="cpu_op"),
        event("python", 0, 900, cat="python_function"),
    ]
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": events}))
    found = read_profile(tmp_path, 1)
    assert found is not None
    own = {name: round(1e6 * seconds) for name, (_, seconds) in found.kernels.items()}
    assert own == {"aten::linear": 30, "aten::addmm": 40, "aten::copy_": 30, "aten::add": 20, "aten::mul": 10}


def test_jax_says_where_in_the_program_a_kernel_stands(tmp_path: Path) -> None:
    place = tmp_path / "plugins" / "profile" / "now"
    place.mkdir(parents=True)
    events = [
        {"ph": "M", "name": "process_name", "pid": 7, "args": {"name": "/device:GPU:0"}},
        {"ph": "M", "name": "thread_name", "pid": 7, "tid": 1, "args": {"name": "Stream #14(Compute)"}},
        {"ph": "M", "name": "thread_name", "pid": 7, "tid": 2, "args": {"name": "XLA Ops"}},
        event(
            "loop_fusion_3",
            0,
            10,
            args={"name": "jit(step)/mul", "source": "/x/optimizer.py:9"},
        ),
        event("loop_fusion_4", 10, 10, args={"hlo_op": "fusion.4"}),
        event("fusion.4", 10, 10, thread=2, args={"hlo_op": "fusion.4"}),
    ]
    with gzip.open(place / "vm.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)
    found = read_profile(tmp_path, 1)
    assert found is not None
    assert list(found.kernels) == [
        "loop_fusion_3 [jit(step)/mul optimizer.py:9]",
        "loop_fusion_4 [fusion]",
    ]
    assert found.seconds()["optimizer"] == pytest.approx(10e-6)


@pytest.mark.parametrize("content", [None, "{", "{}", '{"traceEvents": []}'])
def test_a_profile_that_is_none(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "trace.json").write_text(content)
    assert read_profile(tmp_path, 1) is None
