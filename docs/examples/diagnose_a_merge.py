"""python docs/examples/diagnose_a_merge.py: two methods in one program, seconds.

Two experts are merged at eleven coefficients and the curvature of every merged model is estimated,
all in one compiled, vmapped program: the merge and the diagnostic are functions of arrays.
"""

import jax
import jax.numpy as jnp

from jaxmethods import interpret, merging
from jaxmethods.interpret.curvature import hutchinson, operators


def apply(params, inputs):
    return jnp.tanh(inputs @ params["first"]) @ params["last"]


def main() -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 4)
    base = {"first": jax.random.normal(keys[0], (2, 6)), "last": jnp.zeros((6, 2))}
    inputs = jax.random.normal(keys[1], (32, 2))
    data = (inputs, (inputs.sum(-1) > 0).astype(int))

    def expert(key):  # fine-tuned on its own noisy labels
        noisy = jnp.where(jax.random.uniform(key, (32,)) < 0.1, 1 - data[1], data[1])

        def loss(params):
            problem = interpret.make_problem(
                apply, interpret.cross_entropy, params, (inputs, noisy)
            )
            return interpret.mean_loss(problem)

        def step(params, _):
            return jax.tree.map(lambda p, g: p - g, params, jax.grad(loss)(params)), None

        return jax.lax.scan(step, base, length=60)[0]

    @jax.jit
    def merge_and_diagnose(coefficients, keys):
        experts = jax.vmap(expert)(keys)

        def of(coefficient):
            merged = merging.task_arithmetic(base, experts, coefficient)
            problem = interpret.make_problem(apply, interpret.cross_entropy, merged, data)
            trace = hutchinson.trace(operators.hessian(problem), jax.random.key(1), probes=16)
            return interpret.mean_loss(problem), trace.value, trace.error

        return jax.vmap(of)(coefficients)

    coefficients = jnp.linspace(0, 1, 11)
    losses, traces, errors = merge_and_diagnose(coefficients, keys[2:])
    for coefficient, loss, trace, error in zip(coefficients, losses, traces, errors, strict=True):
        print(
            f"{coefficient:.1f}: loss {loss:.3f}, trace of the Hessian {trace:.3f} +- {error:.3f}"
        )
    return losses, traces


if __name__ == "__main__":
    main()
