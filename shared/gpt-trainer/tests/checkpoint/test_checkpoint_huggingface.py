"""GPT-2 weights as Hugging Face publishes them, and folders that only look like them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gpt_trainer.checkpoint import CheckpointState, load_huggingface, resolve, save_checkpoint
from gpt_trainer.checkpoint.model_json import TANH_GELU
from gpt_trainer.errors import InputError, one_line
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import Parameters, check_parameters, init_parameters
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
        "h.1.attn.bias": np.tri(6, dtype=np.float16)[None, None],
    }
    head = {"lm_head.weight": weights["transformer.wte.weight"]}
    model, got = load_huggingface(write(tmp_path / "hf", rename(weights) | extra | head))
    assert model == MODEL
    assert_equal(got, weights)


def test_wrappers_around_the_names_and_float64_load(weights: Parameters, tmp_path: Path) -> None:
    wide = {name: value.astype(np.float64) for name, value in weights.items()}
    for number, wrap in enumerate(
        ("_orig_mod.{}", "module.{}", "_orig_mod.module.{}", "module._orig_mod.{}")
    ):
        wrapped = {wrap.format(name): value for name, value in unprefixed(wide).items()}
        head = {wrap.format("lm_head.weight"): wide["transformer.wte.weight"]}
        assert_equal(load_huggingface(write(tmp_path / str(number), wrapped | head))[1], weights)
    # each block compiled by itself
    inside = {name.replace("h.0.", "h.0._orig_mod."): value for name, value in weights.items()}
    assert_equal(load_huggingface(write(tmp_path / "blocks", inside))[1], weights)
    with pytest.raises(InputError, match=r"'transformer\.ln_f\.bias' is stored twice"):
        load_huggingface(
            write(tmp_path / "twice", weights | {"_orig_mod.ln_f.bias": np.zeros(8, np.float32)})
        )


EMBEDDING = "transformer.wte.weight"
# a mask that shows the future, one that hides the past, a shorter one, and scores that hide nothing
EXTRA = {
    "negative": ({"lm_head.weight": -1.0}, "lm_head.weight is not a copy"),
    "bits": ({"lm_head.weight": 1.0000001}, "lm_head.weight is not a copy"),
    "padded": ({"lm_head.weight": np.ones((16, 8), np.float32)}, "lm_head.weight is not a copy"),
    "ones": ({"h.0.attn.bias": np.ones((1, 1, 6, 6), np.float32)}, "is not the causal mask of 6"),
    "window": (
        {"h.1.attn.bias": (np.tri(6) - np.tri(6, k=-3)).astype(np.uint8)[None, None]},
        r"transformer\.h\.1\.attn\.bias is not the causal mask of 6 positions",
    ),
    "short": ({"h.0.attn.bias": np.tri(5, dtype=np.bool_)[None, None]}, "is not the causal mask"),
    "weak": ({"h.0.attn.masked_bias": np.float32([-10.0])}, "masked_bias is not -10000"),
    "nan": ({"h.0.attn.masked_bias": np.float32([np.nan])}, "masked_bias is not -10000"),
    "many": ({"h.0.attn.masked_bias": np.full(2, -1e4, np.float32)}, "masked_bias is not -10000"),
    "integers": ({"h.0.attn.bias": np.tri(6, dtype=np.int64)[None, None]}, "has dtype I64"),
    "block": ({"h.2.attn.bias": np.tri(6, dtype=np.bool_)[None, None]}, "unexpected 'transformer.h.2"),
    "bias": ({"lm_head.bias": np.zeros(11, np.float32)}, "unexpected 'lm_head.bias'"),
}


@pytest.mark.parametrize("case", EXTRA)
@pytest.mark.parametrize("prefix", ["", "transformer.", "module."])
def test_what_is_no_parameter_is_held_to_its_content(
    case: str, prefix: str, weights: Parameters, tmp_path: Path
) -> None:
    extra, message = EXTRA[case]
    extra = {
        (prefix if "lm_head" not in name or prefix == "module." else "") + name: np.float32(value)
        * weights[EMBEDDING]
        if isinstance(value, float)
        else value
        for name, value in extra.items()
    }
    with pytest.raises(InputError, match=message):
        load_huggingface(write(tmp_path / "hf", weights | extra))


def test_a_head_in_another_file_is_held_to_the_embedding(weights: Parameters, tmp_path: Path) -> None:
    copy = {"lm_head.weight": weights[EMBEDDING]}
    assert_equal(load_huggingface(shard(tmp_path / "copy", unprefixed(weights) | copy))[1], weights)
    other = {"lm_head.weight": -weights[EMBEDDING]}
    with pytest.raises(InputError, match="only tied heads can be loaded"):
        load_huggingface(shard(tmp_path / "own", unprefixed(weights) | other))


def test_a_thousand_differences_make_one_short_line(weights: Parameters, tmp_path: Path) -> None:
    strange = {f"strange.{number:04}": np.zeros(1, np.float32) for number in range(3000)}
    with pytest.raises(InputError) as caught:
        load_huggingface(write(tmp_path / "hf", weights | strange))
    assert str(caught.value).endswith("unexpected 'transformer.strange.0009' (1,); and 2990 more")
    assert len(str(caught.value)) < 1000
    assert one_line(["a"] * 10) == "; ".join("a" * 10)
    with pytest.raises(ValueError, match="and 2991 more") as told:
        check_parameters(strange | {name: weights[name] for name in list(weights)[1:]}, MODEL)
    assert len(str(told.value)) < 1000


def cached(model: Path, hub: Path) -> Path:
    """The folder as the hub's client lays it out: links to files that are named by their content."""
    (hub / "blobs").mkdir(parents=True)
    snapshot = hub / "snapshots" / "0badc0de"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(model.iterdir())):
        file.rename(hub / "blobs" / str(number))
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(number)))
    return snapshot


