"""A planner's diffusion network as a model that can be diagnosed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods.stages import Diagnosable
from jaxmethods.vqcd import PlannerConfig
from jaxmethods.vqcd.data.task_data import gather
from jaxmethods.vqcd.diffusion import cosine_schedule, put_present, q_sample
from jaxmethods.vqcd.method import noise_function
from jaxmethods.vqcd.spaces.perceptron import perceptron
from jaxmethods.vqcd.types import TaskData

WINDOWS = 256
"""Windows of either half of a task's data."""


def diagnosable(
    config: PlannerConfig, network: Any, inverse: Any, data: TaskData, key: jax.Array
) -> Diagnosable:
    """The network that predicts noise, on two sets of a task's windows with fixed steps and noise.

    Both sets are of windows that it was trained on, every one of them in many other ways: what is
    held out are the steps and the noise. A learner that clones has its perceptron instead.

    Args:
        config: of the planner.
        network: the task's own weights.
        inverse: the task's own inverse model; of a learner that clones what acts.
        data: the task's aligned windows, of one seed.
        key: [] typed random key of windows, steps and noise.

    Returns:
        Outputs are predicted noise [N, T C], without the present state.
    """
    schedule, cloned = cosine_schedule(config.diffusion.steps), config.behavior == "cloned"

    def apply(params: Any, inputs: dict[str, jax.Array]) -> jax.Array:
        if cloned:
            return perceptron(params, inputs["x"]).reshape(len(inputs["x"]), -1)
        predict = noise_function(config, params, inputs["condition"])
        found = predict(inputs["x"], inputs["step"], jnp.ones_like(inputs["condition"]))
        return _without_present(config, found)

    def examples(key: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        window_key, step_key, noise_key = jax.random.split(key, 3)
        index = jax.random.randint(window_key, (WINDOWS,), 0, data.count)
        windows = gather(data, index, config.network.horizon)
        if cloned:
            return {"x": windows.states}, windows.actions.reshape(WINDOWS, -1)
        x0 = windows.states
        if config.behavior == "diffused":
            x0 = jnp.concatenate([windows.states, windows.actions], axis=-1)
        k = jax.random.randint(step_key, (WINDOWS,), 0, config.diffusion.steps)
        noise = jax.random.normal(noise_key, x0.shape, x0.dtype)
        x = put_present(q_sample(schedule, x0, k, noise), x0[:, 0, : config.state_channels])
        asked = windows.returns if config.condition == "return" else windows.task
        inputs = {"x": x, "step": k, "condition": asked.astype(x0.dtype)[:, None]}
        return inputs, _without_present(config, noise)

    params = inverse if cloned else network
    first, second = jax.random.split(key)
    title = "a planner's network" if cloned else "a planner's network that predicts noise"
    return Diagnosable(title, apply, params, "squared_error", examples(first), examples(second))


def _without_present(config: PlannerConfig, x: jax.Array) -> jax.Array:
    """[N, T C] of [N, T, C], zeros in place of the present state."""
    zeros = jnp.zeros_like(x[:, 0, : config.state_channels])
    return put_present(x, zeros).reshape(len(x), -1)
