"""python docs/examples/diagnose_model.py: curvature of a network with error bars, seconds.

A network of two layers is trained, then asked how sharp its minimum is, how large the trace of its
Hessian, and how well its confidence fits. Your own: any pure `apply(params, inputs)`.
"""

import jax
import jax.numpy as jnp
import optax

from jaxmethods import interpret
from jaxmethods.interpret.curvature import eigenpairs, hutchinson, operators
from jaxmethods.interpret.honesty import calibration


def apply(params, inputs):
    return jnp.tanh(inputs @ params["first"]) @ params["last"]


def train(key, inputs, labels, steps=200):
    keys = jax.random.split(key)
    params = {"first": jax.random.normal(keys[0], (2, 8)), "last": jnp.zeros((8, 2))}

    def loss(params):
        losses = optax.softmax_cross_entropy_with_integer_labels(apply(params, inputs), labels)
        return losses.mean()

    def step(params, _):
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.grad(loss)(params)), None

    return jax.lax.scan(step, params, length=steps)[0]


def main() -> dict[str, float]:
    inputs = jax.random.normal(jax.random.key(0), (64, 2))
    labels = (inputs[:, 0] * inputs[:, 1] > 0).astype(int)
    params = jax.jit(train)(jax.random.key(1), inputs, labels)
    problem = interpret.make_problem(apply, interpret.cross_entropy, params, (inputs, labels))
    hessian = operators.hessian(problem)
    trace = hutchinson.trace(hessian, jax.random.key(2), probes=64)
    top = eigenpairs.eigenpairs(hessian, jax.random.key(3), k=1, steps=24)
    fit = calibration.calibration(apply(params, inputs), labels)
    print(f"trace of the Hessian {trace.value:.3f} +- {trace.error:.3f}")
    print(f"largest eigenvalue {top.values[0]:.3f} (residual {top.residuals[0]:.1e})")
    print(f"expected calibration error {fit.expected_error:.3f}")
    return {"trace": float(trace.value), "error": float(trace.error), "top": float(top.values[0])}


if __name__ == "__main__":
    main()
