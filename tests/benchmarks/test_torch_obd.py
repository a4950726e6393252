"""The PyTorch side of the distillation's benchmark does the work of ours: equal losses, gradients
and updates from equal inputs."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from jaxmethods.obd import meta_gradient, objectives
from jaxmethods.obd.method import outer_optimizer
from jaxmethods.obd.types import SynSet
from jaxmethods.offline_rl import policies as policy
from tests.obd import small

torch = pytest.importorskip("torch")
from benchmarks import obd as bench  # noqa: E402
from benchmarks import torch_obd as theirs  # noqa: E402

pytestmark = pytest.mark.slow  # of benchmarks, not of the library


def tensors(tree):
    return [torch.tensor(np.asarray(leaf)) for leaf in tree]


def assert_close(ours, other, tolerance=1e-4):
    expected = other.detach().numpy()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance * scale)


def test_policies_and_critics_are_equal():
    batch, teacher = small.batch(), small.teacher()
    states, actions, noise = tensors((batch.states, batch.targets, batch.noise))
    host = jax.device_get(teacher.policy)
    assert_close(
        policy.policy_sample(teacher.policy, batch.states, batch.noise),
        theirs.sample(theirs.flatten(host, "cpu"), states, noise),
    )
    critic = tensors(leaf for layer in teacher.q1 for leaf in layer)
    ours = policy.q_value(teacher.q1, batch.states, batch.targets)
    assert_close(ours, theirs.value(critic, states, actions))


def test_meta_gradients_and_updates_are_equal():
    batch, syn, noise = small.batch(), small.syn(), small.noise()
    ours = jax.jit(meta_gradient.meta_gradient)(syn, small.student(), noise, batch, 0.1)
    params = theirs.flatten(jax.device_get(small.student()), "cpu")
    pairs, drawn = tensors(syn), torch.tensor(np.asarray(noise))
    loss, gradient = theirs.meta_gradient(pairs, params, drawn, theirs.Batch(*tensors(batch)), 0.1)
    assert_close(ours.loss, loss)
    for own, other in zip(ours.gradient, gradient, strict=True):
        assert_close(own, other)
    optimizer = outer_optimizer(2.0, 0.1, 0.9)
    updates, _ = optimizer.update(ours.gradient, optimizer.init(syn))
    leaves = [x.clone().requires_grad_() for x in pairs]
    for leaf, along in zip(leaves, gradient, strict=True):
        leaf.grad = along
    torch.nn.utils.clip_grad_norm_(leaves, 2.0)
    torch.optim.SGD(leaves, 0.1, 0.9).step()
    for own, other in zip(optax.apply_updates(syn, updates), leaves, strict=True):
        assert_close(own, other)


def test_batches_are_weighed_alike():
    """A whole step of theirs draws from its own generator; its parts are those of ours."""
    source = bench.random_source(rows=200)
    step = bench.torch_step(small.CONFIG, source, "cpu")
    distillation = step.__self__
    batch = distillation.batch()
    states, targets = (np.asarray(x) for x in (batch.states, batch.targets))
    q = policy.q_value(source.teacher.q1, states, targets)
    assert_close(objectives.outer_weights(q, small.CONFIG, 0.02), batch.weights)
    before = SynSet(*(x.detach().clone() for x in distillation.syn))
    assert np.isfinite(float(step()))
    assert not torch.equal(before.states, distillation.syn[0])
