"""Each field of ``tokenizer.json``: reproduced, or without a difference, or refused by name.

Held against ``tokenizers``, which reads the same files.
"""

# ruff: noqa: E501 - a table

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
from bpe_scratch import FileFormatError, Tokenizer, TokenizerError, Vocabulary, train
from bpe_scratch.byte_alphabet import to_printable
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as HuggingFace

TEXT = "The cat's 1234 naïve café\r\n\r\n  sat — 中文 DON'T hELLO. \n <|endoftext|> x\t\t y <sep> ab</s>  "
END = "<|endoftext|>"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPLIT = {"type": "Split", "pattern": {"Regex": r"\s+|\S+"}, "behavior": "Isolated", "invert": False}
PLAIN = BYTE_LEVEL | {"use_regex": False}
TEMPLATE = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {}}  # fmt: skip
SPECIAL = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": END, "type_id": 0}}
TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return json.loads(train([TEXT * 4], 320, special_tokens=(END, "<sep>")).to_json())


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


# where, the values that are reproduced, and those that are refused
FIELDS: list[tuple[str, list[Any], list[Any]]] = [
    ("version", ["1.0"], ["2.0", 1]),
    ("truncation", [None], [{"max_length": 5, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}]),
    ("padding", [None], [{"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}]),
    ("normalizer", [None], [{"type": "NFC"}, {"type": "Sequence", "normalizers": []}, {"type": "Lowercase"}]),
    ("added_tokens", [], [{}, "x", [1], [{"id": 5}], [{"id": "7", "content": "x"}]]),
    ("added_tokens.0.id", [318], [319, 5, 400, -1, True, 318.0]),
    ("added_tokens.0.content", [END], ["", "the", "Ġ", None, "<sep>"]),
    ("added_tokens.0.single_word", [False], [True, None]),
    ("added_tokens.0.lstrip", [False], [True]),
    ("added_tokens.0.rstrip", [False], [True]),
    ("added_tokens.0.normalized", [False, True], [None]),
    ("added_tokens.0.special", [True], [False]),
    ("added_tokens.0.other", [], [1]),
    ("pre_tokenizer", [BYTE_LEVEL, PLAIN, sequence(BYTE_LEVEL), sequence(SPLIT, PLAIN)],
     [None, {"type": "Whitespace"}, sequence(), sequence(SPLIT), sequence(SPLIT, BYTE_LEVEL), sequence(PLAIN, SPLIT),
      sequence(SPLIT, SPLIT, PLAIN), sequence(BYTE_LEVEL) | {"more": 1}, {"type": "Digits", "individual_digits": True}]),
    ("pre_tokenizer.add_prefix_space", [False], [True, None]),
    ("pre_tokenizer.trim_offsets", [True, False], []),
    ("pre_tokenizer.use_regex", [True, False], [1]),
    ("pre_tokenizer.other", [], [1]),
    ("post_processor", [None, BYTE_LEVEL, BYTE_LEVEL | {"trim_offsets": False, "add_prefix_space": True}, TEMPLATE,
                        {"type": "Sequence", "processors": [BYTE_LEVEL, TEMPLATE]}],
     [TEMPLATE | {"single": SPECIAL}, TEMPLATE | {"special_tokens": {END: {"id": END, "ids": [0], "tokens": [END]}}},
      {"type": "RobertaProcessing", "sep": [END, 318], "cls": [END, 318], "trim_offsets": True, "add_prefix_space": False},
      {"type": "BertProcessing", "sep": [END, 318], "cls": [END, 318]}, {"type": "Sequence", "processors": 1}]),
    ("decoder", [BYTE_LEVEL, BYTE_LEVEL | {"add_prefix_space": True, "trim_offsets": False, "use_regex": False}],
     [None, {"type": "Fuse"}, {"type": "WordPiece", "prefix": "##", "cleanup": True}, {"type": "Sequence", "decoders": [BYTE_LEVEL]}]),
    ("model", [], [None, 1]),
    ("model.type", ["BPE"], ["WordPiece", "Unigram", "WordLevel"]),
    ("model.dropout", [None, 0.0], [0.1, 1.0]),
    ("model.unk_token", [None], ["<unk>", END]),
    ("model.continuing_subword_prefix", [None, ""], ["##"]),
    ("model.end_of_word_suffix", [None, ""], ["</w>"]),
    ("model.fuse_unk", [False, True], []),
    ("model.byte_fallback", [False], [True]),
    ("model.ignore_merges", [False, True], ["yes"]),
    ("model.vocab", [], [[], {"a": 1}, None]),
    ("model.merges", [], [{}, [["a"]], [["a", "b"], 7], [["a", ""]], ["a b c"]]),
    ("model.other", [], [1]),
    ("other", [], [1]),
]  # fmt: skip


def put(document: dict[str, Any], where: str, value: Any) -> str:
    changed: Any = copy.deepcopy(document)
    path = where.split(".")
    inside = changed
    for part in path[:-1]:
        inside = inside[int(part)] if isinstance(inside, list) else inside[part]
    inside[path[-1]] = copy.deepcopy(value)
    return json.dumps(changed)


def texts() -> list[str]:
    chance = random.Random(0)
    parts = [END, "<sep>", "the", " cat", "'s", " ", "  ", "\n", "é", "中", "x", "12", "\t", "ab", "</s>"]
    return [TEXT, *("".join(chance.choices(parts, k=9)) for _ in range(60))]


@pytest.mark.parametrize(
    ("where", "value"), [(where, value) for where, reproduced, _ in FIELDS for value in reproduced], ids=str
)
def test_what_is_read_gives_the_same_ids_and_texts(document: dict[str, Any], where: str, value: Any) -> None:
    text = put(document, where, value)
    ours, theirs = Tokenizer.from_json(text), HuggingFace.from_str(text)
    for one in texts():
        ids = theirs.encode(one).ids
        assert ours.encode(one, allowed_special="all") == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    again = Tokenizer.from_json(ours.to_json())
    assert again.encode(TEXT) == ours.encode(TEXT)


@pytest.mark.parametrize(
    ("where", "value"), [(where, value) for where, _, refused in FIELDS for value in refused], ids=str
)
def test_what_is_not_reproduced_is_refused_by_name(document: dict[str, Any], where: str, value: Any) -> None:
    with pytest.raises(FileFormatError) as refused:
        Tokenizer.from_json(put(document, where, value))
    names = {"added_tokens": "added", "vocab": "vocab|token|unmade", "merges": "merge|unmade"}
    top, *rest = where.split(".")
    wanted = (
        [top, rest[-1] if rest else top, "given twice", "token"]
        if top == "added_tokens"
        else [(rest or [top])[-1]]
    )
    wanted += [part for name in wanted for part in names.get(name, "").split("|") if part]
    assert any(name in str(refused.value) for name in wanted), refused.value
    assert str(refused.value).startswith("tokenizer.json: ")
    assert "\n" not in str(refused.value)


def test_every_field_that_tokenizers_writes_has_its_decision(document: dict[str, Any]) -> None:
    model = HuggingFace(models.BPE(vocab={"a": 0}, merges=[]))
    model.add_special_tokens([END])
    model.normalizer = normalizers.NFC()
    model.decoder = decoders.ByteLevel()
    model.pre_tokenizer = pre_tokenizers.ByteLevel()
    model.post_processor = processors.ByteLevel()
    model.enable_padding()
    model.enable_truncation(5)
    written = json.loads(model.to_str())
    known = {where for where, _, _ in FIELDS}
    found = set(written) | {f"added_tokens.0.{key}" for key in written["added_tokens"][0]}
    for part in ("model", "pre_tokenizer"):
        found |= {f"{part}.{key}" for key in written[part] if (part, key) != ("pre_tokenizer", "type")}
    assert found <= known
    split = pre_tokenizers.Split(Regex("a"), "isolated")
    assert json.loads(split.__getstate__()).keys() == SPLIT.keys()
    assert json.loads(processors.TemplateProcessing("$A").__getstate__()).keys() == TEMPLATE.keys()


@pytest.mark.parametrize(
    ("change", "says"),
    [({"behavior": "Removed"}, "behavior"), ({"behavior": "MergedWithNext"}, "behavior"), ({"invert": True}, "invert"),
     ({"pattern": {"String": " "}}, "must cut by a Regex"), ({"pattern": {"Regex": r"\w+"}}, r"\\w"),
     ({"pattern": {"Regex": r"\p{N}{1,3}+"}}, "at character 10"), ({"pattern": {"Regex": "("}}, "not valid")],
)  # fmt: skip
def test_other_splits_are_refused_by_name(
    document: dict[str, Any], change: dict[str, Any], says: str
) -> None:
    with pytest.raises(FileFormatError, match=says):
        Tokenizer.from_json(put(document, "pre_tokenizer", sequence(SPLIT | change, PLAIN)))


# tokens that would be cut out of every text, or in another order
@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ([{"id": 320, "content": "<think>"} | TOKEN | {"special": False}], "'<think>'.special is False"),
        ([{"id": 320, "content": "  "} | TOKEN | {"special": False}], "'  '.special is False"),
        ([{"id": 320, "content": "<mask>"} | TOKEN | {"lstrip": True}], "'<mask>'.lstrip is True"),
        ([{"id": 321, "content": "<a>"} | TOKEN], "'<a>' with id 321, is not 320"),
        ([{"id": 320, "content": "<a>"} | TOKEN, {"id": 320, "content": "<b>"} | TOKEN], "is not 321"),
        ([{"id": 320, "content": "<sep>x"} | TOKEN | {"normalized": True}], "overlap; one is normalized"),
        ([{"id": 320, "content": "p>y"} | TOKEN | {"normalized": True}], "overlap; one is normalized"),
        ([{"id": 320, "content": "<sep>"} | TOKEN], "given twice"),
    ],
)
def test_added_tokens_that_are_not_reproduced(
    document: dict[str, Any], tokens: list[dict[str, Any]], says: str
) -> None:
    with pytest.raises(FileFormatError, match=says):
        Tokenizer.from_json(put(document, "added_tokens", [*document["added_tokens"], *tokens]))


def test_added_tokens_with_ids_of_their_own_are_matched_alike(document: dict[str, Any]) -> None:
    tokens = [{"id": 320, "content": "<a>"} | TOKEN, {"id": 321, "content": "<a>b"} | TOKEN]
    text = put(document, "added_tokens", [*document["added_tokens"], *tokens])
    ours, theirs = Tokenizer.from_json(text), HuggingFace.from_str(text)
    for one in ("x<a>b<a> <a><sep>", "<a>bb", "<<a>>b"):
        assert ours.encode(one, allowed_special="all") == theirs.encode(one).ids


# a token that no merge makes is reached as a whole piece, where pieces skip the merges
@pytest.mark.parametrize("whole", [False, True])
def test_tokens_that_no_merge_makes_are_ordinary(document: dict[str, Any], whole: bool) -> None:
    changed = copy.deepcopy(document)
    changed["model"]["vocab"] |= {"Ġxyz": 320, to_printable(" 中 ".encode()): 321}
    changed["model"]["ignore_merges"] = whole
    text = json.dumps(changed)
    ours, theirs = Tokenizer.from_json(text), HuggingFace.from_str(text)
    for one in ("a xyz xyzz", " 中 ", "xyz"):
        assert ours.encode(one) == theirs.encode(one).ids
    assert ours.decode([320, 321]) == theirs.decode([320, 321])
    with pytest.raises(FileFormatError, match="'中' stands for no byte"):
        Tokenizer.from_json(put(document, "model.vocab.中", 320))


# raw files of stories: the end of text on a line of its own became an ordinary token as well
@pytest.mark.parametrize("pattern", [r"\S+|\s+", "none", "gpt2"])
def test_ordinary_text_never_gives_a_special_id(pattern: str, layer: Any) -> None:
    text = "Once upon.\n<|endoftext|>\n" * 30
    tokenizer = train([text], 400, pattern=pattern, layer=layer)
    loaded = Tokenizer.from_json(tokenizer.to_json())
    for one in (text, END, "x" + END, END[:-1]):
        assert tokenizer.encode(one) == loaded.encode(one)
        assert tokenizer.end_of_text not in tokenizer.encode(one)
    theirs = HuggingFace.from_str(tokenizer.to_json())
    assert theirs.encode(text).ids == tokenizer.encode(text, allowed_special="all")
    assert END.encode() not in tokenizer.vocabulary.id_of_token


def test_a_special_token_is_never_made_by_merges(layer: Any) -> None:
    tokenizer = train(["the the the the cat"], 300, special_tokens=("the",), layer=layer)
    loaded = Tokenizer.from_json(tokenizer.to_json())
    assert tokenizer.encode("the cat") == loaded.encode("the cat")
    assert loaded.special_tokens == tokenizer.special_tokens
    for token in ("a", "é", ""):
        with pytest.raises(TokenizerError, match="is empty or also the name of a single byte"):
            train(["abc"], 300, special_tokens=(token,))


@pytest.mark.parametrize("token", ["a", "ab", "é", "Ġc"])
def test_a_special_token_that_is_an_ordinary_one_is_refused(token: str) -> None:
    ids = Vocabulary.from_merges([]).byte_ids
    known = Vocabulary.from_merges([(ids[97], ids[98]), (ids[32], ids[99])])
    with pytest.raises(TokenizerError, match="is also the ordinary token"):
        Tokenizer(known, special_tokens={token: 300})


# tokenizers would give its id for the piece " d", and decodes it as that, where ours is its own text
def test_a_special_token_that_is_written_as_a_whole_piece_is_refused(document: dict[str, Any]) -> None:
    text = put(document, "added_tokens.1.content", "Ġd").replace('"<sep>":', '"Ġd":')
    theirs, ours = HuggingFace.from_str(text), Tokenizer.from_json(text)
    assert ours.encode("a d", allowed_special="all") == theirs.encode("a d").ids
    assert (ours.decode([319]), theirs.decode([319], skip_special_tokens=False)) == ("Ġd", " d")
    whole = put(json.loads(text), "model.ignore_merges", True)
    assert 319 in HuggingFace.from_str(whole).encode("a d").ids
    with pytest.raises(FileFormatError, match=r"special token 'Ġd' is written as b' d'"):
        Tokenizer.from_json(whole)
