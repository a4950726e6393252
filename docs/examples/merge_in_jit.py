"""python docs/examples/merge_in_jit.py: two checkpoints merged inside a compiled program, seconds.

A merge is a function of arrays: 21 coefficients are one vmapped program, and the best coefficient
is found by its gradient. Your own trees: any pytrees of one structure.
"""

import jax
import jax.numpy as jnp

from jaxmethods import merging


def loss(params, inputs, targets):
    return ((inputs @ params["w"] - targets) ** 2).mean()


def main() -> tuple[float, float]:
    keys = jax.random.split(jax.random.key(0), 3)
    base = {"w": jax.random.normal(keys[0], (8,))}
    inputs = jax.random.normal(keys[1], (64, 8))
    # One expert has learned what the first half of the features mean, one the second.
    wanted = jax.random.normal(keys[2], (8,))
    halves = (jnp.arange(8) < 4, jnp.arange(8) >= 4)
    experts = merging.stack_trees([{"w": jnp.where(half, wanted, base["w"])} for half in halves])

    def merged_loss(coefficient, base, experts):
        merged = merging.task_arithmetic(base, experts, coefficient)
        return loss(merged, inputs, inputs @ wanted)

    @jax.jit
    def sweep(coefficients, base, experts):
        return jax.vmap(merged_loss, (0, None, None))(coefficients, base, experts)

    @jax.jit
    def descend(base, experts):
        def step(coefficient, _):
            return coefficient - 0.02 * jax.grad(merged_loss)(coefficient, base, experts), None

        return jax.lax.scan(step, jnp.array(0.3), length=60)[0]

    grid = jnp.linspace(0, 1.5, 16)
    best = float(grid[sweep(grid, base, experts).argmin()])
    found = float(descend(base, experts))
    print(f"best coefficient: {best:.2f} of the grid, {found:.2f} by its gradient")
    return best, found


if __name__ == "__main__":
    main()
