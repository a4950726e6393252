"""python docs/examples/teach_decoder.py MANIFEST FOLDER: a small language model, in a minute.

A self-powered speech-text model needs a language model that follows instructions about text. Where
none of billions fits, this teaches a small one: rows of a manifest (`text`, `intent`, `keyword` or
`keywords`, `sentiment`; no audio is read), asked in the wordings of `method: lsm_recordings`.
FOLDER then is `language.path` there, with `template: plain`. Without arguments: five sentences, and
a folder that is thrown away.
"""

import json
import re
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmethods.language.next_token import Tokens, next_token_loss
from jaxmethods.lsm.augmentation import INSTRUCTIONS
from jaxmethods.lsm.prompts import TEMPLATES, padded
from jaxmethods.models import decoder
from jaxmethods.models.decoder.config import DecoderConfig

SPECIAL = ("<unk>", "</s>")
END = 1
KINDS = ("transcription", "repetition", "intent", "keyword", "sentiment")
WORD = r"\n|\w+|[^\w\s]"
PLAIN = TEMPLATES["plain"]
ROWS = [
    {"text": "play some jazz", "intent": "music", "keyword": "jazz", "sentiment": "neutral"},
    {"text": "i hate this rock song", "intent": "opinion", "keyword": "rock", "sentiment": "bad"},
    {"text": "call anna now", "intent": "call", "keyword": "anna", "sentiment": "neutral"},
    {"text": "i love jazz", "intent": "opinion", "keyword": "jazz", "sentiment": "good"},
    {"text": "please call peter", "intent": "call", "keyword": "peter", "sentiment": "neutral"},
]


class Sizes(NamedTuple):
    width: int = 64
    mlp_width: int = 192
    layers: int = 2
    heads: int = 4


def answer(row: dict, kind: str) -> str:
    said = row["text"] if kind in ("transcription", "repetition") else row.get(kind)
    said = said or row["keywords"]  # `keyword` and `keywords` are one field
    return f"{said.replace('_', ' ')} ."


def write_tokenizer(folder: Path, words: list[str]) -> None:
    added = [
        {"id": place, "content": word, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for place, word in enumerate(SPECIAL)
    ]
    vocabulary = {word: place for place, word in enumerate(words)}
    split = {"type": "Split", "pattern": {"Regex": WORD}, "behavior": "Removed", "invert": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
        "pre_tokenizer": split,
    } | dict.fromkeys(("normalizer", "post_processor", "decoder", "truncation", "padding"))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": END}))


def main(manifest: str = "", folder: str = "", steps: int = 800) -> float:
    lines = Path(manifest).read_text().splitlines() if manifest else map(json.dumps, ROWS)
    rows = {row["text"]: row for row in map(json.loads, lines)}.values()  # a sentence once
    asked = [
        (PLAIN.render_text_prompt(wording, row["text"]), answer(row, kind))
        for row in rows for kind in KINDS for wording in INSTRUCTIONS[kind]
    ]  # fmt: skip
    found = {word: None for pair in asked for text in pair for word in re.findall(WORD, text)}
    words = [*SPECIAL, *found]
    number = {word: place for place, word in enumerate(words)}
    prompts = [[number[word] for word in re.findall(WORD, text)] for text, _ in asked]
    answers = [[*(number[word] for word in re.findall(WORD, text)), END] for _, text in asked]
    pairs = list(zip(prompts, answers, strict=True))
    ids, there = padded([a + b for a, b in pairs], END, max(len(a + b) for a, b in pairs))
    learned = there & (np.arange(ids.shape[1]) >= np.array([[len(a)] for a in prompts]))
    data = Tokens(jnp.asarray(ids), jnp.asarray(learned))

    config = DecoderConfig.llama(len(words), Sizes(), max_positions=1024)
    params = decoder.init_params(jax.random.key(0), config)
    # Kernels of the usual deviation, 0.02, are too small for so small a model.
    larger = partial(jax.tree.map, lambda leaf: leaf * (6 if leaf.ndim == 3 else 1))
    params |= {"layers": larger(params["layers"])}
    schedule = optax.cosine_onecycle_schedule(steps, 3e-3)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))

    def loss(params, rows):
        return next_token_loss(decoder.forward(params, config, rows.ids[:, :-1]).logits, rows)

    def step(carry, key):
        params, moments = carry
        drawn = jax.random.randint(key, (48,), 0, len(data.ids))
        value, gradient = jax.value_and_grad(loss)(params, jax.tree.map(lambda x: x[drawn], data))
        updates, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    keys = jax.random.split(jax.random.key(1), steps)
    (params, _), _ = jax.jit(partial(jax.lax.scan, step))((params, optimizer.init(params)), keys)

    some = np.random.default_rng(0).permutation(len(asked))[:200]
    given, mask = padded([prompts[place] for place in some], END, max(map(len, prompts)))
    said = decoder.generate(
        params, config, jnp.asarray(given), mask=jnp.asarray(mask), new_tokens=16, end=END, pad=END
    )
    pairs = zip(np.asarray(said.tokens), np.asarray(said.lengths), some, strict=True)
    right = float(np.mean([row[:size].tolist() == answers[n] for row, size, n in pairs]))
    with tempfile.TemporaryDirectory() as nowhere:
        place = Path(folder or Path(nowhere) / "decoder")
        decoder.save(place, config, params)
        write_tokenizer(place, words)
    print(f"{len(rows)} sentences, {len(words)} words: {right:.3f} of the answers are exact")
    return right


if __name__ == "__main__":
    main(*sys.argv[1:3])
