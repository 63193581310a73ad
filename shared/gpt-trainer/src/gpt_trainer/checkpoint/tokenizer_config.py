"""``tokenizer_config.json``: what ``transformers`` must be told to read ``tokenizer.json`` as it stands.

Without it ``AutoTokenizer`` goes by the model's type and makes a GPT-2 tokenizer, which cuts text by
GPT-2's pattern whatever the file says.
"""

from __future__ import annotations

import json

from bpe_scratch.special import END_OF_TEXT


def end_of_text_id(tokenizer_json: bytes) -> int | None:
    """The id of the end-of-text token in a ``tokenizer.json``; None if it has none.

    Raises:
        ValueError: If it is not a tokenizer's.
    """
    try:
        added = json.loads(tokenizer_json).get("added_tokens") or []
        found = {token["content"]: token["id"] for token in added}.get(END_OF_TEXT)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"tokenizer_json is not a tokenizer's: {error}") from None
    return found if isinstance(found, int) else None


def tokenizer_config_to_json(tokenizer_json: bytes) -> bytes:
    """The content of ``tokenizer_config.json``: the class that follows the file, and what the end of text is.

    Raises:
        ValueError: If that is not a tokenizer's.
    """
    roles = () if end_of_text_id(tokenizer_json) is None else ("bos_token", "eos_token", "pad_token")
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
        # the same token closes a document, opens the next, and fills up rows, where it is masked
        **dict.fromkeys(roles, END_OF_TEXT),
    }
    return json.dumps(values, indent=2).encode() + b"\n"
