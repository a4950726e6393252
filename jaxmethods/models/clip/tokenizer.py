"""CLIP's tokenizer: lower-case byte-pair encoding with an end-of-word mark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.errors import import_extra
from jaxmethods.files import no_folder
from jaxmethods.models import hub
from jaxmethods.models.clip.network import CLIPConfig
from jaxmethods.models.hub.folders import read_json

FIRST, LAST = "<|startoftext|>", "<|endoftext|>"
"""What stands around a text."""


def tokenize(
    tokenizer: Any, texts: Sequence[str], config: CLIPConfig
) -> tuple[jax.Array, jax.Array]:
    """Ids and mask [B, L] int32, padded to the longest text; long ones are cut at the end.

    Padding repeats the last token of a text (its end), which the pooled token comes before.

    Args:
        tokenizer: what `load_tokenizer` returns.
        texts: B texts.
        config: sizes of the model.

    Returns:
        Ids and mask, [B, L] int32 each.

    Raises:
        ValueError: no texts, one text instead of a list of them, or a model without a text tower.
    """
    if config.text is None:
        raise ValueError("config: expected a model with a text tower, this is a vision tower alone")
    if isinstance(texts, str) or not len(texts):
        got = f"the text {texts!r:.80}" if isinstance(texts, str) else "none"
        raise ValueError(f"texts: expected a list of at least one text, got {got}")
    longest = config.text.max_position_embeddings
    rows = [tokenizer.encode(text).ids for text in texts]
    rows = [row if len(row) <= longest else [*row[: longest - 1], row[-1]] for row in rows]
    length = max(map(len, rows))
    ids = np.array([row + [row[-1]] * (length - len(row)) for row in rows], np.int32)
    mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows], np.int32)
    return jnp.asarray(ids), jnp.asarray(mask)


def load_tokenizer(path: str | Path) -> Any:
    """The `tokenizers.Tokenizer` of a model folder: `tokenizer.json`, or `vocab.json` with
    `merges.txt`.

    Args:
        path: a model folder.

    Returns:
        The tokenizer.

    Raises:
        MissingExtraError: the `tokenizers` package is not installed.
        HubError: there is no tokenizer, or a damaged one.
    """
    tokenizers = import_extra("tokenizers", "lm")
    path = Path(path)
    try:
        if (path / "tokenizer.json").is_file():
            tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
            tokenizer.no_padding()
            tokenizer.no_truncation()
            return tokenizer
        if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
            return _byte_pair_tokenizer(tokenizers, path)
    except hub.HubError:
        raise
    except Exception as error:  # the package raises bare Exceptions
        raise hub.HubError(f"model {path}: its tokenizer cannot be read ({error})") from error
    if not path.is_dir():
        raise hub.HubError(no_folder(path))
    raise hub.HubError(f"model {path}: holds no tokenizer.json, and no vocab.json with merges.txt")


def _byte_pair_tokenizer(tokenizers: Any, path: Path) -> Any:
    """CLIP's lower-case byte-pair encoding with an end-of-word mark."""
    model = tokenizers.models.BPE.from_file(
        str(path / "vocab.json"),
        str(path / "merges.txt"),
        end_of_word_suffix="</w>",
        continuing_subword_prefix="",
        fuse_unk=False,
        unk_token="<|endoftext|>",
    )
    tokenizer = tokenizers.Tokenizer(model)
    normalizers, splits = tokenizers.normalizers, tokenizers.pre_tokenizers
    space = tokenizers.Regex(r"\s+")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(space, " "), normalizers.Lowercase()]
    )
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = splits.Sequence(
        [
            splits.Split(tokenizers.Regex(words), behavior="removed", invert=True),
            splits.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{FIRST} $A {LAST}",
        special_tokens=[(mark, tokenizer.token_to_id(mark)) for mark in (FIRST, LAST)],
    )
    for content, (number, options) in sorted(_added(path).items(), key=lambda item: item[1][0]):
        tokenizer.add_tokens([tokenizers.AddedToken(content, **options)])
        found = tokenizer.token_to_id(content)
        if number not in (found, -1):
            raise hub.HubError(
                f"model {path}: added token {content!r}: expected id {found}, the next one, "
                f"got {number}"
            )
    return tokenizer


def _added(path: Path) -> dict[str, tuple[int, dict[str, Any]]]:
    """Tokens that no pieces are made of where a text has them: both marks, and those that a model
    was given later. Content -> id (-1: that of the vocabulary) and options."""
    found: dict[str, tuple[int, dict[str, Any]]] = {
        mark: (-1, {"normalized": False, "special": True}) for mark in (FIRST, LAST)
    }
    for content, number in _read(path / "added_tokens.json").items():
        found.setdefault(content, (int(number), {}))
    described = _read(path / "tokenizer_config.json").get("added_tokens_decoder") or {}
    for number, token in described.items():
        names = ("lstrip", "rstrip", "normalized", "single_word", "special")
        options = {name: bool(token[name]) for name in names if name in token}
        found[token["content"]] = int(number), options
    return found


def _read(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file."""
    return read_json(file) if file.is_file() else {}
