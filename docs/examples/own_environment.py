"""python docs/examples/own_environment.py: a CommFormer on an environment of your own, seconds.

Only the first of two agents sees the number, both are paid for saying it: the second has to listen.
It shows how an environment is written, and that `init` and `step` need nothing else to train on it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods import commformer
from jaxmethods.envs import TeamEnvironment


class State(NamedTuple):
    number: jax.Array
    step_count: jax.Array
    key: jax.Array


class SayTheNumber(TeamEnvironment):
    episode_cap = 4

    def __init__(self):
        sizes = {"num_agents": 2, "num_actions": 3, "observation_size": 3, "time_limit": 4}
        super().__init__(**sizes, view_bounds=(0, 1), view_dtype=jnp.int8, viewer=None)

    def make_viewer(self):
        raise NotImplementedError("nothing to draw")

    def _look(self, state):
        view = jnp.zeros((2, 3), jnp.int8).at[0, state.number].set(1)
        return self._observation(view, state.step_count)

    def reset(self, key):
        state = State(jax.random.randint(key, (), 0, 3), jnp.int32(0), key)
        return state, self._first(self._look(state), {"success": jnp.array(False)})

    def step(self, state, action):
        right = action == state.number
        key, own = jax.random.split(state.key)
        state = State(jax.random.randint(own, (), 0, 3), state.step_count + 1, key)
        return state, self._next(self._look(state), right, False, {"success": right.all()})


def main(updates: int = 60) -> tuple[float, float]:
    network, graph, _ = commformer.clean()
    network = network.model_copy(update={"embed": 16})
    ppo = commformer.PPOConfig(environments=32, rollout=4)
    method = commformer.trainer(SayTheNumber(), network, graph, ppo, updates=updates)
    train = jax.jit(lambda s: jax.lax.scan(lambda s, _: method.step(s, None), s, length=updates))
    _, metrics = train(jax.jit(method.init)(jax.random.key(0), None))
    first, last = float(metrics["reward"][0]), float(metrics["reward"][-5:].mean())
    print(f"share of numbers said right: {first:.2f} -> {last:.2f} (by chance 0.33)")
    return first, last


if __name__ == "__main__":
    main()
