"""python docs/examples/plan_across_tasks.py: a planner learns two tasks and forgets none, seconds.

Two tasks of random codes share one small network. After the second is learned, the weights that
plan for the first are what they were, bit for bit: each task owns its share of them.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods import vqcd

NETWORK = vqcd.TemporalNetworkConfig(
    kind="mlp", channels=6, dim=8, multipliers=(1, 2), horizon=4, groups=4, hidden=16, layers=2
)
CONFIG = vqcd.PlannerConfig(
    network=NETWORK, diffusion=vqcd.DiffusionConfig(steps=20, stride=5), tasks=2,
    action_channels=4, inverse_hidden=16, batch=8, ema_start=3,
)  # fmt: skip


def task_data(task: int, rows: int = 60) -> vqcd.TaskData:
    """Windows of random codes; yours come from `vqcd.align_rows` of a trained alignment."""
    random = np.random.default_rng(task)

    def coded(latents):
        table = random.uniform(-1, 1, (16, 2)).astype(np.float32)
        return jnp.asarray(random.integers(0, 16, (rows, latents)), jnp.int16), jnp.asarray(table)

    starts = np.arange(rows - NETWORK.horizon + 1)
    return vqcd.task_data(coded(3), coded(2), starts, random.uniform(size=rows), task)


def main(steps: int = 20) -> bool:
    method = vqcd.planner(CONFIG)
    init, step = jax.jit(method.init), jax.jit(method.step)

    bank, seen = vqcd.initial_bank(jax.random.key(0), CONFIG), []
    for task in range(2):
        feed = vqcd.Feed(task_data(task), jnp.int32(task), bank)
        state = init(jax.random.key(1), feed)
        for _ in range(steps):
            state, metrics = step(state, feed)
        bank = vqcd.finish(CONFIG, state)
        seen.append(vqcd.task_weights(CONFIG, bank, 0))
        print(f"task {task}: loss {metrics['loss']:.3f}")
    kept = jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), *seen))
    print("the first task's weights after the second:", "unchanged" if kept else "changed")
    return kept


if __name__ == "__main__":
    main()
