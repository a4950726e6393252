"""From texts to token ids: a model's own `tokenizer.json`, or plain bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from jaxmethods.errors import UserError, import_extra

Tokenize: TypeAlias = Callable[[Sequence[str]], list[list[int]]]
"""Texts -> token ids of each, with what the tokenizer adds by default (a first token, say)."""

BYTE_BEGIN = 1
_FIRST_BYTE = 3


class TokenizerError(UserError):
    """A tokenizer that can't be used."""


def load_tokenizer(folder: str | Path) -> Tokenize:
    """The tokenizer of a model folder, `tokenizer.json`, through the package `tokenizers`.

    Raises:
        TokenizerError: there is none, or it can't be read; when called, a text that has words
            it doesn't know and no token for them.
        MissingExtraError: `tokenizers` is not installed.
    """
    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        raise TokenizerError(
            f"model {folder}: holds no tokenizer.json; write one with "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder) of transformers"
        )
    tokenizers: Any = import_extra("tokenizers", "lm")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises plain exceptions
        raise TokenizerError(f"tokenizer {file}: cannot be read ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        try:
            return [encoded.ids for encoded in tokenizer.encode_batch(list(texts))]
        except Exception as error:
            raise TokenizerError(f"tokenizer {file}: cannot write the texts ({error})") from error

    return tokenize


def byte_tokenizer(texts: Sequence[str]) -> list[list[int]]:
    """UTF-8 bytes behind a first token: ids in [0, 259), where 0 to 2 are special."""
    return [[BYTE_BEGIN, *(_FIRST_BYTE + byte for byte in text.encode())] for text in texts]
