r"""The continual planner as a method: one step trains one task's weights on its aligned windows.

    L = L_diff(eps_theta(W * M_i)) + L_inv(f_i),    W <- where(owner == i, Adam(W), W)

The state is the bank of all tasks' weights (`bank`), of which a step changes only what is task i's.
The task is a traced number: every task runs the same program. Its randomness is folded from the
bank's key, the task and the step, so that orders of tasks, and tasks side by side (`jax.vmap` over
states and feeds, then `bank.join_banks`), give the same weights.

    method = planner(config)
    bank = initial_bank(key, config)
    for task, data in enumerate(tasks):                       # a stage of a recipe each
        feed = Feed(data, jnp.int32(task), bank)
        state = method.init(key, feed)
        state, metrics = step(state, feed)                    # ... Omega times
        bank = finish(config, state)

Baselines are the same steps with other owners, penalties, adapters or replayed windows
(`baselines`).

Hu et al., VQ-CD, arXiv 2410.15698, algorithm 1.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmethods.layout import path_name
from jaxmethods.method import Method, Metrics, Objective
from jaxmethods.models import temporal_unet
from jaxmethods.vqcd.activation import apply_mask, select
from jaxmethods.vqcd.bank import effective, initial_bank, kind, put, take
from jaxmethods.vqcd.config import PlannerConfig
from jaxmethods.vqcd.data.task_data import Windows, gather
from jaxmethods.vqcd.data.windows import draw_windows
from jaxmethods.vqcd.diffusion import Noise, cosine_schedule, diffusion_loss
from jaxmethods.vqcd.inverse_dynamics import inverse_loss
from jaxmethods.vqcd.spaces.perceptron import perceptron
from jaxmethods.vqcd.types import Bank, Feed, Params, Penalty, State


def planner(config: PlannerConfig) -> Method:
    """Makes the training of one task after another.

    Args:
        config: networks, diffusion, owners, optimization; static.

    Returns:
        `init(key, feed)`, which goes on from `feed.bank` (and its key) or draws one with `key`, and
        `step(state, feed)`. Metrics: `loss` and its parts `diffusion`, `inverse`,
        `cloning`, `penalty`, those that the config has.
    """

    def init(key: jax.Array, feed: Feed) -> State:
        bank = initial_bank(key, config) if feed.bank is None else feed.bank
        return begin_task(config, bank, feed.task)

    def step(state: State, feed: Feed) -> tuple[State, Metrics]:
        return train_step(config, state, feed)

    def objective(state: State, feed: Feed) -> Objective:
        """The loss of the step's first batch, of windows that are replayed where they are then."""
        bank, number = state.bank, state.step * config.accumulate

        def loss(params: Params, key: jax.Array) -> jax.Array:
            rows, noise = jax.random.split(key)
            windows = draw(config, rows, number, feed)
            found = planner_loss(
                config, params, bank.owner, state.task, windows, noise, feed.penalty
            )
            return found[0]

        return Objective(take(config, bank.params, state.task), loss)

    return Method(init, step, objective)


def begin_task(config: PlannerConfig, bank: Bank, task: jax.Array) -> State:
    """Fresh moments, and an average that starts at the task's weights."""
    bank = bank._replace(params=_settled(config, bank, task))
    current = take(config, bank.params, task)
    average = _own(config, bank, task, current, take(config, bank.ema, task))
    kept = bank.optimizer is not None and not config.reset_optimizer
    moments = bank.optimizer if kept else optax.adam(config.lr).init(current)
    bank = bank._replace(ema=put(config, bank.ema, task, average), optimizer=None)
    return State(bank, task, moments, jnp.int32(0))


def _own(config: PlannerConfig, bank: Bank, task: jax.Array, new: Params, old: Params) -> Params:
    """`new` where weights are this task's to change, else `old`, bit for bit."""

    def one(path: Any, new: jax.Array, old: jax.Array) -> jax.Array:
        frozen = kind(config, path_name(path)) == "base"
        return jnp.where(bank.done == 0, new, old) if frozen else new

    chosen = select(bank.owner, task, new, old)
    return jax.tree_util.tree_map_with_path(one, chosen, old)


