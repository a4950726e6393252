"""Speech: log-mel features, Whisper's encoder, a training step, decoding; beside `transformers`.

Random weights, in PyTorch the same. On one CPU core: features of a 30 s clip beside the published
extractor; the encoder of tiny.en on one clip; a step of the whole model (batch 4, 184 tokens, an
encoder of 4 layers, a language model of 6) with the encoder's frames cached and without, beside the
times of the published code; 64 tokens with a cache and with the prompt run anew for every token. On
a GPU: a large-v2-shaped encoder and a decoder of 7 billion in bfloat16.
"""

# PyTorch is optional:
# pyright: reportMissingImports=false
from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.decoder import LLAMA, LLAMA_7B
from benchmarks.harness import (
    Row,
    Settings,
    Work,
    prepare_jax,
    prepare_torch,
    reference,
    time_in_turns,
)
from jaxmethods.data.log_mel import LogMelConfig, log_mel
from jaxmethods.lsm.config import ConnectorConfig, TuneConfig
from jaxmethods.lsm.connector import connect, init_connector
from jaxmethods.lsm.method import Data, tuner
from jaxmethods.lsm.model import IGNORED, Model, Text, assemble, respond
from jaxmethods.models import decoder, whisper
from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.qformer import QFormerConfig
from jaxmethods.models.whisper.config import EncoderConfig

TINY = EncoderConfig(width=384, layers=4, heads=6, mlp_width=1536)
LARGE = EncoderConfig()
SMALL_LLAMA = LLAMA.model_copy(update={"vocab_size": 8000, "layers": 6})


class Sizes(NamedTuple):
    """How large everything is."""

    encoder: EncoderConfig = TINY
    language_model: DecoderConfig = SMALL_LLAMA
    connector: ConnectorConfig = ConnectorConfig(policy="fixed", qformer=QFormerConfig(dropout=0.0))
    batch: int = 4
    prefix: int = 48
    suffix: int = 47
    new_tokens: int = 64
    clips: int = 8
    """Clips whose features are computed at once."""
    dtype: Any = jnp.float32


TRIAL = Sizes(
    EncoderConfig(n_mels=8, width=8, layers=1, heads=2, mlp_width=8, positions=20),
    LLAMA.model_copy(
        update={"vocab_size": 32, "width": 8, "mlp_width": 8, "layers": 1, "heads": 2}
        | {"kv_heads": 2, "head_dim": 4, "rotary_dim": 4}
    ),
    ConnectorConfig(policy="fixed", qformer=QFormerConfig(width=8, heads=2, mlp_width=8, layers=1)),
    batch=2,
    prefix=4,
    suffix=8,
    new_tokens=3,
    clips=1,
)
"""For tests."""
GPU = Sizes(LARGE, LLAMA_7B, batch=8, clips=64, dtype=jnp.bfloat16)


def rows(settings: Settings) -> Iterator[Row]:
    """All of them."""
    sizes = Sizes() if jax.default_backend() == "cpu" else GPU
    yield features(settings, sizes)
    yield listening(settings, sizes)
    if jax.default_backend() == "cpu":  # a step of 7 billion wants several cards
        yield from steps(settings, sizes)
    yield from decoding(settings, sizes)


def features(settings: Settings, sizes: Sizes) -> Row:
    """Log-mel of several clips at once, beside the published extractor on PyTorch."""
    waves = 0.1 * np.random.default_rng(0).standard_normal((sizes.clips, 480_000))
    waves = waves.astype(np.float32)
    works = [prepare_jax(lambda x: log_mel(x, LogMelConfig(n_mels=sizes.encoder.n_mels)), waves)]
    theirs = None
    if find_spec("transformers") is not None:
        theirs = prepare_torch(lambda device: torch_features(waves, sizes, device), settings)
    timings = time_in_turns([*works, *([theirs] if theirs else [])], settings)
    return Row(
        name="lsm/log_mel",
        sizes={"clips": sizes.clips, "seconds": 30, "bins": sizes.encoder.n_mels},
        work=sizes.clips,
        unit="clips/s",
        ours=timings[0],
        torch=timings[1] if theirs else None,
        reference=reference("lsm/log_mel"),
        note=f"{1000 * timings[0].median / sizes.clips:.1f} ms a clip",
    )


