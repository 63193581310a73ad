"""Files made to harm: each is refused with one typed error, quickly and within its own size of memory."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gpt_trainer.checkpoint import CheckpointState, load_checkpoint, load_huggingface, resolve
from gpt_trainer.checkpoint.tensors import TensorFile, parse_header
from gpt_trainer.errors import InputError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SECONDS, MEGABYTES = 1.0, 64


CORPUS = runpy.run_path(str(Path(__file__).with_name("hostile_headers.py")))
HEADERS: dict[str, bytes] = CORPUS["HEADERS"]
GOOD: bytes = CORPUS["GOOD"]
packed: Callable[..., bytes] = CORPUS["packed"]


def refused(load: Callable[[], object]) -> InputError:
    """The error of ``load``, which must come in time and without much memory."""
    # processor time, so that a busy machine fails nothing; a hang would not end the test either way
    start = time.process_time()
    with pytest.raises(InputError):
        load()
    assert time.process_time() - start <= SECONDS
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            load()
        assert tracemalloc.get_traced_memory()[1] <= MEGABYTES * 2**20
    finally:
        tracemalloc.stop()
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()
    return caught.value


def forge(step: Path, name: str, content: bytes) -> None:
    """Replace a file, and the manifest with it, as one who wants to be believed would."""
    (step / name).write_bytes(content)
    path = step / "manifest.json"
    values = json.loads(path.read_bytes())
    values["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.write_bytes(json.dumps(values, indent=2).encode() + b"\n")


def test_the_corpus_is_large_enough() -> None:
    assert len(HEADERS) >= 60


@pytest.mark.parametrize("case", HEADERS)
def test_hostile_tensors_are_refused(case: str, run: Path) -> None:
    step = resolve(run)
    # an optimizer that keeps nothing is none of the checkpoint's business
    names = ("model.safetensors",) if case == "no-tensors" else ("optimizer.safetensors", "model.safetensors")
    for name in names:
        forge(step, name, HEADERS[case])
        error = refused(lambda: load_checkpoint(step))
        assert "refused step-00000002" in str(error)
        assert name in str(error)
    error = refused(lambda: load_huggingface(step))
    assert error.exit_status == 65


# well-formed files: what is wrong with them shows only beside the model's names
WELL_FORMED = {"name-is-a-path", "name-with-escapes", "name-is-a-surrogate", "no-tensors"}


@pytest.mark.parametrize("case", HEADERS)
def test_the_header_alone_is_reason_enough(case: str, tmp_path: Path) -> None:
    path = tmp_path / "tensors"
    path.write_bytes(HEADERS[case])
    if case in WELL_FORMED:
        TensorFile(path).close()
    else:
        assert "tensors" in str(refused(lambda: TensorFile(path)))


JSONS = [b"", b"{}", b"null", b"[]", b"{", b"[" * 60_000, b'{"a":' * 10_000, b'{"a":1,"a":2}', b'{"a":NaN}']
JSONS += [b'{"a":-Infinity}', b'{"a":1e999}', b"\xff", b"\xef\xbb\xbf{}", b'{"b":' + b"9" * 5000 + b"}"]
JSONS += [b" " * (1 << 25)]


@pytest.mark.parametrize("name", ["config.json", "trainer.json", "manifest.json"])
@pytest.mark.parametrize("content", JSONS, ids=lambda content: ascii(content[:12]))
def test_hostile_json_is_refused(content: bytes, name: str, run: Path) -> None:
    step = resolve(run)
    if name == "manifest.json":
        (step / name).write_bytes(content)
    else:
        forge(step, name, content)
    assert name in str(refused(lambda: load_checkpoint(step)))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "trainer.json", "manifest.json"])
@pytest.mark.parametrize("kind", ["fifo", "link", "link-to-itself", "folder", "device"])
def test_only_regular_files_are_opened(kind: str, name: str, run: Path, tmp_path: Path) -> None:
    step = resolve(run)
    path = step / name
    path.rename(tmp_path / "original")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        targets = {"link": tmp_path / "original", "link-to-itself": path, "device": Path("/dev/zero")}
        path.symlink_to(targets[kind])
    assert name in str(refused(lambda: load_checkpoint(step)))


def test_a_pickle_is_never_opened(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    canary = b"cposix\nsystem\n(S'touch canary'\ntR."
    step = resolve(run)
    for name in (
        "model.safetensors",
        "optimizer.safetensors",
        "trainer.json",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        forge(step, name, canary)
        refused(lambda: load_checkpoint(step))
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_bytes((run / "checkpoints/step-00000001/config.json").read_bytes())
    (folder / "pytorch_model.bin").write_bytes(canary)
    text = str(refused(lambda: load_huggingface(folder)))
    assert "pytorch_model.bin" in text
    assert "model.safetensors" in text
    assert not (tmp_path / "canary").exists()


def test_every_difference_is_listed(run: Path, make_state: Callable[..., CheckpointState]) -> None:
    step = resolve(run)
    raw = (step / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["../../x"] = header.pop("transformer.ln_f.bias")
    header["transformer.ln_f.weight"]["dtype"] = "I32"
    attention = header["transformer.h.0.attn.c_attn.weight"]
    attention["shape"] = attention["shape"][::-1]
    text = json.dumps(header).encode()
    forge(step, "model.safetensors", packed(text, raw[8 + length :]))
    message = str(refused(lambda: load_checkpoint(step)))
    for part in (
        "missing transformer.ln_f.bias (2,)",
        "unexpected '../../x' (2,)",
        "transformer.ln_f.weight has dtype I32, expected F32",
        "transformer.h.0.attn.c_attn.weight has shape (6, 2), expected (2, 6) (transposed?)",
    ):
        assert part in message


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_weights_that_are_not_finite_are_refused(name: str, run: Path) -> None:
    step = resolve(run)
    raw = (step / name).read_bytes()
    forge(step, name, raw[:-4] + struct.pack("<f", float("nan")))
    assert "holds NaN or infinity" in str(refused(lambda: load_checkpoint(step)))


def parses(header: bytes, payload: int) -> bool:
    try:
        entries = parse_header(header, payload, Path("f"))
    except InputError:
        return False
    return sum(item.end - item.begin for item in entries.values()) == payload


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
small = st.integers(-1, 12)
tensors = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "U8", "X"]) | json_values,
        "shape": st.lists(small, max_size=3) | json_values,
        "data_offsets": st.lists(small, min_size=2, max_size=2) | json_values,
    }
)


@settings(max_examples=1000, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.text(max_size=3), tensors, max_size=3), st.integers(0, 24))
def test_no_header_breaks_the_parser(header: dict[str, Any], payload: int) -> None:
    parses(json.dumps(header).encode(), payload)


@settings(max_examples=1000, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=64), st.integers(0, len(GOOD)), st.integers(0, 8))
def test_no_bytes_break_the_parser(noise: bytes, position: int, removed: int) -> None:
    parses(GOOD[:position] + noise + GOOD[position + removed :], 4)


def test_the_corpus_is_built_around_a_good_file(tmp_path: Path) -> None:
    # otherwise a case might be refused for a reason that is not its own
    (tmp_path / "good").write_bytes(packed(GOOD, b"\0\0\x80\x3f"))
    with TensorFile(tmp_path / "good") as file:
        assert {name: value.tolist() for name, value in file.read(["a"]).items()} == {"a": [1.0]}
