"""Whose weights are whose matters: what owners that are swapped cost."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import vqcd
from jaxmethods.vqcd.bank import take
from jaxmethods.vqcd.data.task_data import gather
from jaxmethods.vqcd.method import planner_loss
from tests.vqcd.toy import PERCEPTRON, changed, programs, train


def one_place(task):
    """Windows of a task that never moves."""
    random = np.random.default_rng(task)
    rows = [np.tile(random.uniform(-1, 1, (1, n)), (60, 1)).astype(np.float32) for n in (6, 4)]
    states, actions = ((jnp.asarray(values), None) for values in rows)
    return vqcd.task_data(states, actions, np.arange(57), random.uniform(size=60), task)


@pytest.mark.slow
def test_with_owners_swapped_tasks_are_lost_as_by_fine_tuning():
    """Each task's own kernels matter, and not only what it has privately."""
    own = changed(PERCEPTRON, tasks=2, lr=5e-3, batch=32)
    dense = changed(own, scope="none", rest="shared", inverse="shared")
    banks = {}
    for config in (own, dense):
        compiled, bank = programs(config), vqcd.initial_bank(jax.random.key(3), config)
        for task in range(2):
            bank, _ = train(config, compiled, bank, task, 800, data=one_place(task))
        banks[config] = bank

    def loss(config, bank, task):
        windows, number = gather(one_place(task), jnp.arange(50), 4), jnp.int32(task)
        current, key = take(config, bank.ema, number), jax.random.key(1)
        return float(jitted(config, current, bank.owner, number, windows, key)[0])

    jitted = jax.jit(planner_loss, static_argnums=0)
    swapped = jax.tree.map(
        lambda owner: None if owner is None else 1 - owner,
        banks[own].owner,
        is_leaf=lambda leaf: leaf is None,
    )
    for task in range(2):
        kept = loss(own, banks[own], task)
        lost = loss(own, banks[own]._replace(owner=swapped), task)
        tuned = loss(dense, banks[dense], task)
        assert lost > 1.5 * kept
        assert lost >= tuned
    # Of which fine-tuning has forgotten the first.
    assert loss(dense, banks[dense], 0) > 1.5 * loss(own, banks[own], 0)
