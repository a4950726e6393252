"""Bi-level optimization: an outer variable judged by what an inner optimization makes of it.

    min_hyper  outer(theta_T)      theta_{t+1} = update(theta_t, grad_theta loss(theta_t, hyper))

| function | the outer gradient | use it when |
| --- | --- | --- |
| `alternating` | first order: the inner variable is taken as it is | both levels train together |
| `one_step_gradient` | exact through one step of gradient descent | the first order misleads |
| `solve` | through T steps of an optax optimizer, as its `mode` says | inner runs start anew |

| mode of `solve` | the outer gradient | use it when | time | memory |
| --- | --- | --- | --- | --- |
| `Mixed()` | exact | always, to begin with | 0.87 s | 73 MB: T P + R |
| `Mixed(save=True)` | exact | arithmetic is dear and memory isn't | 0.87 s | 275 MB: T (P + R) |
| `Reverse()` | exact | forward mode is needed | 0.89 s | 275 MB: T (P + R) |
| `Reverse("step")` | exact | as `Reverse()`, in less memory | 0.90 s | 73 MB: T P + R |
| `Reverse("sqrt")` | exact | T is large: one more forward pass | 1.08 s | 24 MB: 2 sqrt(T) P + R |
| `Reverse("offload")` | exact | the device's memory is too small | - | T P on the host |
| `Truncated(20)` | the last steps' share | early steps hardly matter | 0.38 s | 30 MB: 20 P + R |
| `Implicit(iterations=20)` | exact at a stationary point | it converged | 0.35 s | 22 MB: P + R |

Measured: 100 steps of SGD on a policy of 136,200 parameters with 256 synthetic pairs for outer
variable, float32, jax 0.10.2, one pinned core of a shared AMD EPYC machine, November 2026; time of
the outer loss and its gradient, memory of XLA's temporaries. `python -m benchmarks --only bilevel`
measures it again, against other numbers of steps and beside PyTorch. P is the size of parameters
and optimizer state, R that of a step's activations.

A ridge penalty, chosen by what it does on other data:

>>> import jax, jax.numpy as jnp, optax
>>> from jaxmethods import bilevel
>>> keys = jax.random.split(jax.random.key(0), 4)
>>> train, valid = (jax.random.normal(key, (20, 10)) for key in keys[:2])
>>> y, y_valid = (x[:, 0] + jax.random.normal(k, (20,)) for x, k in zip((train, valid), keys[2:]))
>>> def loss(params, hyper, batch):  # the inner objective; this one needs no batch
...     penalty = jnp.exp(hyper["log_penalty"]) * jnp.sum(params["w"] ** 2)
...     return jnp.mean((train @ params["w"] - y) ** 2) + penalty
>>> @jax.jit
... @jax.value_and_grad
... def outer(hyper):
...     start = {"w": jnp.zeros(10)}
...     solution = bilevel.solve(loss, optax.sgd(0.1), start, hyper, steps=200)
...     return jnp.mean((valid @ solution.params["w"] - y_valid) ** 2)
>>> hyper = {"log_penalty": jnp.array(-3.0)}
>>> first, _ = outer(hyper)
>>> for _ in range(50):
...     value, hypergradient = outer(hyper)
...     hyper = jax.tree.map(lambda h, g: h - 2.0 * g, hyper, hypergradient)
>>> bool(value < first)
True

What changes from step to step (minibatches, indices, keys of noise) is `batches`, with a leading
axis of steps; `lambda hyper: optax.sgd(hyper["rate"])` for the optimizer makes its rate part of the
outer variable; `mode=bilevel.Implicit()` differentiates the solution instead of the way to it; and
`jax.vmap` of `outer` solves many problems at once. `docs/examples/reweighting.py` finds wrong
labels in this way. `help(jaxmethods.bilevel.solve)` has the rest.
"""

from jaxmethods.bilevel.alternating import Alternating as Alternating
from jaxmethods.bilevel.alternating import AlternatingState as AlternatingState
from jaxmethods.bilevel.alternating import Step as Step
from jaxmethods.bilevel.alternating import alternating
from jaxmethods.bilevel.inner import Solution as Solution
from jaxmethods.bilevel.modes import Implicit as Implicit
from jaxmethods.bilevel.modes import Mixed as Mixed
from jaxmethods.bilevel.modes import Mode as Mode
from jaxmethods.bilevel.modes import Reverse as Reverse
from jaxmethods.bilevel.modes import Truncated as Truncated
from jaxmethods.bilevel.solve import solve
from jaxmethods.bilevel.unrolled import one_step_gradient

__all__ = [
    "alternating",
    "one_step_gradient",
    "solve",
]
