"""``tokenizer.json``, the file of Hugging Face ``tokenizers``, both ways."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bpe_scratch.byte_alphabet import to_printable
from bpe_scratch.errors import FileFormatError
from bpe_scratch.files import Parts, build_vocabulary, load_json
from bpe_scratch.patterns import PATTERNS, resolve_pattern


def format_tokenizer_json(parts: Parts) -> str:
    """The text of a ``tokenizer.json``.

    Args:
        parts: What to write.
    """
    vocabulary = parts.vocabulary
    vocab = {to_printable(token): index for index, token in enumerate(vocabulary.tokens) if token is not None}
    text = {index: printable for printable, index in vocab.items()}
    special = {index: content for content, index in parts.special_tokens.items()}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(index, content) for index, content in sorted(special.items())],
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(parts.pattern),
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": vocabulary.whole_pieces,
            "vocab": vocab | {content: index for index, content in sorted(special.items())},
            "merges": [[text[left], text[right]] for left, right, _ in vocabulary.merges],
        },
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def _added_token(index: int, content: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": index, "content": content, **flags}


def _pre_tokenizer(pattern: str) -> dict[str, Any]:
    name, expression = resolve_pattern(pattern)
    whole = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": name == "gpt2",
    }
    if name == "gpt2" or expression is None:
        return whole
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, whole]}


def parse_tokenizer_json(text: str, name: str) -> Parts:
    """Read a ``tokenizer.json``, refusing what this package would not reproduce id for id.

    Args:
        text: The JSON text.
        name: File name for messages.
    """
    document = load_json(text, name)
    model = document.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise FileFormatError(f"{name}: model is {kind!r}; only a byte-level BPE can be read")
    _refuse_foreign_settings(document, model, name)
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise FileFormatError(f"{name}: model.vocab must be an object and model.merges a list")
    added = _parse_added(document.get("added_tokens") or [], name)
    rows = [(number, *_merge_entry(entry, number, name)) for number, entry in enumerate(merges, start=1)]
    vocabulary, special = build_vocabulary(
        vocab, rows, name, name, added=added, whole_pieces=bool(model.get("ignore_merges")), entry="merge"
    )
    return Parts(vocabulary, _parse_pattern(document.get("pre_tokenizer"), name), special)


def _merge_entry(entry: Any, number: int, name: str) -> tuple[str, str]:
    parts = entry.split(" ") if isinstance(entry, str) else entry
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) and p for p in parts):
        raise FileFormatError(f"{name}: merge {number}: expected two parts, found {str(entry)[:60]!r}")
    return parts[0], parts[1]


def _refuse_foreign_settings(document: Mapping[str, Any], model: Mapping[str, Any], name: str) -> None:
    for key in ("normalizer", "truncation", "padding"):
        if document.get(key) is not None:
            raise FileFormatError(f"{name}: {key} is set; this package has none")
    for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise FileFormatError(f"{name}: model.{key} is {model[key]!r}; this package has none")
    if model.get("byte_fallback"):
        raise FileFormatError(f"{name}: model.byte_fallback is set; only a byte-level BPE can be read")


def _parse_added(added: Any, name: str) -> dict[str, int]:
    if not isinstance(added, list):
        raise FileFormatError(f"{name}: added_tokens must be a list")
    found: dict[str, int] = {}
    for position, entry in enumerate(added):
        if (
            not isinstance(entry, dict)
            or type(entry.get("id")) is not int
            or not isinstance(entry.get("content"), str)
        ):
            raise FileFormatError(f"{name}: added token {position} needs an integer id and a text")
        found[entry["content"]] = entry["id"]
    return found


def _parse_pattern(pre_tokenizer: Any, name: str) -> str:
    steps = pre_tokenizer if isinstance(pre_tokenizer, dict) else {}
    chain = steps.get("pretokenizers", []) if steps.get("type") == "Sequence" else [steps]
    kinds = [step.get("type") if isinstance(step, dict) else None for step in chain]
    if not kinds or kinds[-1] != "ByteLevel" or kinds[:-1] not in ([], ["Split"]):
        raise FileFormatError(f"{name}: pre_tokenizer {kinds} is not ByteLevel, alone or after one Split")
    if chain[-1].get("add_prefix_space", True):
        raise FileFormatError(f"{name}: pre_tokenizer adds a space before the text; this package does not")
    uses_regex = chain[-1].get("use_regex", True)
    if len(chain) == 1:
        return "gpt2" if uses_regex else "none"
    expression = (
        chain[0].get("pattern", {}).get("Regex") if isinstance(chain[0].get("pattern"), dict) else None
    )
    if (
        uses_regex
        or chain[0].get("behavior") != "Isolated"
        or chain[0].get("invert")
        or not isinstance(expression, str)
    ):
        raise FileFormatError(
            f"{name}: pre_tokenizer Split must isolate the matches of a Regex before a plain ByteLevel"
        )
    known = {value: key for key, value in PATTERNS.items() if value is not None}
    return known.get(expression, expression)