def torch_features(waves: np.ndarray, sizes: Sizes, device: str) -> Callable[[], Any]:
    """The feature extractor of `transformers`."""
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=sizes.encoder.n_mels)
    clips = list(waves)
    return lambda: extractor(clips, sampling_rate=16_000, return_tensors="np", device=device)


def listening(settings: Settings, sizes: Sizes) -> Row:
    """The encoder on one clip of 30 s, beside `transformers`."""
    params = jax.jit(lambda key: whisper.init_encoder(key, sizes.encoder, sizes.dtype))(
        jax.random.key(0)
    )
    shape = (1, sizes.encoder.n_mels, 2 * sizes.encoder.positions)
    x = jax.random.normal(jax.random.key(1), shape)
    works = [
        prepare_jax(lambda params, x: whisper.encode(params, sizes.encoder, x).last, params, x)
    ]
    theirs = None
    if find_spec("transformers") is not None:
        theirs = prepare_torch(lambda device: torch_encoder(params, x, sizes, device), settings)
    timings = time_in_turns([*works, *([theirs] if theirs else [])], settings)
    return Row(
        name="lsm/encode",
        sizes={"width": sizes.encoder.width, "layers": sizes.encoder.layers}
        | {"dtype": jnp.dtype(sizes.dtype).name},
        work=1,
        unit="clips/s",
        ours=timings[0],
        torch=timings[1] if theirs else None,
    )


def torch_encoder(params: Any, x: jax.Array, sizes: Sizes, device: str) -> Callable[[], Any]:
    """The encoder of `transformers` with our weights, read from a folder.

    Args:
        params: the encoder's.
        x: features [1, M, F].
        sizes: of the encoder.
        device: "cpu" or "cuda".

    Returns:
        A call that gives the frames.
    """
    import torch
    from transformers import WhisperModel

    own = sizes.encoder
    raw = {
        "model_type": "whisper",
        "d_model": own.width,
        "encoder_layers": own.layers,
        "encoder_attention_heads": own.heads,
        "encoder_ffn_dim": own.mlp_width,
        "decoder_layers": 1,
        "decoder_attention_heads": 1,
        "decoder_ffn_dim": 8,
        "num_mel_bins": own.n_mels,
        "max_source_positions": own.positions,
        "max_target_positions": 8,
        "vocab_size": 8,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "decoder_start_token_id": 1,
    }
    config = whisper.read_config(raw)
    whole = whisper.init_params(jax.random.key(0), config, sizes.dtype) | {"encoder": params}
    with tempfile.TemporaryDirectory() as place:
        whisper.save(Path(place) / "model", raw, config, whole)
        model: Any = WhisperModel.from_pretrained(Path(place) / "model").eval()
    model = model.to(device)
    given = torch.tensor(np.asarray(x)).to(device, next(model.parameters()).dtype)

    def call() -> Any:
        with torch.no_grad():
            return model.encoder(given).last_hidden_state

    return call


def random_data(sizes: Sizes) -> Data:
    """As many rows as a batch has, all of full length."""
    keys = jax.random.split(jax.random.key(2), 3)
    shapes = (sizes.batch, sizes.prefix), (sizes.batch, sizes.suffix)
    prefix, suffix = (
        jax.random.randint(key, shape, 3, sizes.language_model.vocab_size)
        for key, shape in zip(keys, shapes, strict=False)
    )
    labels = suffix.at[:, :6].set(IGNORED)
    text = Text(prefix, jnp.ones(shapes[0], bool), suffix, jnp.ones(shapes[1], bool), labels)
    positions = sizes.encoder.positions
    return Data(
        0.1 * jax.random.normal(keys[2], (sizes.batch, positions, sizes.encoder.width)),
        jnp.full(sizes.batch, positions),
        text,
        jnp.arange(sizes.batch),
        jnp.ones(sizes.batch),
        jax.jit(lambda key: decoder.init_params(key, sizes.language_model, sizes.dtype))(keys[0]),
    )


