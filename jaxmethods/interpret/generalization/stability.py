"""What a learner changes when an example is deleted, by training it again without it.

    hypothesis stability    E_{i, z} |l(A(S), z) - l(A(S \\ i), z)|
    uniform stability       sup of the same

(Bousquet, Elisseeff, "Stability and generalization", 2002.) All retrainings are one vmapped program
over weights of the examples, with the same key, so that nothing else differs.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmethods.interpret.generalization.leave_one_out import Stability, loss_stability
from jaxmethods.interpret.influence.memorization import Train


def retrained_stability(
    train: Train,
    losses: Callable[..., jax.Array],
    key: jax.Array,
    examples: int,
    deleted: jax.Array,
    together: int = 32,
) -> Stability:
    """Stability over deletions of some examples.

    Args:
        train: (key, weights [N]) -> a model; pure.
        losses: model -> losses on held-out points, [M].
        key: of training, the same for all.
        examples: N.
        deleted: indices of examples to delete, one a retraining, [R].
        together: retrainings side by side.

    Returns:
        Largest and mean change [] over R deletions and M points: lower bounds of the suprema over
        all examples and points.
    """
    everyone = jnp.ones(examples)
    base = losses(train(key, everyone))

    def without(index: jax.Array) -> jax.Array:
        return losses(train(key, everyone.at[index].set(0.0)))

    apart = jax.lax.map(without, deleted, batch_size=min(together, len(deleted)))
    return loss_stability(base, apart)