def _settled(config: PlannerConfig, bank: Bank, task: jax.Array) -> Params:
    """Running weights with those that this task runs but earlier ones trained at their averages.

    Plans are made with averages, so that is what a task has to build on.
    """

    def one(path: Any, leaf: jax.Array, average: jax.Array) -> jax.Array:
        if kind(config, path_name(path)) == "base":
            return jnp.where(bank.done == 0, leaf, average)
        return leaf

    params = jax.tree_util.tree_map_with_path(one, bank.params, bank.ema)
    if config.sees == "own":
        return params

    def earlier(own: jax.Array | None, leaf: jax.Array, average: jax.Array) -> jax.Array:
        return leaf if own is None else jnp.where((own >= 0) & (own < task), average, leaf)

    none = {"is_leaf": lambda x: x is None}
    return jax.tree.map(earlier, bank.owner, params, bank.ema, **none)


def finish(config: PlannerConfig, state: State) -> Bank:
    """Ends the training of a task.

    Args:
        config: static; with `reset_optimizer` false the moments are handed on, too.
        state: after the last step.

    Returns:
        The bank that the next task begins with.
    """
    kept = None if config.reset_optimizer else state.optimizer
    return state.bank._replace(done=state.bank.done + 1, optimizer=kept)


def train_step(config: PlannerConfig, state: State, feed: Feed) -> tuple[State, Metrics]:
    """One update of the task's weights and of their average."""
    bank, task = state.bank, state.task
    current = take(config, bank.params, task)
    gradient, metrics = _gradient(config, state, feed, current)
    updates, moments = optax.adam(config.lr).update(gradient, state.optimizer, current)
    updates = _restricted(config, bank, task, updates)
    current = optax.apply_updates(current, updates)
    average = _averaged(config, state, current)
    bank = bank._replace(
        params=put(config, bank.params, task, current), ema=put(config, bank.ema, task, average)
    )
    return State(bank, task, moments, state.step + 1), metrics


def _gradient(
    config: PlannerConfig, state: State, feed: Feed, current: Params
) -> tuple[Params, Metrics]:
    """The mean gradient of `accumulate` batches, and their mean metrics."""
    task_key = jax.random.fold_in(state.bank.key, state.task)
    window_key, step_key = jax.random.split(task_key)

    def one(part: jax.Array | int) -> tuple[Params, Metrics]:
        number = state.step * config.accumulate + part
        key = jax.random.fold_in(step_key, number)
        windows = draw(config, window_key, number, feed)
        found = jax.value_and_grad(planner_loss, argnums=1, has_aux=True)(
            config, current, state.bank.owner, state.task, windows, key, feed.penalty
        )
        return found[1], found[0][1] | {"loss": found[0][0]}

    if config.accumulate == 1:
        return one(0)

    def add(total: Any, part: jax.Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, one(part)), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(lambda: one(0)))
    total, _ = jax.lax.scan(add, zeros, jnp.arange(config.accumulate))
    return jax.tree.map(lambda leaf: leaf / config.accumulate, total)


def draw(config: PlannerConfig, key: jax.Array, number: jax.Array, feed: Feed) -> Windows:
    """The windows of a batch: the task's, or now and then an earlier task's.

    Args:
        config: horizon, batch size and order of windows; static.
        key: [] typed random key of the task's windows.
        number: [] int32 of the batch.
        feed: the task's data, and what is replayed of earlier tasks.

    Returns:
        `config.batch` windows.
    """
    horizon, size = config.network.horizon, config.batch
    permute = config.windows == "permute"
    index = draw_windows(key, size, feed.data.count, number, permute)
    own = gather(feed.data, index, horizon)
    if not config.replay_every or feed.replay is None:
        return own
    pick_key, replay_key = jax.random.split(jax.random.fold_in(key, (1 << 31) + 1))
    earlier = feed.replay.count.shape[0]
    pick = jax.random.randint(jax.random.fold_in(pick_key, number), (), 0, earlier)
    kept = jax.tree.map(lambda leaf: leaf[pick], feed.replay)
    index = draw_windows(replay_key, size, kept.count, number, permute=False)
    now = number % config.replay_every == config.replay_every - 1
    old = gather(kept, index, horizon)
    return jax.tree.map(lambda a, b: jnp.where(now, a, b), old, own)


