"""Remote sensing: a probe sweep as one program, neighbors, features, pretraining; PyTorch beside.

Random pixels and features. A sweep is 16 learning rates x 3 weight decays on 2,000 features; ours
is one program, PyTorch fits one after the other. A path is 48 penalties to the same largest entry
of the gradient, on features whose spread falls as 1 / k (an encoder's are as uneven, independent
ones would spare L-BFGS its work); beside it PyTorch's L-BFGS with a strong-Wolfe search,
scikit-learn's and ours, one fit after the other. Pretraining is the whole update on images that are
at hand. On CPU Ti/8 on 64 pixels with 16 images, and SatMAE's with three groups of ten bands with
8; on a GPU Ti/8 with 1024 and L/16 on 224 pixels with 128, in bfloat16.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Row, Settings, Work, prepare_jax, prepare_torch, time_in_turns
from jaxmethods.models.geovit import encode, sized
from jaxmethods.numerics.linear_probe import probe_lbfgs
from jaxmethods.rsfm.config import MAEConfig, OptimizerConfig, PretrainConfig
from jaxmethods.rsfm.evaluation.neighbors import neighbor_scores
from jaxmethods.rsfm.evaluation.probes import probe_sgd, product
from jaxmethods.rsfm.pretraining import mae
from jaxmethods.rsfm.pretraining.method import pretrainer
from jaxmethods.rsfm.pretraining.views import Pixels

TINY = MAEConfig(
    encoder=sized("tiny", patch=8, image_size=64),
    decoder_width=128,
    decoder_depth=4,
    decoder_heads=4,
)
SATMAE = MAEConfig(
    encoder=sized(
        "tiny",
        patch=8,
        image_size=64,
        channels=10,
        embedding="grouped",
        positions="group",
        groups=((0, 1, 2, 6), (3, 4, 5, 7), (8, 9)),
        channel_width=64,
    ),
    decoder_width=128,
    decoder_depth=4,
    decoder_heads=4,
    decoder_channel_width=32,
)
LARGE = MAEConfig(encoder=sized("large"))
RATES = tuple(float(rate) for rate in np.logspace(-3, 1, 16))
DECAYS = (0.0, 1e-4, 1e-2)
PENALTIES = np.logspace(-6, 1, 48).astype(np.float32)
TOLERANCE = 1e-5
"""The gradient's largest entry at which a fit of a path ends."""