def test_links_of_a_folder_that_the_user_names_are_followed(weights: Parameters, tmp_path: Path) -> None:
    assert_equal(load_huggingface(cached(write(tmp_path / "a", weights), tmp_path / "hub-a"))[1], weights)
    assert_equal(load_huggingface(cached(shard(tmp_path / "b", weights), tmp_path / "hub-b"))[1], weights)
    snapshot = cached(write(tmp_path / "c", weights), tmp_path / "hub-c")
    for target, message in (("nowhere", "is missing"), (".", "is not a regular file")):
        (snapshot / "config.json").unlink()
        (snapshot / "config.json").symlink_to(target)
        with pytest.raises(InputError, match=rf"config\.json {message}"):
            load_huggingface(snapshot)


@pytest.mark.parametrize("name", ["gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"])
def test_other_names_of_the_same_function_and_rates_of_dropout_load(
    name: str, weights: Parameters, tmp_path: Path
) -> None:
    folder = write(tmp_path / "hf", weights, activation_function=name, attn_pdrop=0.0, pruned_heads=None)
    model, got = load_huggingface(folder)
    assert_equal(got, weights)
    # training takes its own rate; one of three would be none of theirs
    assert model == replace(MODEL, dropout=0.0)


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
        ({"attn_pdrop": "0.1"}, "attn_pdrop is '0.1', expected a rate"),
        ({"resid_pdrop": 2}, "resid_pdrop is 2, expected a rate"),
        ({"embd_pdrop": 1.0}, "embd_pdrop is 1.0, expected a rate"),
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
        (
            lambda w: {n: v.astype(np.int32) for n, v in w.items()},
            "dtype I32, expected F32 or F64 or F16 or BF16",
        ),
        (
            lambda w: w | {"transformer.ln_f.bias": np.full(8, 1e300)},
            "ln_f.bias holds NaN or infinity",
        ),
        (
            lambda w: w | {"transformer.ln_f.bias": np.full(8, np.inf, np.float32)},
            "ln_f.bias holds NaN or infinity",
        ),
        (
            lambda w: w | {"transformer.wte.weight": np.ones((12, 8), np.float32)},
            r"\(12, 8\), expected \(11, 8\)",
        ),
    ],
    ids=["transposed", "missing", "extra", "integers", "overflow", "infinite", "vocabulary"],
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
    ids = torch.tensor([[1, 5, 10, 0, 3, 3]])
    for shard_size in ("5GB", "3KB"):
        fresh.save_pretrained(tmp_path / shard_size, max_shard_size=shard_size)
        model, got = load_huggingface(tmp_path / shard_size)
        assert model == MODEL
        again = save_checkpoint(tmp_path / f"run-{shard_size}", state._replace(parameters=got))
        back = transformers.GPT2LMHeadModel.from_pretrained(again)
        with torch.no_grad():
            assert torch.equal(back.eval()(ids).logits, fresh.eval()(ids).logits)
    assert (tmp_path / "3KB" / "model.safetensors.index.json").exists()

    # what is loaded under another name of the function or from another type is the same function
    for name in TANH_GELU:
        config = transformers.GPT2Config(
            **config_json(bos_token_id=None, eos_token_id=None, activation_function=name)
        )
        wide = transformers.GPT2LMHeadModel(config).double()
        with torch.no_grad():
            for value in wide.parameters():
                # a GELU far from zero, where its forms differ most
                value.normal_(std=0.5)
        wide.save_pretrained(tmp_path / name)
        _, got = load_huggingface(tmp_path / name)
        again = save_checkpoint(tmp_path / f"run-{name}", state._replace(parameters=got))
        back = transformers.GPT2LMHeadModel.from_pretrained(again).double()
        with torch.no_grad():
            off = (back.eval()(ids).logits - wide.eval()(ids).logits).norm() / wide(ids).logits.norm()
        assert off < 1e-6, name