def planner_loss(
    config: PlannerConfig,
    current: Params,
    owner: Params,
    task: jax.Array,
    windows: Windows,
    key: jax.Array,
    penalty: Penalty | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of one batch.

    Args:
        config: static.
        current: the task's weights as `bank.take` gives them.
        owner: owners of the bank.
        task: [] whose weights they are.
        windows: a batch.
        key: [] typed key of steps, noise and dropped conditions.
        penalty: pull towards earlier weights, as trees of the bank's shape.

    Returns:
        The loss [] and its parts.
    """
    weights = effective(config, current, owner, task)
    parts: dict[str, jax.Array] = {}
    if config.behavior == "cloned":
        errors = perceptron(weights.inverse, windows.states) - windows.actions
        parts["cloning"] = jnp.square(errors).mean()
    else:
        parts["diffusion"] = _diffusion_part(config, weights.network, windows, key)
    if config.behavior == "inverse":
        parts["inverse"] = inverse_loss(weights.inverse, windows.states, windows.actions)
    total = sum(parts.values(), jnp.zeros(()))
    if penalty is not None and config.penalty:
        pull = _pull(current, penalty)
        total, parts["penalty"] = total + config.penalty * pull, pull
    return total, parts


def _diffusion_part(
    config: PlannerConfig, network: Params, windows: Windows, key: jax.Array
) -> jax.Array:
    """The diffusion loss at random steps, with random noise and dropped conditions."""
    step_key, noise_key, keep_key = jax.random.split(key, 3)
    x0 = windows.states
    if config.behavior == "diffused":
        x0 = jnp.concatenate([windows.states, windows.actions], axis=-1)
    batch = x0.shape[0]
    k = jax.random.randint(step_key, (batch,), 0, config.diffusion.steps)
    noise = jax.random.normal(noise_key, x0.shape, x0.dtype)
    keep = jax.random.bernoulli(keep_key, 1.0 - config.diffusion.drop, (batch, 1))
    condition = windows.returns if config.condition == "return" else windows.task
    predict = noise_function(config, network, condition.astype(x0.dtype)[:, None])
    schedule = cosine_schedule(config.diffusion.steps)
    kept = keep.astype(x0.dtype)
    return diffusion_loss(predict, schedule, x0, k, noise, kept, config.state_channels)


def noise_function(config: PlannerConfig, network: Params, condition: jax.Array) -> Noise:
    """The network with its condition [B, 1], repeated as often as the batch is."""

    def predict(x: jax.Array, k: jax.Array, keep: jax.Array) -> jax.Array:
        asked = jnp.tile(condition, (x.shape[0] // condition.shape[0], 1))
        return temporal_unet.apply(network, config.network, x, k, asked, keep)

    return predict


def _pull(current: Params, penalty: Penalty) -> jax.Array:
    def one(leaf: jax.Array, center: jax.Array, importance: jax.Array) -> jax.Array:
        return (importance * jnp.square(leaf - center)).sum()

    terms = jax.tree.map(one, current, penalty.center, penalty.importance)
    return sum(jax.tree.leaves(terms), jnp.zeros(()))


def _restricted(config: PlannerConfig, bank: Bank, task: jax.Array, updates: Params) -> Params:
    """Updates of what this task may change."""
    if config.update == "masked":
        updates = apply_mask(updates, bank.owner, task)
    first = bank.done == 0

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        name = path_name(path)
        if kind(config, name) == "base":
            return jnp.where(first, leaf, 0)
        if name.startswith("adapters/"):
            # The first task trains the base alone.
            return jnp.where(first, 0, leaf * (config.adapter_lr / config.lr))
        return leaf

    return jax.tree_util.tree_map_with_path(one, updates)


def _averaged(config: PlannerConfig, state: State, current: Params) -> Params:
    """The moving average after this step: every `ema_every` steps, a copy before `ema_start`."""
    bank, task = state.bank, state.task
    old = take(config, bank.ema, task)
    decay = jnp.where(state.step < config.ema_start, 0.0, config.ema_decay)

    def move(old: Params) -> Params:
        new = jax.tree.map(lambda a, b: decay * a + (1.0 - decay) * b, old, current)
        return _own(config, bank, task, new, old)

    due = state.step % config.ema_every == 0
    return jax.lax.cond(due, move, lambda old: old, old)