def steps(settings: Settings, sizes: Sizes) -> Iterator[Row]:
    """A training step with the encoder's frames kept, and one that computes them."""
    config = TuneConfig(batch=sizes.batch, warmup=0)
    model = Model(sizes.connector, sizes.language_model)
    method = tuner(model, optax.adamw(1e-5), config, sizes.encoder.width)
    encoder = jax.jit(lambda key: whisper.init_encoder(key, sizes.encoder))(jax.random.key(0))
    shape = (sizes.batch, sizes.encoder.n_mels, 2 * sizes.encoder.positions)
    x = jax.random.normal(jax.random.key(1), shape)
    data = random_data(sizes)

    def whole(state: Any, encoder: Any, x: jax.Array, data: Data) -> Any:
        return method.step(
            state, data._replace(frames=whisper.encode(encoder, sizes.encoder, x).last)
        )

    init = jax.jit(method.init)
    states = [init(jax.random.key(0), data) for _ in range(2)]
    works = {
        "lsm/step_cached": prepare_jax(method.step, states[0], data, donate=(0,)),
        "lsm/step": prepare_jax(whole, states[1], encoder, x, data, donate=(0,)),
    }
    timings = time_in_turns(list(works.values()), settings)
    tokens = sizes.prefix + sizes.suffix + -(-sizes.encoder.positions // 17)
    for name, timing in zip(works, timings, strict=True):
        published = reference("lsm/step")
        assert published is not None
        yield Row(
            name=name,
            sizes={"batch": sizes.batch, "tokens": tokens},
            work=sizes.batch,
            unit="rows/s",
            ours=timing,
            reference=published,
            note=f"{timing.median * published['rate'] / sizes.batch:.2f}x the published time",
        )


def decoding(settings: Settings, sizes: Sizes) -> Iterator[Row]:
    """New tokens behind speech: with a cache, and with everything run anew for every token."""
    data = random_data(sizes._replace(batch=1))
    params = data.language_model
    width = sizes.language_model.width
    connector = init_connector(jax.random.key(3), sizes.connector, sizes.encoder.width, width)
    speech = jax.jit(lambda: connect(connector, sizes.connector, data.frames, data.lengths))()
    text = Text(*data.text[:2], *(leaf[:, :6] for leaf in data.text[2:]))

    def cached(params: Any) -> jax.Array:
        return respond(
            params, sizes.language_model, speech, text, new_tokens=sizes.new_tokens, end=-1
        ).tokens

    def anew(params: Any) -> jax.Array:
        rows = assemble(params, speech, text)
        length = rows.embeds.shape[1]
        room = ((0, 0), (0, sizes.new_tokens), (0, 0))
        embeds = jnp.pad(rows.embeds, room)

        def one(number: jax.Array, given: tuple[jax.Array, jax.Array]) -> tuple:
            embeds, tokens = given
            last = (length + number - 1)[None, None]
            logits = decoder.forward(
                params, sizes.language_model, inputs_embeds=embeds, logits_at=last
            ).logits
            token = jnp.argmax(logits[0, 0])
            new = params["embed"]["tokens"][token][None, None]
            place = (0, length + number, 0)
            return jax.lax.dynamic_update_slice(embeds, new, place), tokens.at[number].set(token)

        nothing = jnp.zeros(sizes.new_tokens, jnp.int32)
        return jax.lax.fori_loop(0, sizes.new_tokens, one, (embeds, nothing))[1]

    loose = decoder.unstack_layers(params)
    works: list[Work] = [prepare_jax(cached, loose), prepare_jax(anew, params)]
    timings = time_in_turns(works, settings)
    yield Row(
        name="lsm/respond",
        sizes={"width": width, "layers": sizes.language_model.layers, "new": sizes.new_tokens}
        | {"prompt": sizes.prefix + speech.mask.shape[1] + 6},
        work=sizes.new_tokens,
        unit="tokens/s",
        ours=timings[0],
        note=f"{timings[1].median / timings[0].median:.1f}x as fast as without a cache",
    )
