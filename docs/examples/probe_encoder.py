"""python docs/examples/probe_encoder.py: is an encoder better than the colors of a scene? Seconds.

Frozen features of an encoder (random here) and the mean and deviation of every band, judged by the
same linear probes: whatever does not beat the colors has learned nothing that a probe can see. Your
own: `loaded = geovit.load("weights.safetensors", ...)`, or any features [N, D].
"""

import jax
import jax.numpy as jnp

from jaxmethods import rsfm
from jaxmethods.data.earth.scenes import synthetic_scenes
from jaxmethods.models import geovit
from jaxmethods.numerics import linear_probe
from jaxmethods.rsfm.evaluation import baselines

CONFIG = geovit.EncoderConfig(width=16, depth=1, heads=2, patch=8, image_size=16, channels=3)


def accuracy(features: jax.Array, labels: jax.Array, train: int) -> float:
    """The best of three penalties on the scenes that were held back."""
    scaled = (features - features[:train].mean(0)) / (features[:train].std(0) + 1e-6)
    lams = jnp.array([1e-3, 1e-2, 1e-1])
    probe = rsfm.probe_lbfgs(scaled[:train], labels[:train], lams, classes=10)
    return float(linear_probe.accuracies(probe, scaled[train:], labels[train:]).max())


def main(number: int = 120) -> dict[str, float]:
    scenes = synthetic_scenes(seed=0, number=number, size=CONFIG.image_size)
    images = jnp.asarray(scenes.bands(["B4", "B3", "B2"]), jnp.float32) / 10_000
    labels, train = jnp.asarray(scenes.main_pairs()), number * 2 // 3
    params = geovit.init(jax.random.key(0), CONFIG)
    encoder = jax.jit(lambda params, images: geovit.encode(params, CONFIG, images).cls)
    found = {
        "mean and deviation": accuracy(baselines.mean_and_std(images), labels, train),
        "random encoder": accuracy(encoder(params, images), labels, train),
    }
    for name, value in found.items():
        print(f"{name}: {value:.2f} of {number - train} scenes (ten classes)")
    return found


if __name__ == "__main__":
    main()
