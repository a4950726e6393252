"""A decoder language model: prefill and greedy decoding, beside `transformers`.

On CPU a random Llama of 58 million parameters (8 layers of width 512, vocabulary 32,000) in
float32; on an accelerator one of the shape of Llama 7B in bfloat16. Prefill runs prompts and keeps
their keys and values; decoding continues a short prompt, so that its time is that of reading the
parameters once a token. Both sides give the same tokens, or the benchmark stops.
"""

# PyTorch and transformers are optional:
# pyright: reportMissingImports=false
from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Row, Settings, prepare_jax, prepare_torch, time_in_turns
from jaxmethods.models import decoder, decoder_hub
from jaxmethods.models.decoder_config import DecoderConfig
from jaxmethods.models.generate import generate

SMALL = DecoderConfig(
    family="llama",
    vocab_size=32_000,
    width=512,
    mlp_width=1376,
    layers=8,
    heads=8,
    kv_heads=8,
    head_dim=64,
    rotary_dim=64,
    max_positions=4096,
)
LARGE = SMALL.model_copy(
    update={
        "width": 4096,
        "mlp_width": 11_008,
        "layers": 32,
        "heads": 32,
        "kv_heads": 32,
        "head_dim": 128,
        "rotary_dim": 128,
    }
)
"""Llama 2 7B."""
BATCHES = (1, 8)
PROMPT, SHORT, NEW = 256, 16, 64
"""Tokens of a prompt that is only run, of one that is continued, and of its continuation."""


class Model(NamedTuple):
    """A random decoder for the device at hand."""

    config: DecoderConfig
    dtype: Any
    stacked: Any
    params: Any
    """What is timed: unstacked on CPU, where a scanned layer is copied first."""

    @property
    def layer_size(self) -> int:
        """Parameters of all layers."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.stacked["layers"]))

    @property
    def read_bytes(self) -> int:
        """Of the parameters that a decoded token needs: layers and head."""
        head = self.config.vocab_size * self.config.width
        return (self.layer_size + head) * jnp.dtype(self.dtype).itemsize


def rows(settings: Settings) -> Iterator[Row]:
    """Prefill and decoding at batch 1 and 8."""
    model = make_model()
    for batch in BATCHES:
        yield from compare(settings, model, "prefill", batch)
    for batch in BATCHES:
        yield from compare(settings, model, "decode", batch)


def make_model(config: DecoderConfig | None = None) -> Model:
    """Random parameters, made on the device."""
    accelerated = jax.default_backend() != "cpu"
    config = config or (LARGE if accelerated else SMALL)
    dtype = jnp.bfloat16 if accelerated else jnp.float32
    make = jax.jit(lambda key: decoder.init_params(key, config, dtype))
    stacked = make(jax.random.key(0))
    params = stacked if accelerated else decoder.unstack_layers(stacked)
    return Model(config, dtype, stacked, params)


def compare(settings: Settings, model: Model, what: str, batch: int) -> Iterator[Row]:
    """One row: ours and `transformers` in turns."""
    length = PROMPT if what == "prefill" else SHORT
    ids = jax.random.randint(jax.random.key(1), (batch, length), 3, model.config.vocab_size)
    function = run_prompts if what == "prefill" else continue_prompts
    ours = prepare_jax(partial(function, model.config), model.params, ids)
    with Exported(model) as theirs:
        make = partial(theirs, what, np.asarray(ids))
        torch_work = prepare_torch(make, settings) if has_transformers() else None
        if torch_work:
            check_same(jax.jit(partial(function, model.config))(model.params, ids), theirs.result)
        works = [ours, *([torch_work] if torch_work else [])]
        timings = time_in_turns(works, settings)
    tokens = batch * (PROMPT if what == "prefill" else NEW)
    yield Row(
        name=f"decoder/{what}",
        sizes={"batch": batch, "prompt": length, "cores": settings.cores},
        work=tokens,
        unit="tokens/s",
        ours=timings[0],
        torch=timings[1] if torch_work else None,
        note=describe(model, what, batch, timings[0].median),
    )


def run_prompts(config: DecoderConfig, params: Any, ids: jax.Array) -> tuple[jax.Array, Any]:
    """The most likely next token of every prompt, and the cache."""
    last = jnp.full((ids.shape[0], 1), ids.shape[1] - 1)
    outputs = decoder.forward(params, config, ids, logits_at=last, keep_cache=True)
    return jnp.argmax(outputs.logits, -1), outputs.cache


def continue_prompts(config: DecoderConfig, params: Any, ids: jax.Array) -> tuple[jax.Array]:
    """Greedy continuations."""
    return (generate(params, config, ids, new_tokens=NEW).tokens,)


class Exported:
    """The model as `transformers` loads it, from a folder that is there for as long as needed."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.result = np.zeros(0)
        """The tokens that were found."""

    def __enter__(self) -> Exported:
        self.folder = tempfile.TemporaryDirectory()
        return self

    def __exit__(self, *error: object) -> None:
        self.folder.cleanup()

    def load(self, device: str) -> Any:
        from benchmarks import torch_decoder

        path = Path(self.folder.name) / "model"
        if not path.exists():
            decoder_hub.save(path, self.model.config, self.model.stacked)
        return torch_decoder.load(path, device, jnp.dtype(self.model.dtype).name)

    def __call__(self, what: str, ids: np.ndarray, device: str) -> Callable[[], Any]:
        import torch

        from benchmarks import torch_decoder

        model, tokens = self.load(device), torch.as_tensor(ids, device=device).long()
        if what == "prefill":
            call = partial(torch_decoder.prefill, model, tokens)
        else:
            call = partial(torch_decoder.continued, model, tokens, NEW)
        result = call()
        self.result = (result.argmax(-1)[:, None] if what == "prefill" else result).cpu().numpy()
        return call


def check_same(ours: tuple, theirs: np.ndarray) -> None:
    """Raises `RuntimeError` unless the tokens are the same (all but a twentieth in bfloat16)."""
    same = np.mean(np.asarray(ours[0]) == theirs)
    if same < (1.0 if jax.default_backend() == "cpu" else 0.95):
        raise RuntimeError(f"only {same:.0%} of the tokens are those of transformers")


def has_transformers() -> bool:
    return find_spec("transformers") is not None and find_spec("torch") is not None


def describe(model: Model, what: str, batch: int, seconds: float) -> str:
    """What the chip did: arithmetic of a prefill, bytes of parameters read by decoding."""
    if what == "prefill":
        flops = 2 * batch * PROMPT * model.layer_size / seconds
        return f"{flops / 1e9:,.0f} GFLOP/s in the layers' products"
    return f"parameters read at {NEW * model.read_bytes / seconds / 1e9:.1f} GB/s"
