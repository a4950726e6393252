"""Language models: tokens a second of prefill and of decoding, beside `transformers`.

Random weights, the same in both, read from one folder; greedy decoding of so many tokens from a
short prompt with a cache, and the logits that follow a long one. Decoding reads every weight for
every token, so it is also given as a share of the bandwidth at which the device copies memory;
prefill on a known accelerator as a share of its peak. On CPU: float32, 58 million parameters. On a
GPU: bfloat16, 7 billion.
"""

# PyTorch is optional:
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

from benchmarks.harness import Row, Settings, Work, prepare_jax, prepare_torch, time_in_turns
from jaxmethods.models import decoder
from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.decoder.generation import Generated, generate

LLAMA = DecoderConfig(
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
QWEN = LLAMA.model_copy(
    update={"family": "qwen2", "kv_heads": 2, "qkv_bias": True, "tied": True, "norm_eps": 1e-6}
)
LLAMA_7B = LLAMA.model_copy(
    update={"width": 4096, "mlp_width": 11008, "layers": 32, "heads": 32, "kv_heads": 32}
    | {"head_dim": 128, "rotary_dim": 128}
)
QWEN_7B = QWEN.model_copy(
    update={"width": 3584, "mlp_width": 18944, "layers": 28, "heads": 28, "kv_heads": 4}
    | {"head_dim": 128, "rotary_dim": 128, "vocab_size": 152_064, "tied": False}
)
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 operations a second, by what the device's kind contains."""


class Sizes(NamedTuple):
    """What is run."""

    prompt: int = 16
    """Tokens before those that are decoded."""
    new: int = 48
    """Tokens decoded."""
    prefill: int = 128
    """Tokens of a prompt of which only the logits at its end are wanted."""
    batches: tuple[int, ...] = (1, 8)


class Model(NamedTuple):
    """A model in memory."""

    config: DecoderConfig
    params: Any
    """On CPU with unstacked layers."""
    theirs: Any
    """The same of `transformers`; None without it."""


def rows(settings: Settings) -> Iterator[Row]:
    """Decoding and prefill for every family and batch."""
    on_cpu = jax.default_backend() == "cpu"
    sizes = Sizes() if on_cpu else Sizes(new=128, prefill=2048)
    for config in (LLAMA, QWEN) if on_cpu else (LLAMA_7B, QWEN_7B):
        yield from family(settings, config, sizes, jnp.float32 if on_cpu else jnp.bfloat16)


def family(settings: Settings, config: DecoderConfig, sizes: Sizes, dtype: Any) -> Iterator[Row]:
    """All rows of one model."""
    model = random_model(config, dtype)
    for batch in sizes.batches:
        decoded = decoding(settings, model, sizes, batch)
        yield decoded
        yield products(settings, model, sizes, batch, decoded)
        yield prefill(settings, model, sizes, batch)


def decoding(settings: Settings, model: Model, sizes: Sizes, batch: int) -> Row:
    """Greedy continuation of `batch` prompts, prompt included on both sides."""
    ids = random_ids(model.config, batch, sizes.prompt)
    run = partial(continued, config=model.config, new=sizes.new)
    works = [prepare_jax(run, model.params, ids), copy_work()]
    theirs = None
    if model.theirs is not None:
        theirs = prepare_torch(lambda device: torch_decoding(model, ids, sizes.new), settings)
    timings = time_in_turns([*works, *([theirs] if theirs else [])], settings)
    ours, copy = timings[:2]
    bandwidth = bytes_read(model, sizes, batch) * sizes.new / ours.median
    return Row(
        name="decoder/decode",
        sizes=described(model, settings, batch=batch, prompt=sizes.prompt, new=sizes.new),
        work=batch * sizes.new,
        unit="tokens/s",
        ours=ours,
        torch=timings[2] if theirs else None,
        note=f"{bandwidth / 1e9:.1f} GB/s, {bandwidth * copy.median / (2 * COPIED):.0%} of a copy",
    )


def products(settings: Settings, model: Model, sizes: Sizes, batch: int, decoded: Row) -> Row:
    """What `batch` rows of one token are multiplied by, alone: every matrix of the model."""
    rng = jax.random.key(0)
    lengths = {kernel.shape[0] for kernel in kernels(model)}
    rows = {length: jax.random.normal(rng, (batch, length)) for length in sorted(lengths)}
    rows = jax.tree.map(lambda x: x.astype(model.params["embed"]["tokens"].dtype), rows)

    def multiply(kernels: list[jax.Array], rows: dict[int, jax.Array]) -> list[jax.Array]:
        return [rows[kernel.shape[0]] @ kernel for kernel in kernels]

    works = [prepare_jax(multiply, kernels(model), rows)]
    theirs = None
    if model.theirs is not None:
        theirs = prepare_torch(lambda device: torch_products(model, rows), settings)
    timings = time_in_turns([*works, *([theirs] if theirs else [])], settings)
    share = timings[0].median * sizes.new / decoded.ours.median
    return Row(
        name="decoder/products",
        sizes=described(model, settings, batch=batch),
        work=batch,
        unit="tokens/s",
        ours=timings[0],
        torch=timings[1] if theirs else None,
        note=f"{share:.0%} of a token of decoding",
    )


def kernels(model: Model) -> list[jax.Array]:
    """All matrices [inputs, outputs] that a token is multiplied by, of unstacked layers."""
    layers = model.params["layers"]
    layers = layers if isinstance(layers, tuple) else decoder.unstack_layers(model.params)["layers"]
    found = [leaf for leaf in jax.tree.leaves(layers) if leaf.ndim == 2]
    tied = model.config.tied
    return [*found, model.params["embed"]["tokens"].T if tied else model.params["head"]["kernel"]]


def torch_products(model: Model, rows: dict[int, jax.Array]) -> Callable[[], Any]:
    """The same products by the linear layers of `transformers`' model."""
    import torch

    found = [one for one in model.theirs.modules() if isinstance(one, torch.nn.Linear)]
    dtype, device = model.theirs.dtype, model.theirs.device
    given = {
        length: torch.tensor(jax.device_get(x.astype(jnp.float32)), dtype=dtype, device=device)
        for length, x in rows.items()
    }

    def run() -> Any:
        with torch.inference_mode():
            return [linear(given[linear.in_features]) for linear in found]

    return run


def prefill(settings: Settings, model: Model, sizes: Sizes, batch: int) -> Row:
    """Logits at the end of `batch` prompts, keys and values kept."""
    ids = random_ids(model.config, batch, sizes.prefill)
    works = [prepare_jax(partial(last_logits, config=model.config), model.params, ids)]
    theirs = None
    if model.theirs is not None:
        theirs = prepare_torch(lambda device: torch_prefill(model, ids), settings)
    timings = time_in_turns([*works, *([theirs] if theirs else [])], settings)
    speed = operations(model.config, sizes.prefill) * batch / timings[0].median
    peak = next((p for kind, p in PEAKS.items() if kind in jax.devices()[0].device_kind), None)
    return Row(
        name="decoder/prefill",
        sizes=described(model, settings, batch=batch, tokens=sizes.prefill),
        work=batch * sizes.prefill,
        unit="tokens/s",
        ours=timings[0],
        torch=timings[1] if theirs else None,
        note=f"{speed / 1e9:,.0f} GFLOP/s" + (f", {speed / peak:.0%} of the peak" if peak else ""),
    )


def continued(params: Any, ids: jax.Array, *, config: DecoderConfig, new: int) -> Generated:
    return generate(params, config, ids, new_tokens=new)


def last_logits(params: Any, ids: jax.Array, *, config: DecoderConfig) -> tuple[jax.Array, Any]:
    last = jnp.full((ids.shape[0], 1), ids.shape[1] - 1)
    outputs = decoder.forward(params, config, ids, logits_at=last, keep_cache=True)
    return outputs.logits, outputs.cache


def random_ids(config: DecoderConfig, batch: int, length: int) -> jax.Array:
    return jax.random.randint(jax.random.key(batch), (batch, length), 3, config.vocab_size)


def random_model(config: DecoderConfig, dtype: Any) -> Model:
    """Random weights, and `transformers`' model that has read them from a folder."""
    init = jax.jit(partial(decoder.init_params, config=config, dtype=dtype))
    params = init(jax.random.key(0))
    theirs = transformers_model(config, params)
    unstacked = decoder.unstack_layers(params) if jax.default_backend() == "cpu" else params
    return Model(config, unstacked, theirs)


def transformers_model(config: DecoderConfig, params: Any) -> Any:
    """The same weights in `transformers`, on JAX's device; None where it is not installed."""
    if find_spec("torch") is None or find_spec("transformers") is None:
        return None
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        return None
    dtype = torch.bfloat16 if params["embed"]["tokens"].dtype == jnp.bfloat16 else torch.float32
    with tempfile.TemporaryDirectory() as folder:
        decoder.save(Path(folder) / "model", config, params)
        read: Any = AutoModelForCausalLM.from_pretrained(Path(folder) / "model", dtype=dtype)
        # Weights stay mapped files until they are copied.
        return read.to(device).eval().apply(_owned)


def torch_decoding(model: Model, ids: jax.Array, new: int) -> Callable[[], Any]:
    """`generate` of `transformers`, which may not stop early."""
    import torch

    prompt = _tensor(ids, model.theirs.device)
    options = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new}
    options["attention_mask"] = torch.ones_like(prompt)

    def run() -> Any:
        with torch.inference_mode():
            return model.theirs.generate(prompt, pad_token_id=0, **options)[:, prompt.shape[1] :]

    return run


