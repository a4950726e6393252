r"""The outer gradient through one step of the inner optimization.

    min_u L(w*(u), u)      with      w*(u) ~ w' = w - xi grad_w L_train(w, u)

    d/du L(w', u) = grad_u L(w', u) - xi (d/du grad_w L_train(w, u)) v,      v = grad_w L(w', u)

The mixed product is a forward derivative of a reverse one, jvp of grad_u L_train along v: exact,
at the price of about two gradients, with no matrix and no finite difference. It is the second-order
approximation of DARTS (Liu et al. 2019, section 2.3); xi = 0 gives the first-order gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def one_step_gradient(
    loss: Callable[..., tuple[jax.Array, Any]],
    lower: Any,
    upper: Any,
    rate: jax.Array | float,
    lower_args: tuple = (),
    upper_args: tuple | None = None,
) -> tuple[tuple[jax.Array, Any], Any]:
    """The gradient of the outer loss in u, through one gradient step on w.

    Args:
        loss: `loss(w, u, *args) -> (scalar, aux)`; twice differentiable, the second time forward.
        lower: w, a pytree of floating arrays.
        upper: u, a pytree of floating arrays.
        rate: xi, the learning rate of the inner step; [] or a float.
        lower_args: what L_train is given.
        upper_args: what L is given; None: the same.

    Returns:
        (L(w', u), aux of L) and the gradient, in the structure of `upper`.
    """
    lower, upper = jax.tree.map(jnp.asarray, (lower, upper))
    upper_args = lower_args if upper_args is None else upper_args
    train = jax.grad(lambda w, u: loss(w, u, *lower_args)[0], argnums=(0, 1))
    inner, _ = train(lower, upper)
    stepped = jax.tree.map(lambda w, g: (w - rate * g).astype(w.dtype), lower, inner)
    value, (along, direct) = jax.value_and_grad(
        lambda w, u: loss(w, u, *upper_args), argnums=(0, 1), has_aux=True
    )(stepped, upper)
    _, mixed = jax.jvp(lambda w: train(w, upper)[1], (lower,), (along,))
    return value, jax.tree.map(lambda d, m: (d - rate * m).astype(d.dtype), direct, mixed)
