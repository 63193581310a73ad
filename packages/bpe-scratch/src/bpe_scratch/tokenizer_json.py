"""``tokenizer.json``, the file of Hugging Face ``tokenizers``, both ways.

A field is reproduced, or it makes no difference to ids and texts, or the file is refused and the field
named.  So a field that is not known here is refused too.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from typing import Any

from bpe_scratch.byte_alphabet import to_printable
from bpe_scratch.errors import TokenizerError
from bpe_scratch.files import Merge, check_ids, check_merges, load_json, make_vocabulary, naming
from bpe_scratch.patterns import PATTERNS, resolve_pattern
from bpe_scratch.special import check_special
from bpe_scratch.vocabulary import Vocabulary

# the fields of each object and the values that are reproduced, the first of them as it is written here
_Fields = Mapping[str, tuple[object, ...]]
_ANYTHING: tuple[object, ...] = ()
"""Any value: the field makes no difference here."""
_TOP = {
    "version": ("1.0", None), "truncation": (None,), "padding": (None,), "added_tokens": _ANYTHING,
    "normalizer": (None,), "pre_tokenizer": _ANYTHING, "post_processor": _ANYTHING,
    "decoder": _ANYTHING, "model": _ANYTHING,
}  # fmt: skip
_MODEL = {
    "type": ("BPE", None), "dropout": (None, 0.0), "unk_token": (None,),
    "continuing_subword_prefix": (None, ""), "end_of_word_suffix": (None, ""),
    "fuse_unk": _ANYTHING, "byte_fallback": (False, None),
    "ignore_merges": (False, True, None), "vocab": _ANYTHING, "merges": _ANYTHING,
}  # fmt: skip
_ADDED = {
    "id": _ANYTHING, "content": _ANYTHING, "single_word": (False,), "lstrip": (False,), "rstrip": (False,),
    "normalized": (False, True), "special": (True,),
}  # fmt: skip
_SWITCHES = ("add_prefix_space", "trim_offsets", "use_regex")
_BYTE_LEVEL = {"type": ("ByteLevel",), **dict.fromkeys(_SWITCHES, _ANYTHING)}
_BYTE_LEVEL_CUT = _BYTE_LEVEL | {"add_prefix_space": (False,), "use_regex": (False, True, None)}
_SPLIT = {"type": ("Split",), "pattern": _ANYTHING, "behavior": ("Isolated",), "invert": (False,)}
_TEMPLATE = {"type": _ANYTHING, "single": _ANYTHING, "pair": _ANYTHING, "special_tokens": ({},)}


def format_tokenizer_json(vocabulary: Vocabulary, pattern: str, special_tokens: Mapping[str, int]) -> str:
    """The text of a ``tokenizer.json``; the pattern is a name or an expression."""
    vocab = {to_printable(token): index for index, token in enumerate(vocabulary.tokens) if token is not None}
    text = {index: printable for printable, index in vocab.items()}
    special = sorted((index, content) for content, index in special_tokens.items())
    model = _filled(
        _MODEL,
        fuse_unk=False,
        ignore_merges=vocabulary.whole_pieces,
        vocab=vocab | {content: index for index, content in special},
        merges=[[text[left], text[right]] for left, right, _ in vocabulary.merges],
    )
    document = _filled(
        _TOP,
        added_tokens=[_filled(_ADDED, id=index, content=content) for index, content in special],
        pre_tokenizer=_pre_tokenizer(pattern),
        decoder=_filled(_BYTE_LEVEL_CUT, trim_offsets=True, use_regex=True),
        model=model,
    )
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def _filled(fields: _Fields, **given: Any) -> dict[str, Any]:
    return {key: known[0] if known else None for key, known in fields.items()} | given


def _pre_tokenizer(pattern: str) -> dict[str, Any]:
    name = resolve_pattern(pattern)
    expression = PATTERNS.get(name, name)
    whole = _filled(_BYTE_LEVEL_CUT, trim_offsets=True, use_regex=name == "gpt2")
    if name == "gpt2" or expression is None:
        return whole
    return {"type": "Sequence", "pretokenizers": [_filled(_SPLIT, pattern={"Regex": expression}), whole]}


def parse_tokenizer_json(text: str, name: str) -> tuple[Vocabulary, str, dict[str, int]]:
    """Vocabulary, pattern and special tokens, refusing what this package would not reproduce id for id.

    Raises:
        FileFormatError: Naming the file, here ``name``, and the field or entry.
    """
    with naming(name):
        document = _check(load_json(text), _TOP, "")
        model = _check(document.get("model"), _MODEL, "model")
        vocab = model.get("vocab")
        if not isinstance(vocab, dict):
            raise TokenizerError("model.vocab must be an object")
        check_ids(vocab)
        special = _parse_added(document.get("added_tokens"), vocab)
        pattern = _parse_pattern(document)
        for step in _steps(document, "post_processor", "processors"):
            _check_post_processor(step)
        _check(document.get("decoder"), _BYTE_LEVEL, "decoder")
        merges = _parse_merges(model.get("merges"))
        ordinary = {token: index for token, index in vocab.items() if token not in special}
        check_merges(ordinary, merges)
        vocabulary = make_vocabulary(ordinary, merges, whole_pieces=bool(model.get("ignore_merges")))
        return vocabulary, pattern, check_special(special, vocabulary)


def _check(value: Any, fields: _Fields, place: str) -> dict[str, Any]:
    """An object that has known fields alone, each with a value that is reproduced."""
    if not isinstance(value, dict):
        raise TokenizerError(f"{place} is {_shown(value)}; only a byte-level BPE can be read")
    for key, found in value.items():
        where = f"{place}.{key}" if place else key
        if key not in fields:
            raise TokenizerError(f"{where} is a field that is not known here")
        # True is 1 and 0.0 is False, but not in a file
        if fields[key] and not any(found == known and type(found) is type(known) for known in fields[key]):
            raise TokenizerError(f"{where} is {_shown(found)}, which is not reproduced here")
    for key, allowed in fields.items():
        if key not in value and allowed and None not in allowed:
            raise TokenizerError(f"{place}.{key} is missing")
    return value


def _shown(value: Any) -> str:
    return reprlib.repr(value)


def _parse_merges(merges: Any) -> list[Merge]:
    if not isinstance(merges, list):
        raise TokenizerError("model.merges must be a list")
    rows = []
    for number, entry in enumerate(merges, start=1):
        parts = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) and p for p in parts):
            raise TokenizerError(f"merge {number}: expected two parts, found {_shown(entry)}")
        rows.append((f"merge {number}", parts[0], parts[1]))
    return rows


def _parse_added(added: Any, vocab: Mapping[str, int]) -> dict[str, int]:
    """The special tokens; ``tokenizers`` gives them ids of the vocabulary or the next, whatever it reads."""
    if not isinstance(added, list | None):
        raise TokenizerError("added_tokens must be a list")
    found: dict[str, int] = {}
    normalized: dict[bool, list[str]] = {False: [], True: []}
    for position, entry in enumerate(added or []):
        place = f"added token {position}"
        content, index = (entry.get("content"), entry.get("id")) if isinstance(entry, dict) else (None, None)
        if type(index) is not int or not isinstance(content, str):
            raise TokenizerError(f"{place} needs an integer id and a text")
        _check(entry, _ADDED, f"{place} {_shown(content)}")
        following = max([len(vocab), *(index + 1 for index in found.values())])
        if content in found or index != vocab.get(content, following):
            other = "given twice" if content in found else f"not {vocab.get(content, following)}"
            raise TokenizerError(f"{place}, {_shown(content)} with id {index}, is {other}")
        found[content] = index
        normalized[entry["normalized"]].append(content)
    # those that are not normalized are looked for first, wherever they stand
    for one in normalized[True]:
        for other in normalized[False]:
            if _overlap(one, other) or _overlap(other, one):
                raise TokenizerError(f"added tokens {one!r} and {other!r} overlap; one is normalized")
    return found


def _overlap(one: str, other: str) -> bool:
    return other in one or any(one.endswith(other[:n]) for n in range(1, len(other)))


def _steps(document: Mapping[str, Any], part: str, key: str) -> list[Any]:
    """The steps of a part that is a sequence, or the only one."""
    value = document.get(part)
    if not isinstance(value, dict) or value.get("type") != "Sequence":
        return [] if value is None else [value]
    steps = value.get(key)
    if value.keys() != {"type", key} or not isinstance(steps, list):
        raise TokenizerError(f"{part}: a Sequence must have its {key} and nothing else")
    return steps


def _check_post_processor(step: Any) -> None:
    """Ids stay as they are: ByteLevel moves offsets alone, and a template may hold the text alone."""
    if not isinstance(step, dict) or step.get("type") != "TemplateProcessing":
        _check(step, _BYTE_LEVEL, "post_processor")
        return
    _check(step, _TEMPLATE, "post_processor")
    match step.get("single"):
        case [{"Sequence": {"id": "A"}, **others}] if not others:
            return
    raise TokenizerError("post_processor.single adds tokens to the text")


def _parse_pattern(document: Mapping[str, Any]) -> str:
    chain = _steps(document, "pre_tokenizer", "pretokenizers")
    kinds = [step.get("type") if isinstance(step, dict) else None for step in chain]
    if not kinds or kinds[-1] != "ByteLevel" or kinds[:-1] not in ([], ["Split"]):
        raise TokenizerError(f"pre_tokenizer {kinds} is not ByteLevel, alone or after one Split")
    uses_regex = _check(chain[-1], _BYTE_LEVEL_CUT, "pre_tokenizer").get("use_regex")
    uses_regex = uses_regex is None or uses_regex
    if len(chain) == 1:
        return "gpt2" if uses_regex else "none"
    match _check(chain[0], _SPLIT, "pre_tokenizer").get("pattern"):
        case {"Regex": str(expression), **others} if not others and not uses_regex:
            return resolve_pattern(expression)
    raise TokenizerError("pre_tokenizer Split must cut by a Regex, before a plain ByteLevel")
