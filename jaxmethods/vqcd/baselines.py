r"""Other continual learners as variations of the same planner, each a change of its config.

| baseline | what changes |
| --- | --- |
| `finetune`, `multitask` | one network for all; tasks in turn, or mixed (`task_data.join_tasks`) |
| `rehearsal` | clones the behavior, with kept windows (`task_data.last_windows`) in between |
| `cod`, `cod_rcr` | one network given the task (the return), every 14th step on kept windows |
| `cod_lora` | the first task's network is frozen, later tasks add low-rank matrices |
| `regularized` | EWC, L2, MAS: c sum F (theta - theta*)^2, with F of `consolidate` after a task |
| `packnet` | largest weights are kept for a task, the rest is free: `claim_free`, `keep_largest` |
| `generative_replay` | `cod` whose kept windows are plans of its own: `generated_windows` |
| `separate` | a network a task: no forgetting, I times the weights |

CoD: Hu et al. 2024, arXiv 2409.02512. EWC: Kirkpatrick et al. 2017, arXiv 1612.00796. MAS: Aljundi
et al. 2018, arXiv 1711.09601. PackNet: Mallya and Lazebnik 2018, arXiv 1711.05769. LoRA: Hu et al.
2022, arXiv 2106.09685. Settings are those of VQ-CD, arXiv 2410.15698, and of CoD's code.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxmethods.vqcd.activation import FREE
from jaxmethods.vqcd.bank import TaskWeights, effective, take
from jaxmethods.vqcd.config import PlannerConfig
from jaxmethods.vqcd.diffusion import sample_plan
from jaxmethods.vqcd.inverse_dynamics import inverse_dynamics
from jaxmethods.vqcd.method import draw, noise_function, planner_loss
from jaxmethods.vqcd.spaces.perceptron import perceptron
from jaxmethods.vqcd.types import Bank, Feed, Params, Penalty, TaskData

Importance = Literal["ewc", "l2", "mas"]
LEAST_IMPORTANCE = 1e-5


def _changed(config: PlannerConfig, **fields: Any) -> PlannerConfig:
    """The config with other fields, validated anew."""
    return PlannerConfig.model_validate(config.model_dump() | fields)


def finetune(config: PlannerConfig) -> PlannerConfig:
    """One network that every task goes on training; also `multitask`, with joined data."""
    return _changed(config, scope="none", rest="shared", inverse="shared")


multitask = finetune


def separate(config: PlannerConfig) -> PlannerConfig:
    """A network of its own for every task."""
    return _changed(config, scope="none", rest="private", inverse="per_task")


def rehearsal(config: PlannerConfig, every: int = 14) -> PlannerConfig:
    """Behavior cloning whose every so-manieth step is on an earlier task's kept windows."""
    return _changed(finetune(config), behavior="cloned", replay_every=every)


def cod(config: PlannerConfig, every: int = 14) -> PlannerConfig:
    """The predecessor: given the task's number, with replay."""
    return _changed(finetune(config), condition="task", replay_every=every)


generative_replay = cod


def cod_rcr(config: PlannerConfig, every: int = 14) -> PlannerConfig:
    """`cod` given the return instead."""
    return _changed(finetune(config), replay_every=every)


def cod_lora(config: PlannerConfig, rank: int = 64, lr: float = 1e-4) -> PlannerConfig:
    """`cod` without replay: adapters of the given rank on a network that the first task trains."""
    fields = {"rest": "freeze_after_first", "adapter_rank": rank, "adapter_lr": lr}
    return _changed(finetune(config), condition="task", inverse="per_task", **fields)


def regularized(config: PlannerConfig, coefficient: float) -> PlannerConfig:
    """EWC, L2 and MAS: fine-tuning with a pull; what differs is `consolidate`'s importance."""
    return _changed(finetune(config), penalty=coefficient)


def packnet(config: PlannerConfig) -> PlannerConfig:
    """Weights are kept by their size; a task runs those of earlier tasks, too."""
    return _changed(config, sees="earlier", rest="freeze_after_first")


def consolidate(
    config: PlannerConfig,
    bank: Bank,
    feed: Feed,
    key: jax.Array,
    kind: Importance,
    batches: int = 100,
) -> Penalty:
    """The pull of the next task, after training on one.

    Args:
        config: of `regularized`; static.
        bank: after the task.
        feed: the task's, with the penalty that it was trained with.
        key: [] typed key.
        kind: mean squared gradient of the loss (`ewc`), ones (`l2`), or mean magnitude of the
            gradient of the squared output (`mas`); static.
        batches: how many batches the mean is over; static.

    Returns:
        Penalty around the bank's weights; importances are summed over tasks, 1e-5 at least.
    """
    current = take(config, bank.params, feed.task)
    if kind == "l2":
        found = jax.tree.map(jnp.ones_like, current)
    else:
        found = _importance(config, current, bank, feed, key, kind, batches)
    if feed.penalty is not None:
        found = jax.tree.map(jnp.add, feed.penalty.importance, found)
    return Penalty(current, found)


