"""Trained models as folders that `transformers` opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax

from jaxmethods.data.bpe import PAD
from jaxmethods.data.tokenizer import Tokenizer
from jaxmethods.files import write_atomically
from jaxmethods.kid.recipes.learning import Learned
from jaxmethods.kid.recipes.models import Model
from jaxmethods.models import decoder


def save_models(
    folder: Path, model: Model, learned: Learned, tokenizer: Tokenizer, seeds: int
) -> None:
    """Writes every seed's model: `folder`, or `folder_0`, `folder_1`, ... where there are several.

    Args:
        folder: where it goes.
        model: what was trained.
        learned: with an axis of seeds.
        tokenizer: what the model reads and writes.
        seeds: S.
    """
    for seed in range(seeds):
        own = jax.tree.map(lambda leaf, seed=seed: leaf[seed], learned)
        place = folder if seeds == 1 else folder.with_name(f"{folder.name}_{seed}")
        save_model(place, model, own, tokenizer)


def save_model(folder: Path, model: Model, learned: Learned, tokenizer: Tokenizer) -> None:
    """Writes a model with its tokenizer, or its adapters alone where the config says so.

    Args:
        folder: must not exist, or be empty.
        model: what was trained.
        learned: of one seed.
        tokenizer: what the model reads and writes.

    Raises:
        HubError: the family can't keep adapters apart.
        FileError: the folder can't be written.
    """
    adapters, source = model.adapters, model.settings.path
    folder.parent.mkdir(parents=True, exist_ok=True)
    if adapters is not None and adapters.save == "adapter":
        decoder.peft.save_adapter(
            folder,
            model.config,
            learned.adapters,
            alpha=adapters.alpha,
            base=Path(source or "").absolute(),
        )
        return
    decoder.save(folder, model.config, learned.params, like=source)
    for name, text in tokenizer.files.items():
        write_atomically(folder / name, text)
    if source is None:
        ids: dict[str, Any] = {"eos_token_id": tokenizer.end, "pad_token_id": PAD}
        ids |= {} if tokenizer.begin is None else {"bos_token_id": tokenizer.begin}
        write_atomically(folder / "generation_config.json", json.dumps(ids, indent=2) + "\n")