def torch_prefill(model: Model, ids: jax.Array) -> Callable[[], Any]:
    """The forward pass of `transformers` with a cache, and logits at the end only."""
    import torch

    prompt = _tensor(ids, model.theirs.device)

    def run() -> Any:
        with torch.inference_mode():
            return model.theirs(prompt, use_cache=True, logits_to_keep=1).logits

    return run


COPIED = 2**28
"""Bytes of the copy that memory bandwidth is measured with; it reads and writes them."""


def copy_work() -> Work:
    """What the device's memory gives: an array is read and written in place."""
    return prepare_jax(lambda x: x + 1.0, jnp.zeros(COPIED // 4, jnp.float32), donate=(0,))


def bytes_read(model: Model, sizes: Sizes, batch: int) -> float:
    """Bytes that one decoding step must read: all weights that are multiplied, and the cache."""
    config = model.config
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    embedding = model.params["embed"]["tokens"]
    if not config.tied:
        weights -= embedding.nbytes
    token = 2 * config.layers * config.kv_heads * config.head_dim * embedding.dtype.itemsize
    return weights + batch * token * (sizes.prompt + sizes.new / 2)


def operations(config: DecoderConfig, tokens: int) -> float:
    """Multiplications and additions of one sequence's prefill, with causal attention."""
    attention = config.width * config.head_dim * (2 * config.heads + 2 * config.kv_heads)
    mlp = (3 if config.gated else 2) * config.width * config.mlp_width
    scores = config.heads * config.head_dim * tokens  # 2 products over T / 2 tokens on average
    head = config.width * config.vocab_size
    return 2.0 * (tokens * config.layers * (attention + mlp + scores) + head)


def described(model: Model, settings: Settings, **sizes: Any) -> dict[str, Any]:
    return {"family": model.config.family, **sizes, "cores": settings.cores}


def _tensor(ids: jax.Array, device: Any) -> Any:
    import torch

    return torch.tensor(jax.device_get(ids), dtype=torch.long, device=device)


def _owned(module: Any) -> None:
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.clone()