class Sizes(NamedTuple):
    """How large everything is."""

    models: tuple[tuple[str, MAEConfig, int], ...] = (("tiny", TINY, 16), ("satmae", SATMAE, 8))
    """Name, sizes, images at once."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    features: tuple[int, int] = (2000, 384)
    queries: int = 5000
    epochs: int = 10
    batch: int = 512


GPU = Sizes(models=(("tiny", TINY, 1024), ("large", LARGE, 128)), dtype="bfloat16")


def rows(settings: Settings) -> Iterator[Row]:
    """All rows of this device."""
    sizes = Sizes() if jax.default_backend() == "cpu" else GPU
    yield sweep(settings, sizes)
    yield path(settings, sizes)
    yield nearest(settings, sizes)
    yield from models(settings, sizes)


def models(settings: Settings, sizes: Sizes) -> Iterator[Row]:
    """Features and pretraining of every model."""
    for name, config, images in sizes.models:
        yield features(settings, name, config, images, sizes)
        yield pretraining(settings, name, config, images, sizes)


def sweep(settings: Settings, sizes: Sizes) -> Row:
    """48 probes at once, and one after the other in PyTorch."""
    x, y = _features(sizes)
    grid = product(RATES, DECAYS, [0])
    given: dict[str, Any] = {"classes": 10, "epochs": sizes.epochs, "batch": sizes.batch}
    given |= {"warmup": 1, "optimizer": "sgd"}
    work = prepare_jax(lambda x, y, grid: probe_sgd(x, y, grid, **given), x, y, grid)

    def torch_work(device: str) -> Any:
        from benchmarks import torch_rsfm

        own = (np.asarray(x), np.asarray(y), RATES, DECAYS)
        return torch_rsfm.sequential_probes(*own, sizes.epochs, sizes.batch, device)

    return _row(settings, "probe_sweep_48", work, torch_work, 48, "probes/s", sizes)


def path(settings: Settings, sizes: Sizes) -> Row:
    """48 penalties at once, and one after the other."""
    x, y = _uneven(sizes)
    given: dict[str, Any] = {"classes": 10, "tolerance": TOLERANCE}
    fit = jax.jit(lambda x, y, lams: probe_lbfgs(x, y, lams, **given))
    work = prepare_jax(fit, x, y, jnp.asarray(PENALTIES))
    one = jnp.split(jnp.asarray(PENALTIES), len(PENALTIES))
    alone = Work(lambda: jax.block_until_ready([fit(x, y, own) for own in one]))

    def torch_work(device: str) -> Any:
        from benchmarks import torch_rsfm

        own = (np.asarray(x), np.asarray(y), PENALTIES.tolist(), TOLERANCE, device)
        return torch_rsfm.sequential_optima(*own)

    others = [alone]
    if find_spec("sklearn") and jax.default_backend() == "cpu":
        others.append(Work(lambda: _scikit_learn(np.asarray(x), np.asarray(y), settings.cores)))
    theirs = prepare_torch(torch_work, settings)
    timings = time_in_turns([work, *others, *([theirs] if theirs else [])], settings)
    names = ("here", "scikit-learn")
    notes = [f"{name} {own.median:.2f} s" for name, own in zip(names, timings[1:3], strict=False)]
    found = fit(x, y, jnp.asarray(PENALTIES))
    notes.append(f"largest entry of the gradient at the end {float(jnp.max(found.gradient)):.1e}")
    return Row(
        name="rsfm/probe_path_48",
        sizes={"features": sizes.features, "tolerance": TOLERANCE},
        work=len(PENALTIES),
        unit="probes/s",
        ours=timings[0],
        torch=timings[-1] if theirs else None,
        note="one after the other: " + ", ".join(notes),
    )


def _scikit_learn(x: np.ndarray, y: np.ndarray, cores: int) -> None:
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    with threadpool_limits(cores or None):
        for lam in PENALTIES.tolist():
            LogisticRegression(C=1 / (lam * len(x)), tol=TOLERANCE, max_iter=5000).fit(x, y)


def nearest(settings: Settings, sizes: Sizes) -> Row:
    """Twenty neighbors of every query."""
    x, y = _features(sizes)
    queries = jax.random.normal(jax.random.key(1), (sizes.queries, x.shape[1]))

    def call(x: jax.Array, y: jax.Array, queries: jax.Array) -> jax.Array:
        return neighbor_scores(x, y, queries, classes=10, k=20)

    def torch_work(device: str) -> Any:
        from benchmarks import torch_rsfm

        own = (np.asarray(x), np.asarray(y), np.asarray(queries))
        return torch_rsfm.neighbors(*own, 20, device)

    work = prepare_jax(call, x, y, queries)
    return _row(settings, "neighbors", work, torch_work, sizes.queries, "queries/s", sizes)


def features(settings: Settings, name: str, config: MAEConfig, number: int, sizes: Sizes) -> Row:
    """Class tokens of whole images.

    Args:
        settings: how long to measure.
        name: of the model.
        config: its sizes.
        number: images at once.
        sizes: of everything.

    Returns:
        The row.
    """
    images = _images(config, number)
    params = mae.init(jax.random.key(0), config)["encoder"]
    params = jax.tree.map(lambda leaf: leaf.astype(sizes.dtype), params)
    work = prepare_jax(lambda p, x: encode(p, config.encoder, x).cls, params, images)

    def torch_work(device: str) -> Any:
        from benchmarks import torch_rsfm

        return torch_rsfm.encode(config, number, device)

    return _row(settings, f"features_{name}", work, torch_work, number, "images/s", sizes)


def pretraining(settings: Settings, name: str, config: MAEConfig, number: int, sizes: Sizes) -> Row:
    """The update of a masked autoencoder.

    Args:
        settings: how long to measure.
        name: of the model.
        config: its sizes.
        number: images of a step.
        sizes: of everything.

    Returns:
        The row.
    """
    training = PretrainConfig(
        steps=1000,
        batch=number,
        dtype=sizes.dtype,
        optimizer=OptimizerConfig(),
        crop=1.0,
        mirror=False,
        remat=name == "large",
    )
    method = pretrainer(config, training)
    channels = config.encoder.channels
    data = Pixels(_images(config, number), jnp.zeros(channels), jnp.ones(channels))
    state = jax.jit(method.init)(jax.random.key(0), data)
    work = prepare_jax(method.step, state, data, donate=(0,))

    def torch_work(device: str) -> Any:
        from benchmarks import torch_rsfm

        return torch_rsfm.mae_step(config, number, device)

    return _row(settings, f"mae_step_{name}", work, torch_work, number, "images/s", sizes)


def _features(sizes: Sizes) -> tuple[jax.Array, jax.Array]:
    x = jax.random.normal(jax.random.key(0), sizes.features)
    return x, jnp.arange(sizes.features[0]) % 10


def _uneven(sizes: Sizes) -> tuple[jax.Array, jax.Array]:
    """Features of ten classes, as uneven as an encoder's, with no axis of their own."""
    keys = jax.random.split(jax.random.key(3), 3)
    number, width = sizes.features
    spread = 10 / jnp.arange(1, width + 1)
    y = jnp.arange(number) % 10
    own = jax.random.normal(keys[0], (number, width))
    own = spread * (own + 0.5 * jax.random.normal(keys[1], (10, width))[y])
    rotation, _ = jnp.linalg.qr(jax.random.normal(keys[2], (width, width)))
    return own @ rotation, y


def _images(config: MAEConfig, number: int) -> jax.Array:
    own = config.encoder
    shape = (number, own.image_size, own.image_size, own.channels)
    return jax.random.normal(jax.random.key(2), shape)


def _row(
    settings: Settings,
    name: str,
    work: Any,
    torch_work: Any,
    amount: float,
    unit: str,
    sizes: Sizes,
) -> Row:
    theirs = prepare_torch(torch_work, settings)
    timings = time_in_turns([work, *([theirs] if theirs else [])], settings)
    return Row(
        name=f"rsfm/{name}",
        sizes={name: own for name, own in sizes._asdict().items() if name != "models"},
        work=amount,
        unit=unit,
        ours=timings[0],
        torch=timings[1] if theirs else None,
    )
