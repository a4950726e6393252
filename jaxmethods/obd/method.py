r"""OBD as a method: one step draws students and rows, clones, and moves the synthetic set.

    G = (1/J) sum_j dH/dD of J fresh students
    G <- G min(1, 2 / |G|),    u <- beta_1 u + G,    D <- D - alpha_1 u

|G| is the joint norm over states and actions. Everything that a sweep varies (`Rates`: learning
rates, momenta, beta_w, the number of pairs) is in the state, so that `jax.vmap` of `step` over
states distills sets of different seeds and hyperparameters in one program:

    method = obd.distiller(config)
    init = lambda key, beta_w: obd.with_rates(method.init(key, source), beta_w=beta_w)
    states = jax.vmap(init)(keys, beta_ws)
    states, metrics = jax.jit(jax.vmap(method.step, (0, None)))(states, source)

Lei, Zhang and Tao, NeurIPS 2024, arXiv 2410.22728, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.bilevel import Reverse
from jaxmethods.method import Method, Metrics, Objective, gradient_step
from jaxmethods.obd.config import OBDConfig, StudentConfig
from jaxmethods.obd.meta_gradient import MetaGradient, inner_train, meta_gradient, mode_of
from jaxmethods.obd.objectives import OuterBatch, make_outer_batch, outer_loss
from jaxmethods.obd.synthetic import init_syn
from jaxmethods.obd.types import Source, SynSet
from jaxmethods.offline_rl.policies import Policy, deterministic, tanh_gaussian


class Rates(NamedTuple):
    """Hyperparameters that may differ between the sets of one vmapped program; each []."""

    inner_lr: jax.Array
    inner_momentum: jax.Array | None
    """None where the config has 0: the velocities would be kept for nothing."""
    outer_lr: jax.Array
    outer_momentum: jax.Array
    beta_w: jax.Array
    size: jax.Array
    """int32: how many of the first pairs are used; the others stay as they are."""


class State(NamedTuple):
    """A distillation under way; a pytree of arrays."""

    syn: SynSet
    optimizer: optax.OptState
    key: jax.Array
    step: jax.Array
    """[] int32: outer steps done."""
    rates: Rates


class Cloning(NamedTuple):
    """One student of a step."""

    params: Any
    """theta_0."""
    noise: jax.Array
    """[T, N, A] of the actions that it is trained with."""
    backward_noise: jax.Array | None
    """[T, N, A]; None: that of the forward pass."""
    batch: OuterBatch
    """What the clone is judged on, with noise of its own."""


def distiller(config: OBDConfig, student: Policy | None = None) -> Method:
    """Makes the distillation of an offline dataset.

    Args:
        config: sizes, objective and initial rates; static.
        student: another architecture than the config names.

    Returns:
        `init(key, source)` and `step(state, source)` with a `Source` on the device. Metrics: the
        outer `loss`, `gradient_norm` before clipping, `inner_first` and `inner_last` losses of the
        cloning, `weight_mean` of the outer loss; means over the `n_inits` students.
    """
    policy = student or make_student(config.student)

    def init(key: jax.Array, source: Source) -> State:
        return init_state(config, key, source)

    def step(state: State, source: Source) -> tuple[State, Metrics]:
        return outer_step(config, policy, state, source)

    def objective(state: State, source: Source) -> Objective:
        """The outer loss as a function of the set; with `state.key`, that of the next step.

        It jumps wherever a unit of a ReLU student changes sides on a synthetic state during the
        cloning. Its gradient is that of the piece between two jumps, in every mode.
        """

        def loss(syn: SynSet, key: jax.Array) -> jax.Array:
            _, batch_key, student_key = jax.random.split(key, 3)
            batch = make_outer_batch(batch_key, source, config, state.rates.beta_w)

            def one(key: jax.Array) -> jax.Array:
                own = draw_cloning(config, policy, state, source, batch, key)
                clone, _ = inner_train(
                    own.params,
                    syn,
                    own.noise,
                    state.rates.inner_lr,
                    state.rates.inner_momentum,
                    sample=policy.sample,
                    size=state.rates.size,
                    mode=Reverse("step"),  # differentiated twice
                )
                return outer_loss(clone, own.batch, policy.sample)

            return mean_over_students(config, one, student_key)

        return Objective(state.syn, loss)

    return Method(init, step, objective)


def make_student(config: StudentConfig) -> Policy:
    """The architecture that a config names."""
    if config.kind == "deterministic":
        return deterministic()
    return tanh_gaussian(config.n_layers, config.hidden, config.residual)


def init_pool(key: jax.Array, config: OBDConfig, source: Source, student: Policy) -> Any:
    """Initial students to draw from, for `Source.init_pool`.

    Args:
        key: [] typed random key.
        config: how many; static.
        source: the data, which say the sizes.
        student: the architecture.

    Returns:
        Parameters, leaves [config.init_pool, ...].
    """
    sizes = source.data.states.shape[1], source.data.actions.shape[1]
    # One after the other: orthogonalization doesn't gain from being mapped.
    return jax.lax.map(lambda k: student.init(k, *sizes), jax.random.split(key, config.init_pool))


def with_rates(state: State, **rates: jax.Array | float) -> State:
    """The state with some of its `Rates` replaced, each by a value of its dtype.

    Args:
        state: of the distillation.
        rates: name of a field of `Rates` -> its value, float or array.

    Returns:
        The state.

    Raises:
        ValueError: no such rate, or a momentum of a config without one, which keeps no velocities.
    """
    for name, value in rates.items():
        if getattr(state.rates, name, None) is None:
            known = [own for own, there in state.rates._asdict().items() if there is not None]
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value}")
    changed = {
        name: jnp.asarray(value, getattr(state.rates, name).dtype) for name, value in rates.items()
    }
    return state._replace(rates=state.rates._replace(**changed))


def used(state: State) -> SynSet:
    """The pairs that count: the first `rates.size`; of one state, outside of any jit.

    Args:
        state: of one distillation.

    Returns:
        The first `rates.size` pairs.
    """
    return SynSet(*(leaf[: int(state.rates.size)] for leaf in state.syn))


def init_state(config: OBDConfig, key: jax.Array, source: Source) -> State:
    """A fresh synthetic set of `config.n_syn` pairs."""
    key, syn_key = jax.random.split(key)
    syn = init_syn(syn_key, source, config)
    dtype = syn.states.dtype
    rates = Rates(
        inner_lr=jnp.asarray(config.inner_lr, dtype),
        inner_momentum=jnp.asarray(config.inner_momentum, dtype) if config.inner_momentum else None,
        outer_lr=jnp.asarray(config.outer_lr, dtype),
        outer_momentum=jnp.asarray(config.outer_momentum, dtype),
        beta_w=jnp.asarray(config.beta_w, dtype),
        size=jnp.int32(config.n_syn),
    )
    optimizer = outer_optimizer(config.clip, rates.outer_lr, rates.outer_momentum).init(syn)
    return State(syn, optimizer, key, jnp.int32(0), rates)


def outer_optimizer(
    clip: float, lr: jax.Array | float, momentum: jax.Array | float
) -> optax.GradientTransformation:
    """Joint clipping, then SGD with momentum; rates may be traced."""
    return optax.chain(optax.clip_by_global_norm(clip), optax.sgd(lr, momentum))


def outer_step(
    config: OBDConfig, student: Policy, state: State, source: Source
) -> tuple[State, Metrics]:
    """One update of the synthetic set.

    Args:
        config: sizes and switches; static.
        student: the architecture.
        state: set, moments, key and rates.
        source: offline data and teacher.

    Returns:
        The state after it, and metrics [].
    """
    key, batch_key, student_key = jax.random.split(state.key, 3)
    rates = state.rates
    batch = make_outer_batch(batch_key, source, config, rates.beta_w)
    found = average_gradient(config, student, state, source, batch, student_key)
    optimizer = outer_optimizer(config.clip, rates.outer_lr, rates.outer_momentum)
    syn, moments = gradient_step(optimizer, found.gradient, state.optimizer, state.syn)
    metrics = {
        "loss": found.loss,
        "gradient_norm": optax.tree.norm(found.gradient),
        "inner_first": found.inner_losses[0],
        "inner_last": found.inner_losses[-1],
        "weight_mean": batch.weights.mean(),
    }
    return State(syn, moments, key, state.step + 1, rates), metrics


def average_gradient(
    config: OBDConfig,
    student: Policy,
    state: State,
    source: Source,
    batch: OuterBatch,
    key: jax.Array,
) -> MetaGradient:
    """The mean over `config.n_inits` fresh students, each with noise of its own.

    Args:
        config: sizes and switches; static.
        student: the architecture.
        state: with the set and the rates.
        source: with the pool of initial students, if there is one.
        batch: B rows that clones are judged on.
        key: [] typed random key.

    Returns:
        Loss [], gradient in the structure of the set and inner losses [T], means over the students.
    """

    def one(key: jax.Array) -> MetaGradient:
        own = draw_cloning(config, student, state, source, batch, key)
        return meta_gradient(
            state.syn,
            own.params,
            own.noise,
            own.batch,
            state.rates.inner_lr,
            state.rates.inner_momentum,
            sample=student.sample,
            size=state.rates.size,
            mode=mode_of(config),
            backward_noise=own.backward_noise,
        )

    return mean_over_students(config, one, key)


def draw_cloning(
    config: OBDConfig,
    student: Policy,
    state: State,
    source: Source,
    batch: OuterBatch,
    key: jax.Array,
) -> Cloning:
    """What is random about one student of a step.

    Args:
        config: sizes and switches; static.
        student: the architecture.
        state: with the set, whose sizes the noise has.
        source: with the pool of initial students, if there is one.
        batch: B rows that clones are judged on.
        key: [] typed random key.

    Returns:
        The student's start and its noise; with several students each is judged with its own.
    """
    init_key, inner_key, outer_key, backward_key = jax.random.split(key, 4)

    def inner_noise(key: jax.Array) -> jax.Array:
        shape = (config.inner_steps, *state.syn.actions.shape)
        return config.inner_noise * jax.random.normal(key, shape, state.syn.actions.dtype)

    noise = batch.noise
    if config.n_inits > 1:
        noise = jax.random.normal(outer_key, noise.shape, noise.dtype)
    return Cloning(
        initial_student(student, source, init_key),
        inner_noise(inner_key),
        None if config.replay_noise else inner_noise(backward_key),
        batch._replace(noise=noise),
    )


def mean_over_students(config: OBDConfig, one: Callable[[jax.Array], Any], key: jax.Array) -> Any:
    """The mean of what `one` makes of the keys of `config.n_inits` students."""
    if config.n_inits == 1:
        return one(key)
    each = jax.vmap(one)(jax.random.split(key, config.n_inits))
    return jax.tree.map(lambda leaf: leaf.mean(0), each)


def initial_student(student: Policy, source: Source, key: jax.Array) -> Any:
    """theta_0: a fresh one, or one of the pool."""
    if source.init_pool is None:
        return student.init(key, source.data.states.shape[1], source.data.actions.shape[1])
    size = jax.tree.leaves(source.init_pool)[0].shape[0]
    place = jax.random.randint(key, (), 0, size)
    return jax.tree.map(lambda leaf: leaf[place], source.init_pool)
