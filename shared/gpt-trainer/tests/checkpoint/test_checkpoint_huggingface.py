"""GPT-2 weights as Hugging Face publishes them, and folders that only look like them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gpt_trainer.checkpoint import CheckpointState, load_huggingface, resolve, save_checkpoint
from gpt_trainer.errors import InputError
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import Parameters, init_parameters
from safetensors.numpy import save_file

MODEL = ModelConfig(n_layer=2, n_head=2, d_model=8, context=6, vocab_size=11, dropout=0.1)
Edit = Callable[[dict[str, object]], object]


@pytest.fixture
def weights() -> Parameters:
    return init_parameters(MODEL, 0)


def config_json(**changes: object) -> dict[str, object]:
    values: dict[str, object] = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 2}
    values |= {"n_head": 2, "n_embd": 8, "n_positions": 6, "n_ctx": 6, "vocab_size": 11}
    return values | changes


def write(folder: Path, tensors: dict[str, np.ndarray], **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(**changes)))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def assert_equal(got: Parameters, want: Parameters) -> None:
    assert list(got) == list(want)
    for name in want:
        assert got[name].dtype == np.float32
        assert got[name].tobytes() == want[name].tobytes(), name


def unprefixed(weights: Parameters) -> Parameters:
    return {name.removeprefix("transformer."): value for name, value in weights.items()}


@pytest.mark.parametrize("rename", [dict, unprefixed], ids=["prefixed", "published"])
def test_both_spellings_load_bit_for_bit(
    rename: Callable[[Parameters], Parameters], weights: Parameters, tmp_path: Path
) -> None:
    extra = {
        "h.0.attn.bias": np.tri(6, dtype=np.bool_)[None, None],
        "h.1.attn.masked_bias": np.float32([-1e4]),
    }
    head = {"lm_head.weight": weights["transformer.wte.weight"]}
    model, got = load_huggingface(write(tmp_path / "hf", rename(weights) | extra | head))
    assert model == MODEL
    assert_equal(got, weights)


def test_our_own_step_is_such_a_folder(run: Path, make_state: Callable[..., CheckpointState]) -> None:
    model, got = load_huggingface(resolve(run))
    assert model == make_state(2).model
    assert_equal(got, make_state(2).parameters)


def shard(folder: Path, tensors: Parameters, **index: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json()))
    names = sorted(tensors)
    parts = {f"model-0000{i + 1}-of-00003.safetensors": names[i::3] for i in range(3)}
    for name, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / name)
    places = {key: name for name, keys in parts.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places} | index)
    )
    return folder


def test_shards_load_bit_for_bit(weights: Parameters, tmp_path: Path) -> None:
    assert_equal(load_huggingface(shard(tmp_path / "hf", unprefixed(weights)))[1], weights)


def test_a_missing_shard_is_named(weights: Parameters, tmp_path: Path) -> None:
    folder = shard(tmp_path / "hf", weights)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-00002-of-00003\.safetensors is missing"):
        load_huggingface(folder)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../x.safetensors",
        "a/b.safetensors",
        "..",
        "",
        "x.bin",
        ".safetensors",
        "x.safetensors\n",
        7,
        None,
    ],
)
def test_an_index_names_plain_files_only(name: object, weights: Parameters, tmp_path: Path) -> None:
    save_file({"wte.weight": weights["transformer.wte.weight"]}, tmp_path / "x.safetensors")
    folder = shard(tmp_path / "hf", weights, weight_map={"wte.weight": name})
    with pytest.raises(InputError, match="is not a plain name of a safetensors file"):
        load_huggingface(folder)


@pytest.mark.parametrize("places", [None, [], {}, "x"])
def test_an_index_without_a_map_is_refused(places: object, weights: Parameters, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="weight_map"):
        load_huggingface(shard(tmp_path / "hf", weights, weight_map=places))


def test_a_tensor_stored_twice_is_refused(weights: Parameters, tmp_path: Path) -> None:
    twice = weights | {"wte.weight": weights["transformer.wte.weight"]}
    with pytest.raises(InputError, match=r"'transformer\.wte\.weight' is stored twice"):
        load_huggingface(write(tmp_path / "hf", twice))


def test_half_precision_is_widened_exactly(weights: Parameters, tmp_path: Path) -> None:
    half = {name: value.astype(np.float16) for name, value in weights.items()}
    _, got = load_huggingface(write(tmp_path / "hf", half))
    assert_equal(got, {name: value.astype(np.float32) for name, value in half.items()})


def test_bfloat16_is_widened_exactly(weights: Parameters, tmp_path: Path) -> None:
    # safetensors' NumPy side cannot write bfloat16: store the upper halves and rename their type
    upper = {name: (value.view(np.uint32) >> 16).astype(np.uint16) for name, value in weights.items()}
    folder = write(tmp_path / "hf", upper)
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].replace(b'"U16"', b'"BF16"')
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
    want = {name: (value.astype(np.uint32) << 16).view(np.float32) for name, value in upper.items()}
    assert_equal(load_huggingface(folder)[1], want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama', only 'gpt2'"),
        ({"model_type": None}, "model_type is None"),
        ({"architectures": ["GPT2ForSequenceClassification"]}, "GPT2ForSequenceClassification"),
        ({"architectures": "GPT2LMHeadModel"}, "architectures is"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu', expected 'gelu_new'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"n_inner": 7}, "n_inner is 7, expected 32"),
        ({"n_ctx": 5}, "n_ctx is 5, expected 6"),
        ({"n_head": 3}, "d_model=8 is not a multiple of n_head=3"),
        ({"n_head": 0}, "n_head is 0"),
        ({"n_layer": 10**9}, "n_layer is 1000000000, expected 1 to 512"),
        ({"n_layer": True}, "n_layer is True"),
        ({"n_embd": "8"}, "n_embd is '8'"),
        ({"vocab_size": 1e3}, "vocab_size is 1000.0"),
        ({"attn_pdrop": 0.2}, "expected one rate for all three"),
        ({"attn_pdrop": "0.1"}, "expected one rate"),
        ({"embd_pdrop": 2, "attn_pdrop": 2, "resid_pdrop": 2}, "dropout=2.0"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ],
    ids=str,
)
def test_another_model_is_refused_by_name(
    change: dict[str, object], message: str, weights: Parameters, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        load_huggingface(write(tmp_path / "hf", weights, **change))
    assert message in str(caught.value)
    assert "config.json" in str(caught.value)
    assert caught.value.exit_status == 65


def test_every_deviation_is_named(weights: Parameters, tmp_path: Path) -> None:
    folder = write(tmp_path / "hf", weights, activation_function="relu", n_inner=1, layer_norm_epsilon=1)
    with pytest.raises(InputError, match=r"activation_function.*layer_norm_epsilon.*n_inner"):
        load_huggingface(folder)


def transpose(weights: Parameters) -> Parameters:
    name = "transformer.h.0.attn.c_attn.weight"
    return weights | {name: np.ascontiguousarray(weights[name].T)}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (transpose, r"c_attn\.weight has shape \(24, 8\), expected \(8, 24\) \(transposed\?\)"),
        (
            lambda w: {n: v for n, v in w.items() if "ln_f" not in n},
            "missing .*ln_f.weight.*missing .*ln_f.bias",
        ),
        (
            lambda w: w | {"score.weight": np.ones((2, 8), np.float32)},
            r"unexpected 'transformer.score.weight'",
        ),
        (lambda w: {n: v.astype(np.float64) for n, v in w.items()}, "dtype F64, expected F32 or F16 or BF16"),
        (
            lambda w: w | {"transformer.ln_f.bias": np.full(8, np.inf, np.float32)},
            "ln_f.bias holds NaN or infinity",
        ),
        (
            lambda w: w | {"transformer.wte.weight": np.ones((12, 8), np.float32)},
            r"\(12, 8\), expected \(11, 8\)",
        ),
    ],
    ids=["transposed", "missing", "extra", "float64", "infinite", "vocabulary"],
)
def test_weights_that_do_not_fit_are_refused(
    damage: Callable[[Parameters], Parameters], message: str, weights: Parameters, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        load_huggingface(write(tmp_path / "hf", damage(weights)))


def test_a_folder_without_weights_says_what_is_missing(weights: Parameters, tmp_path: Path) -> None:
    folder = write(tmp_path / "hf", weights)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        load_huggingface(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json is missing"):
        load_huggingface(folder)
    with pytest.raises(InputError, match="is not a folder"):
        load_huggingface(folder / "x")


# transformers and torch are not part of this package's own environment; importing them takes seconds
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_transformers_loads_our_step_and_we_load_what_it_saves(
    tmp_path: Path, make_state: Callable[..., CheckpointState]
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    state = make_state(7, MODEL)
    folder = save_checkpoint(tmp_path, state._replace(tokenizer_json=None))
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.config.eos_token_id is None
    assert theirs.lm_head.weight.data_ptr() == theirs.transformer.wte.weight.data_ptr()
    loaded = {name: value.numpy() for name, value in theirs.state_dict().items() if name in state.parameters}
    assert_equal({name: loaded[name] for name in state.parameters}, state.parameters)

    fresh = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**config_json(bos_token_id=None, eos_token_id=None))
    )
    for shard_size in ("5GB", "3KB"):
        fresh.save_pretrained(tmp_path / shard_size, max_shard_size=shard_size)
        model, got = load_huggingface(tmp_path / shard_size)
        assert model == MODEL
        again = save_checkpoint(tmp_path / f"run-{shard_size}", state._replace(parameters=got))
        back = transformers.GPT2LMHeadModel.from_pretrained(again)
        ids = torch.tensor([[1, 5, 10, 0, 3, 3]])
        with torch.no_grad():
            assert torch.equal(back.eval()(ids).logits, fresh.eval()(ids).logits)
    assert (tmp_path / "3KB" / "model.safetensors.index.json").exists()
