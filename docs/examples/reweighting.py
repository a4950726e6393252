"""python docs/examples/reweighting.py: which labels of scikit-learn's digits are wrong?

Four in ten of 500 training labels are drawn anew at random. Every training image has a weight,
sigmoid(logit), that starts at a half. The inner problem trains a softmax classifier on the weighted
images from scratch; the outer problem moves the logits so that the classifier that comes out does
well on 100 images whose labels are right:

    min_logits  CE(theta_T(logits), clean)
    theta_{t+1} = theta_t - rate * grad_theta sum_i sigmoid(logit_i) CE(theta_t, image_i) / n

Nobody tells it which labels are wrong; it finds out, and the classifier gains by it. (The idea is
that of Ren et al. 2018, "Learning to Reweight Examples for Robust Deep Learning".)
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from jaxmethods import bilevel

TRAIN, CLEAN, CLASSES = 500, 100, 10


class Digits(NamedTuple):
    """Images [N, 64] in [0, 1] and labels [N]."""

    images: jax.Array
    labels: jax.Array


class Result(NamedTuple):
    """What the re-weighting found and what it is worth."""

    weights: np.ndarray
    """[500] of the training images, in (0, 1)."""
    wrong: np.ndarray
    """[500] whether the training label is wrong."""
    accuracy_before: float
    """On unseen images, trained with equal weights."""
    accuracy_after: float
    """On unseen images, trained with the weights that were learned."""


def split_digits(seed: int, noise: float) -> tuple[Digits, Digits, Digits, np.ndarray]:
    """Noisy training set, clean validation set, test set, and which training labels are wrong."""
    rng = np.random.default_rng(seed)
    images, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(labels))
    images, labels = images[order].astype(np.float32) / 16, labels[order]
    noisy = np.where(rng.random(TRAIN) < noise, rng.integers(CLASSES, size=TRAIN), labels[:TRAIN])
    places = (slice(TRAIN), slice(TRAIN, TRAIN + CLEAN), slice(TRAIN + CLEAN, None))
    train, clean, test = (
        Digits(jnp.asarray(images[place]), jnp.asarray(labels[place])) for place in places
    )
    return train._replace(labels=jnp.asarray(noisy)), clean, test, noisy != labels[:TRAIN]


def cross_entropies(params: dict, digits: Digits) -> jax.Array:
    """[N]."""
    scores = digits.images @ params["weight"] + params["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(scores, digits.labels)


def accuracy(params: dict, digits: Digits) -> float:
    scores = digits.images @ params["weight"] + params["bias"]
    return float(jnp.mean(scores.argmax(-1) == digits.labels))


def main(seed: int = 0, noise: float = 0.4, steps: int = 100, outer_steps: int = 60) -> Result:
    """Learns the weights; all outer steps are one program."""
    train, clean, test, wrong = split_digits(seed, noise)
    start = {"weight": jnp.zeros((64, CLASSES)), "bias": jnp.zeros(CLASSES)}

    def weighted_loss(params: dict, hyper: dict, _: None) -> jax.Array:
        return jnp.mean(jax.nn.sigmoid(hyper["logits"]) * cross_entropies(params, train))

    def trained(logits: jax.Array) -> dict:
        optimizer = optax.sgd(1.0, momentum=0.9)
        hyper = {"logits": logits}
        return bilevel.solve(weighted_loss, optimizer, start, hyper, steps=steps).params

    def outer(logits: jax.Array) -> jax.Array:
        return jnp.mean(cross_entropies(trained(logits), clean))

    optimizer = optax.adam(0.2)

    def outer_step(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
        logits, state = carry
        loss, hypergradient = jax.value_and_grad(outer)(logits)
        updates, state = optimizer.update(hypergradient, state)
        return (optax.apply_updates(logits, updates), state), loss

    @jax.jit
    def optimize(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        carry = (logits, optimizer.init(logits))
        (logits, _), losses = jax.lax.scan(outer_step, carry, length=outer_steps)
        return logits, losses

    equal = jnp.zeros(TRAIN)
    logits, losses = optimize(equal)
    print(f"validation loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    weights = np.asarray(jax.nn.sigmoid(logits))
    before, after = (accuracy(trained(each), test) for each in (equal, logits))
    return Result(weights, wrong, before, after)


if __name__ == "__main__":
    result = main()
    for name, chosen in (("right", ~result.wrong), ("wrong", result.wrong)):
        print(f"{name} labels: {chosen.sum():3d}, mean weight {result.weights[chosen].mean():.2f}")
    print(f"test accuracy {result.accuracy_before:.3f} -> {result.accuracy_after:.3f}")
