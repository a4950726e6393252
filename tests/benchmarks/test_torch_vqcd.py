"""The PyTorch side of the planner's benchmark does the work of ours: equal predictions, losses,
gradients and plans from equal weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.vqcd import diffusion
from jaxmethods.vqcd.inverse_dynamics import inverse_loss
from jaxmethods.vqcd.method import noise_function
from jaxmethods.vqcd.torch_weights import dense_layers, from_torch
from tests.vqcd.toy import CONFIG, changed

torch = pytest.importorskip("torch")
from benchmarks import torch_vqcd as theirs  # noqa: E402

pytestmark = pytest.mark.slow  # of benchmarks, not of the library

PLANNER = changed(CONFIG, tasks=1, diffusion=CONFIG.diffusion.model_dump() | {"eta": 0.0})


def weights_of(model):
    """Our network and inverse model with PyTorch's weights."""
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    network = from_torch(arrays, PLANNER.network, "network.")
    return network, dense_layers(arrays, "inverse.")


def batch():
    random = np.random.default_rng(0)
    sizes = {"states": (8, 4, 6), "actions": (8, 4, 4), "noise": (8, 4, 6)}
    values = {n: random.normal(size=s).astype(np.float32) for n, s in sizes.items()}
    values["returns"] = random.uniform(size=8).astype(np.float32)
    values["k"] = random.integers(0, 20, 8)
    values["keep"] = random.integers(0, 2, (8, 1)).astype(np.float32)
    return values


def test_losses_and_gradients_are_equal():
    torch.manual_seed(0)
    training, values = theirs.Training(PLANNER, "cpu", 50), batch()
    assert all(mask.all() for mask in training.masks.values())  # one task owns everything
    order = ("states", "actions", "returns", "k", "noise", "keep")
    other = training.loss(*(torch.tensor(values[name]) for name in order))
    other.backward()
    network, inverse = weights_of(training.model)
    returns = jnp.asarray(values["returns"])[:, None]

    @jax.jit
    @jax.value_and_grad
    def loss(network):
        predict = noise_function(PLANNER, network, returns)
        states, k, noise, keep = (jnp.asarray(values[n]) for n in ("states", "k", "noise", "keep"))
        schedule = diffusion.cosine_schedule(PLANNER.diffusion.steps)
        part = diffusion.diffusion_loss(predict, schedule, states, k, noise, keep, 6)
        return part + inverse_loss(inverse, states, jnp.asarray(values["actions"]))

    value, gradient = loss(network)
    np.testing.assert_allclose(value, other.item(), rtol=1e-5)
    slope = training.model.network.mid.res0.block0.conv.weight.grad.numpy()
    ours = gradient["mid"]["res0"]["block0"]["conv"]["weight"].transpose(2, 1, 0)
    np.testing.assert_allclose(ours, slope, atol=1e-5)


def test_plans_are_equal():
    torch.manual_seed(0)
    planning = theirs.Planning(PLANNER, "cpu", 3, bound=1.0)
    network, _ = weights_of(planning.model)
    start = np.random.default_rng(1).normal(size=(3, 4, 6)).astype(np.float32)
    present = jnp.asarray(planning.present.numpy())

    @jax.jit
    def plan(network):
        predict = noise_function(PLANNER, network, jnp.full((3, 1), 0.8))
        guide = diffusion.guided(predict, PLANNER.diffusion.guidance)
        config, begin = PLANNER.diffusion, jnp.asarray(start)
        plan, _ = diffusion.denoise(guide, config, begin, present, (-1.0, 1.0), jnp.zeros_like)
        return plan

    found = planning.plan(torch.tensor(start))
    np.testing.assert_allclose(plan(network), found.numpy(), atol=1e-4)


def test_a_training_step_moves_weights_and_average():
    torch.manual_seed(0)
    training = theirs.Training(PLANNER, "cpu", 50)
    before = training.average.network.final["out"].weight.clone()
    training.step()
    after = training.average.network.final["out"].weight
    assert (after != before).any()
    assert torch.equal(after, training.model.network.final["out"].weight)  # a copy at first