def _importance(
    config: PlannerConfig,
    current: Params,
    bank: Bank,
    feed: Feed,
    key: jax.Array,
    kind: Importance,
    batches: int,
) -> Params:
    plain, window_key = feed._replace(replay=None), jax.random.fold_in(key, 0)

    def loss(current: Params, number: jax.Array) -> jax.Array:
        windows = draw(config, window_key, number, plain)
        noise_key = jax.random.fold_in(jax.random.fold_in(key, 1), number)
        if kind == "ewc":
            return planner_loss(config, current, bank.owner, feed.task, windows, noise_key)[0]
        weights = effective(config, current, bank.owner, feed.task)
        x = windows.states
        if config.behavior == "cloned":
            return jnp.square(perceptron(weights.inverse, x)).sum((1, 2)).mean()
        if config.behavior == "diffused":
            x = jnp.concatenate([x, windows.actions], axis=-1)
        # Outputs for windows at random steps; no targets are needed.
        k = jax.random.randint(noise_key, (x.shape[0],), 0, config.diffusion.steps)
        asked = windows.returns if config.condition == "return" else windows.task
        predict = noise_function(config, weights.network, asked.astype(x.dtype)[:, None])
        return jnp.square(predict(x, k, jnp.ones((x.shape[0], 1)))).sum((1, 2)).mean()

    def add(total: Params, number: jax.Array) -> tuple[Params, None]:
        slopes = jax.grad(loss)(current, number)
        size = jnp.square if kind == "ewc" else jnp.abs
        return jax.tree.map(lambda t, s: t + size(s) / batches, total, slopes), None

    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, current), jnp.arange(batches))
    return jax.tree.map(lambda leaf: jnp.maximum(leaf, LEAST_IMPORTANCE), total)


def nothing_owned(bank: Bank) -> Bank:
    """The bank before PackNet's first task: all that is shared out is free."""
    return bank._replace(owner=jax.tree.map(lambda own: jnp.full_like(own, FREE), bank.owner))


def claim_free(bank: Bank, task: jax.Array | int) -> Bank:
    """PackNet before a task [] is trained: it may use all that is free."""

    def claim(own: jax.Array) -> jax.Array:
        return jnp.where(own == FREE, jnp.asarray(task, jnp.int8), own)

    return bank._replace(owner=jax.tree.map(claim, bank.owner))


def keep_largest(config: PlannerConfig, bank: Bank, task: int) -> Bank:
    """PackNet after a task is trained, and before what it keeps is trained once more.

    Args:
        config: of `packnet`; static.
        bank: after training.
        task: which; static.

    Returns:
        The bank with all but the largest 1 / (tasks left + 1) of every array's weights that are the
        task's set free, by magnitude.
    """
    share = 1.0 / (config.tasks - task)

    def keep(own: jax.Array | None, leaf: jax.Array) -> jax.Array | None:
        if own is None:
            return None
        mine = own == task
        # [n], largest first
        order = jnp.argsort(jnp.where(mine, -jnp.abs(leaf), jnp.inf).reshape(-1))
        rank = jnp.zeros(leaf.size, jnp.int32).at[order].set(jnp.arange(leaf.size))
        kept = rank.reshape(leaf.shape) < jnp.round(mine.sum() * share)
        return jnp.where(mine & ~kept, jnp.int8(FREE), own)

    pruned = jax.tree.map(keep, bank.owner, bank.params, is_leaf=lambda x: x is None)
    return bank._replace(owner=pruned)


def generated_windows(
    config: PlannerConfig,
    weights: TaskWeights,
    presents: jax.Array,
    returns: jax.Array,
    task: jax.Array | int,
    bounds: tuple[jax.Array, jax.Array],
    key: jax.Array,
) -> TaskData:
    """A task's windows as the planner itself imagines them, for `Feed.replay`.

    Args:
        config: of `generative_replay`, with an inverse model; static.
        weights: the planner after the task.
        presents: [E, C] aligned states that windows begin with.
        returns: [E] returns that they are asked to have.
        task: [] the task's number, which plans are asked for with `condition: task`; may be traced.
        bounds: what plans are clipped to, ([C], [C]).
        key: [] typed key.

    Returns:
        E windows with float rows.

    Raises:
        ValueError: a planner without an inverse model.
    """
    if config.behavior != "inverse":
        raise ValueError(f"behavior: expected 'inverse', got {config.behavior!r}")
    episodes, horizon = presents.shape[0], config.network.horizon
    condition = returns
    if config.condition == "task":
        condition = jnp.full(episodes, task, presents.dtype)
    predict = noise_function(config, weights.network, condition[:, None])
    shape = (horizon, config.network.channels)
    plans = sample_plan(key, predict, config.diffusion, presents, shape, bounds)
    # An action is between two states: that of the last is the one before it.
    actions = inverse_dynamics(weights.inverse, plans[:, :-1], plans[:, 1:])
    actions = jnp.concatenate([actions, actions[:, -1:]], axis=1)
    return TaskData(
        states=plans.reshape(episodes * horizon, -1),  # [E T, C]
        actions=actions.reshape(episodes * horizon, -1),  # [E T, A]
        state_table=None,
        action_table=None,
        starts=jnp.arange(episodes, dtype=jnp.int32) * horizon,
        returns=returns,
        count=jnp.int32(episodes),
        task=jnp.full(episodes, task, jnp.int32),
    )
