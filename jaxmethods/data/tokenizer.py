"""From texts to token ids and back: a model's own `tokenizer.json`, our own pairs, plain bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from jaxmethods.data.bpe import BEGIN, END, Bpe, Codec
from jaxmethods.errors import UserError, import_extra
from jaxmethods.files import is_file, no_folder, refusals

Tokenize: TypeAlias = Callable[[Sequence[str]], list[list[int]]]
"""Texts -> token ids of each, with what the tokenizer adds by default (a first token, say)."""

BYTE_BEGIN = 1
_FIRST_BYTE = 3


class TokenizerError(UserError):
    """A tokenizer that can't be used."""


def load_tokenizer(folder: str | Path) -> Tokenize:
    """The tokenizer of a model folder, `tokenizer.json`, through the package `tokenizers`.

    Raises:
        TokenizerError: no such folder, no tokenizer in it, or it can't be read; when called, a text
            that has words it doesn't know and no token for them.
        MissingExtraError: `tokenizers` is not installed.
    """
    file = Path(folder) / "tokenizer.json"
    if not file.parent.is_dir():
        raise TokenizerError(no_folder(file.parent))
    if not file.is_file():
        raise TokenizerError(
            f"model {folder}: holds no tokenizer.json; write one with "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder) of transformers"
        )
    tokenizer = _read(file)

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        try:
            return [encoded.ids for encoded in tokenizer.encode_batch(list(texts))]
        except Exception as error:
            raise TokenizerError(f"tokenizer {file}: cannot write the texts ({error})") from error

    return tokenize


def byte_tokenizer(texts: Sequence[str]) -> list[list[int]]:
    """UTF-8 bytes behind a first token: ids in [0, 259), where 0 to 2 are special."""
    return [[BYTE_BEGIN, *(_FIRST_BYTE + byte for byte in text.encode())] for text in texts]


class Tokenizer(NamedTuple):
    """Texts in and out of a language model."""

    encode: Callable[[Sequence[str]], list[list[int]]]
    """Texts -> ids, without special tokens."""
    decode: Callable[[Sequence[Sequence[int]]], list[str]]
    """Ids -> texts, without special tokens."""
    tokens: Mapping[str, int]
    """All tokens and their ids."""
    begin: int | None
    """What a text begins with; None: nothing."""
    end: int
    """What ends an answer."""
    files: Mapping[str, str]
    """What a model's folder holds of it."""
    others: tuple[int, ...] = ()
    """Further tokens that end an answer where a model writes one: those of chats, say."""

    @property
    def ends(self) -> tuple[int, ...]:
        """All tokens that end an answer."""
        return (self.end, *self.others)


def own_tokenizer(bpe: Bpe) -> Tokenizer:
    """Our own pairs, which need no package.

    Args:
        bpe: trained with `train_bpe`.

    Returns:
        The tokenizer, with the files that `transformers` reads.
    """
    codec = Codec(bpe)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    return Tokenizer(
        lambda texts: [codec.encode(text) for text in texts],
        lambda rows: [codec.decode(row) for row in rows],
        codec.tokens,
        BEGIN,
        END,
        {
            "tokenizer.json": bpe.as_json() + "\n",
            "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
        },
    )


def folder_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a model folder, with the tokens that begin a text and end an answer.

    Args:
        folder: holds `tokenizer.json`; `config.json`, `generation_config.json` or
            `tokenizer_config.json` says which token ends.

    Returns:
        The tokenizer, through the package `tokenizers`.

    Raises:
        TokenizerError: there is none, it can't be read, or nothing says which token ends.
        MissingExtraError: `tokenizers` is not installed.
    """
    folder = Path(folder)
    load_tokenizer(folder)  # says what is wrong
    tokenizer = _read(folder / "tokenizer.json")
    tokens = tokenizer.get_vocab(with_added_tokens=True)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [x.ids for x in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(rows: Sequence[Sequence[int]]) -> list[str]:
        return tokenizer.decode_batch([list(row) for row in rows], skip_special_tokens=True)

    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    files = {name: _text(folder / name) for name in names if is_file(folder / name)}
    end, *others = _ends(folder, tokens)
    return Tokenizer(encode, decode, tokens, _begin(tokenizer), end, files, tuple(others))


def _begin(tokenizer: Any) -> int | None:
    """What is put in front of a text: around an empty one, what is put behind looks the same."""
    if not tokenizer.encode("", add_special_tokens=True).ids:
        return None
    found = tokenizer.encode("a", add_special_tokens=True)
    return found.ids[0] if found.special_tokens_mask[0] else None


def _read(file: Path) -> Any:
    tokenizers: Any = import_extra("tokenizers", "lm")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises plain exceptions
        raise TokenizerError(f"tokenizer {file}: cannot be read ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _text(file: Path) -> str:
    """The text of a file in UTF-8, whatever the encoding of the machine is."""
    with refusals(file, "read"):
        content = file.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"model {file}: is not UTF-8 text") from error


def _ends(folder: Path, tokens: Mapping[str, int]) -> list[int]:
    """The tokens that end an answer, where one of a model's files says them.

    Where several do (Llama 3 ends a text and a turn by different ones), the tokenizer's own is the
    first: answers that are learned from end with it.
    """
    own = _named_ends(folder / "tokenizer_config.json", "eos_token", tokens)
    for name in ("generation_config.json", "config.json"):
        found = _named_ends(folder / name, "eos_token_id", tokens)
        if found:
            return sorted(found, key=lambda token: token not in own)
    if not own:
        raise TokenizerError(
            f"model {folder}: nothing says which token ends an answer; write eos_token_id into its "
            "config.json"
        )
    return own


def _named_ends(file: Path, field: str, tokens: Mapping[str, int]) -> list[int]:
    """The tokens of a field of a JSON file; none where there is no such file or field."""
    if not is_file(file):
        return []
    text = _text(file)
    try:
        value = json.loads(text).get(field)
    except (ValueError, AttributeError, RecursionError) as error:
        raise TokenizerError(f"model {file}: is not a JSON object") from error
    found = []
    for one in value if isinstance(value, list) else [value]:
        one = one.get("content") if isinstance(one, dict) else one
        one = tokens.get(one) if isinstance(one, str) else one
        if isinstance(one, int) and not isinstance(one, bool):
            found.append(one)
    return list(dict.fromkeys(found))
