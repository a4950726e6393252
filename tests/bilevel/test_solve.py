"""Gradients through inner optimizations, against closed forms and against each other."""

from __future__ import annotations

from functools import cache
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmethods import bilevel
from jaxmethods.bilevel import Implicit, Mixed, Reverse, Truncated
from tests.programs import once

SLOW = pytest.mark.slow
STEPS = 12
EXACT = [
    Reverse(),
    Reverse("step"),
    Reverse("sqrt"),
    Mixed(),
    Mixed(save=True),
    Truncated(STEPS),
    Truncated(STEPS, save=True),
]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def assert_close(actual: Any, expected: Any, rtol: float = 1e-10) -> None:
    """Relative to the largest entry of each leaf."""

    def leaf(a: Any, e: Any) -> None:
        np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol * max(1e-6, np.abs(e).max()))

    jax.tree.map(leaf, actual, expected)


# A quadratic inner problem, theta'A theta / 2 - theta'B h, whose iterates are known.
RATE = 0.2
A = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 0.5]])
B = np.array([[1.0, -0.5], [0.2, 0.8], [-0.7, 0.4]])
TARGET = np.array([1.0, -1.0, 0.5])
THETA, H = np.array([0.3, -0.2, 1.1]), np.array([0.7, -1.3])


def quadratic(theta, h, _):
    return 0.5 * theta @ A @ theta - theta @ B @ h


def quadratic_gradients(mode):
    def outer(theta, h):
        solution = bilevel.solve(quadratic, optax.sgd(RATE), theta, h, steps=STEPS, mode=mode)
        return 0.5 * jnp.sum((solution.params - TARGET) ** 2)

    return jax.jit(jax.value_and_grad(outer, argnums=(0, 1)))(jnp.array(THETA), jnp.array(H))


def closed_form(last):
    """Value and gradients of the outer objective through the last steps."""
    powers = [np.linalg.matrix_power(np.eye(3) - RATE * A, index) for index in range(STEPS + 1)]
    reached = powers[STEPS] @ THETA + sum(powers[:STEPS]) @ (RATE * B @ H)
    off = reached - TARGET
    start = powers[STEPS].T @ off if last == STEPS else np.zeros(3)
    return 0.5 * off @ off, (start, RATE * B.T @ sum(powers[:last], np.zeros((3, 3))).T @ off)


@pytest.mark.parametrize("mode", EXACT, ids=str)
def test_a_quadratic_has_the_closed_form(mode):
    assert_close(quadratic_gradients(mode), closed_form(STEPS), rtol=1e-12)


@pytest.mark.parametrize("last", [0, 1, 5, STEPS - 1])
def test_truncation_leaves_out_the_first_terms_of_the_closed_form(last):
    assert_close(quadratic_gradients(Truncated(last)), closed_form(last), rtol=1e-12)


def test_truncation_to_no_step_gives_zero():
    _, gradients = quadratic_gradients(Truncated(0))
    assert not any(np.any(leaf) for leaf in gradients)


@pytest.mark.parametrize("mode", EXACT, ids=str)
def test_a_learning_rate_has_the_closed_form(mode):
    """theta_T = (1 - rate a)^T theta_0, with the rate as an argument or closed over."""
    a, theta, rate = 1.7, jnp.float64(0.9), jnp.float64(0.3)

    def reached(rate, optimizer, hyper):
        loss = lambda theta, hyper, _: 0.5 * a * theta**2  # noqa: E731
        return bilevel.solve(loss, optimizer, theta, hyper, steps=STEPS, mode=mode).params

    argument = jax.grad(lambda rate: reached(rate, lambda h: optax.sgd(h["rate"]), {"rate": rate}))
    closed_over = jax.grad(lambda rate: reached(rate, optax.sgd(rate), {}))
    expected = -a * STEPS * (1 - rate * a) ** (STEPS - 1) * theta
    assert_close(argument(rate), expected, rtol=1e-12)
    assert_close(closed_over(rate), expected, rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 5, 7])
def test_steps_that_fill_no_chunk_are_taken_too(steps):
    """Chunks have the root of the steps' number: one of five and of seven steps is left over."""
    a, rate, theta = 1.7, 0.3, 0.9

    def reached(rate):
        loss = lambda theta, hyper, _: 0.5 * a * theta**2  # noqa: E731
        optimizer = lambda rate: optax.sgd(rate)  # noqa: E731
        mode = Reverse("sqrt")
        return bilevel.solve(loss, optimizer, jnp.float64(theta), rate, steps=steps, mode=mode)

    solution = reached(rate)
    iterates = theta * (1 - rate * a) ** np.arange(steps + 1)
    assert_close(solution.params, iterates[-1], rtol=1e-12)
    assert_close(solution.losses, 0.5 * a * iterates[:-1] ** 2, rtol=1e-12)
    slope = jax.grad(lambda rate: reached(rate).params)(rate)
    assert_close(slope, -a * steps * (1 - rate * a) ** (steps - 1) * theta, rtol=1e-12)


# A network with noise in its loss: nothing is quadratic, everything is a pytree.
KEYS = jax.random.split(jax.random.key(3), 6)
NOISE_KEYS = jax.random.split(jax.random.key(4), STEPS)


@once
def start() -> Any:
    return {
        "hidden": (0.7 * jax.random.normal(KEYS[0], (3, 5)), jnp.zeros(5)),
        "out": jax.random.normal(KEYS[1], (5, 2)),
    }


@once
def outer_variable() -> Any:
    return {
        "data": [jax.random.normal(KEYS[2], (7, 3)), jax.random.normal(KEYS[3], (7, 2))],
        "logits": jax.random.normal(KEYS[4], (7,)),
        "rate": jnp.float64(0.1),
    }


def network(params, states):
    weight, bias = params["hidden"]
    return jax.nn.softplus(states @ weight + bias) @ params["out"]


def noisy_loss(params, hyper, batch):
    key, scale = batch
    states, targets = hyper["data"]
    states = states + scale * jax.random.normal(key, states.shape)
    errors = jnp.sum((jnp.tanh(network(params, states)) - targets) ** 2, axis=-1)
    return jnp.mean(jax.nn.sigmoid(hyper["logits"]) * errors)


def scheduled(hyper):
    schedule = optax.cosine_decay_schedule(hyper["rate"], STEPS)
    return optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(schedule, eps_root=1e-8))


OPTIMIZERS = {
    "sgd with a learned rate": lambda hyper: optax.sgd(hyper["rate"]),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.05, eps_root=1e-8),
    "clipped adamw on a learned schedule": scheduled,
    "adam with its rate in its state": lambda hyper: optax.inject_hyperparams(optax.adam)(
        learning_rate=hyper["rate"], eps_root=1e-8
    ),
}


def judged(solution: bilevel.Solution) -> jax.Array:
    """Depends on all of the solution."""
    probe = jnp.linspace(-1, 1, 12).reshape(4, 3)
    state = [
        x for x in jax.tree.leaves(solution.opt_state) if jnp.issubdtype(x.dtype, jnp.floating)
    ]
    held = sum(jnp.sum(jnp.cos(leaf)) for leaf in state)
    return jnp.mean(network(solution.params, probe) ** 2) + jnp.sum(solution.losses**2) + held


def outer_gradients(optimizer, mode, argnums=(0, 1, 2)):
    def outer(params, hyper, scales):
        batches = (NOISE_KEYS, scales)
        return judged(bilevel.solve(noisy_loss, optimizer, params, hyper, batches, mode=mode))

    gradient = jax.jit(jax.value_and_grad(outer, argnums=argnums))
    return gradient(start(), outer_variable(), jnp.linspace(0.1, 0.4, STEPS))


@cache
def by_reverse_mode(name):
    """Outer value and gradients of an optimizer."""
    return outer_gradients(OPTIMIZERS[name], Reverse())


# Every mode with one optimizer, and another optimizer; the slow tests have all pairs.
QUICK_PAIRS = [("adam", mode) for mode in EXACT[1:5]] + [("momentum", Mixed())]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(
            name, mode, id=f"{name}-{mode}", marks=[] if (name, mode) in QUICK_PAIRS else [SLOW]
        )
        for name in OPTIMIZERS
        for mode in EXACT[1:5]
    ],
)
def test_exact_modes_agree(name, mode):
    """In parameters, outer variable and batches, through all of the solution."""
    assert_close(outer_gradients(OPTIMIZERS[name], mode), by_reverse_mode(name))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "adam" else [SLOW]) for n in OPTIMIZERS]
)
def test_plain_reverse_mode_agrees_with_finite_differences(name):
    _, gradients = by_reverse_mode(name)
    batches = (NOISE_KEYS, jnp.linspace(0.1, 0.4, STEPS))
    arguments = (start(), outer_variable())
    leaves, treedef = jax.tree.flatten(arguments)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    direction = [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]

    @jax.jit
    def outer(distance):
        moved = [x + distance * d for x, d in zip(leaves, direction, strict=True)]
        params, hyper = jax.tree.unflatten(treedef, moved)
        return judged(bilevel.solve(noisy_loss, OPTIMIZERS[name], params, hyper, batches))

    slope = (outer(1e-6) - outer(-1e-6)) / 2e-6
    own = [jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradients[:2]), direction, strict=True)]
    np.testing.assert_allclose(sum(own), slope, rtol=1e-6)


@pytest.mark.parametrize(
    "mode",
    [Mixed(), pytest.param(Mixed(save=True), marks=SLOW), pytest.param(Truncated(5), marks=SLOW)],
    ids=str,
)
def test_mapped_problems_are_those_of_a_loop(mode):
    """Inside and outside of the gradient."""

    def outer(hyper, key):
        keys = jax.random.split(key, STEPS)
        batches = (keys, jnp.full(STEPS, 0.2))
        optimizer = OPTIMIZERS["adam"]
        return judged(bilevel.solve(noisy_loss, optimizer, start(), hyper, batches, mode=mode))

    many = jax.tree.map(lambda x: jnp.stack([x, 1.1 * x, 0.8 * x]), outer_variable())
    keys = jax.random.split(jax.random.key(5), 3)
    one = jax.jit(jax.grad(outer))
    pairs = [(jax.tree.map(lambda x, i=i: x[i], many), keys[i]) for i in range(3)]
    expected = jax.tree.map(lambda *x: jnp.stack(x), *[one(*pair) for pair in pairs])
    assert_close(jax.jit(jax.vmap(jax.grad(outer)))(many, keys), expected)
    total = jax.jit(jax.grad(lambda many: jnp.sum(jax.vmap(outer)(many, keys))))
    assert_close(total(many), expected)


def test_the_gradient_can_be_differentiated_again():
    """d2/drate2 of (1 - rate a)^T theta_0."""

    def reached(rate):
        loss = lambda theta, hyper, _: 0.85 * theta**2  # noqa: E731
        optimizer = lambda rate: optax.sgd(rate)  # noqa: E731
        return bilevel.solve(loss, optimizer, jnp.float64(0.9), rate, steps=STEPS).params

    curvature = jax.grad(jax.grad(reached))(jnp.float64(0.3))
    a = 1.7
    assert_close(curvature, a**2 * STEPS * (STEPS - 1) * (1 - 0.3 * a) ** (STEPS - 2) * 0.9)


@pytest.mark.parametrize("mode", EXACT, ids=str)
def test_what_the_loss_closes_over_has_a_gradient_too(mode):
    def outer(h, inside):
        loss = quadratic if inside else lambda theta, _, batch: quadratic(theta, h, batch)
        solution = bilevel.solve(loss, optax.sgd(RATE), jnp.array(THETA), h, steps=STEPS, mode=mode)
        return jnp.sum(solution.params**3)

    gradient = jax.grad(outer)
    assert_close(gradient(jnp.array(H), False), gradient(jnp.array(H), True), rtol=1e-12)


def test_leaves_that_are_not_floating_are_passed_on():
    rows, labels = jnp.array([0, 2, 1]), jnp.array([1, 0, 1])

    def loss(params, hyper, index):
        scores = params[hyper["rows"]] * hyper["scale"]
        return optax.softmax_cross_entropy_with_integer_labels(scores, hyper["labels"])[index]

    def outer(scale, mode):
        hyper = {"rows": rows, "labels": labels, "scale": scale}
        params = jnp.arange(6.0).reshape(3, 2) / 5
        batches = jnp.arange(STEPS) % 3
        solution = bilevel.solve(loss, optax.adam(0.1), params, hyper, batches, mode=mode)
        return jnp.sum(solution.params**2)

    gradient = jax.jit(jax.grad(outer), static_argnums=1)
    assert_close(gradient(1.3, Mixed()), gradient(1.3, Reverse()))
    assert_close(gradient(1.3, Mixed(save=True)), gradient(1.3, Reverse()))


@pytest.mark.parametrize("mode", [*EXACT[:-2], Truncated(0)], ids=str)
def test_without_steps_nothing_depends_on_the_outer_variable(mode):
    def outer(theta, h):
        solution = bilevel.solve(quadratic, optax.sgd(RATE), theta, h, steps=0, mode=mode)
        assert solution.losses.shape == (0,)
        return jnp.sum(solution.params**2)

    theta, h = jax.grad(outer, argnums=(0, 1))(jnp.array(THETA), jnp.array(H))
    np.testing.assert_array_equal(theta, 2 * THETA)
    np.testing.assert_array_equal(h, np.zeros(2))


def test_the_solution_is_that_of_a_loop_of_optimizer_steps():
    optimizer = OPTIMIZERS["adam"]
    params, hyper, scales = start(), outer_variable(), jnp.linspace(0.1, 0.4, STEPS)
    state, losses = optimizer.init(params), []

    @jax.jit
    def step(params, state, batch):
        value, gradient = jax.value_and_grad(noisy_loss)(params, hyper, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    for batch in zip(NOISE_KEYS, scales, strict=True):
        params, state, value = step(params, state, batch)
        losses.append(value)
    expected = bilevel.Solution(params, state, jnp.stack(losses))
    for mode in (*EXACT, Truncated(5), Implicit()):
        own = bilevel.solve(noisy_loss, optimizer, start(), hyper, (NOISE_KEYS, scales), mode=mode)
        assert_close(own, expected)


loss_gradient = jax.jit(jax.grad(noisy_loss, argnums=(0, 1)))


@jax.jit
def pulled(params, hyper, batch, nu):
    """`nu` times the second derivatives by the parameters and by the outer variable."""
    return jax.vjp(lambda p, h: loss_gradient(p, h, batch)[0], params, hyper)[1](nu)


def adjoint_with(forward, backward, beta=0.9, rate=0.1):
    """The adjoint of SGD with momentum, written out, whose gradients see other batches."""
    params, hyper = start(), outer_variable()
    velocity, trajectory = jax.tree.map(jnp.zeros_like, params), []
    for index in range(STEPS):
        trajectory.append(params)
        gradient, _ = loss_gradient(params, hyper, jax.tree.map(lambda x, i=index: x[i], forward))
        velocity = jax.tree.map(lambda v, g: beta * v + g, velocity, gradient)
        params = jax.tree.map(lambda p, v: p - rate * v, params, velocity)
    along = jax.grad(lambda params: jnp.sum(network(params, jnp.ones((1, 3))) ** 2))(params)
    nu, total = jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, hyper)
    for index in reversed(range(STEPS)):
        nu = jax.tree.map(lambda n, a: n - rate * a, nu, along)
        batch = jax.tree.map(lambda x, i=index: x[i], backward)
        curved, mixed = pulled(trajectory[index], hyper, batch, nu)
        along = jax.tree.map(jnp.add, along, curved)
        total = jax.tree.map(jnp.add, total, mixed)
        nu = jax.tree.map(lambda n: beta * n, nu)
    return total


@pytest.mark.parametrize("fresh", [False, True], ids=["replayed noise", "fresh noise"])
@pytest.mark.parametrize("mode", [Mixed(), Truncated(STEPS)], ids=str)
def test_the_adjoint_sees_the_backward_batches(mode, fresh):
    scales = jnp.full(STEPS, 0.3)
    keys = jax.random.split(jax.random.key(77), STEPS) if fresh else NOISE_KEYS

    def outer(hyper, scales):
        solution = bilevel.solve(
            noisy_loss,
            OPTIMIZERS["momentum"],
            start(),
            hyper,
            (NOISE_KEYS, scales),
            mode=mode,
            backward_batches=(keys, scales),
        )
        return jnp.sum(network(solution.params, jnp.ones((1, 3))) ** 2)

    hyper, batches = jax.jit(jax.grad(outer, argnums=(0, 1)))(outer_variable(), scales)
    assert_close(hyper, adjoint_with((NOISE_KEYS, scales), (keys, scales)))
    np.testing.assert_array_equal(batches, np.zeros(STEPS))


MODES = [*EXACT[:-2], Truncated(5), Implicit(), Implicit("neumann", rate=0.1)]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_size_of_the_program_does_not_depend_on_the_steps(mode):
    def equations(steps):
        def outer(h):
            solution = bilevel.solve(
                quadratic, optax.adam(RATE), jnp.array(THETA), h, steps=steps, mode=mode
            )
            return jnp.sum(solution.params**2)

        return str(jax.make_jaxpr(jax.grad(outer))(jnp.array(H))).count(" = ")

    assert equations(10) == equations(200)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_other_data_of_the_same_shape_is_no_new_program(mode):
    traces = []

    @jax.jit
    def gradient(hyper, scales):
        traces.append(mode)

        def outer(hyper):
            batches = (NOISE_KEYS, scales)
            optimizer = OPTIMIZERS["sgd with a learned rate"]
            solution = bilevel.solve(noisy_loss, optimizer, start(), hyper, batches, mode=mode)
            return jnp.sum(network(solution.params, jnp.ones((1, 3))) ** 2)

        return jax.grad(outer)(hyper)

    first = gradient(outer_variable(), jnp.full(STEPS, 0.1))
    second = gradient(outer_variable(), jnp.full(STEPS, 0.3))
    assert not np.allclose(first["data"][0], second["data"][0])
    assert len(traces) == 1


def test_mixed_mode_traces_the_loss_once():
    traced = chex.assert_max_traces(noisy_loss, n=1)

    def outer(hyper):
        batches = (NOISE_KEYS, jnp.full(STEPS, 0.1))
        return judged(bilevel.solve(traced, optax.adam(0.1), start(), hyper, batches))

    jax.jit(jax.grad(outer))(outer_variable())


def test_memory_of_the_modes():
    """Bytes of temporaries: a trajectory is less than all residuals, its sqrt(T) states less."""
    steps, width = 100, 64

    def loss(params, states, _):
        return jnp.mean(jnp.tanh(jnp.tanh(states @ params[0]) @ params[1]) ** 2)

    def temporaries(mode):
        def outer(states):
            params = [jnp.ones((8, width)) / 8, jnp.ones((width, width)) / width]
            solution = bilevel.solve(loss, optax.sgd(0.1), params, states, steps=steps, mode=mode)
            return jnp.sum(solution.params[1] ** 2)

        lowered = jax.jit(jax.grad(outer)).lower(jnp.ones((128, 8)))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    trajectory = steps * (8 * width + width**2) * 8
    everything, mixed = temporaries(Reverse()), temporaries(Mixed())
    assert mixed < everything / 3
    assert trajectory < mixed < 1.3 * trajectory
    assert temporaries(Reverse("step")) < everything / 3
    assert temporaries(Truncated(10)) < mixed / 4
    assert temporaries(Reverse("sqrt")) < mixed / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": None}, "give batches with a leading axis of steps, or steps"),
        ({"batches": jnp.zeros(3), "steps": 4}, r"must agree, got \[3, 4\]"),
        ({"batches": (jnp.zeros(3), jnp.zeros(2)), "steps": None}, r"must agree, got \[2, 3\]"),
        ({"params": {"w": jnp.arange(3)}}, r"must be floating, got int32 at \['w'\]"),
        ({"mode": Truncated(5)}, r"Truncated\(5\) of only 4 steps"),
        ({"mode": Implicit(), "steps": 0}, "needs at least one step"),
        ({"mode": Reverse(), "batches": jnp.ones(4), "backward_batches": jnp.ones(4)}, "Reverse"),
        ({"mode": Mixed(save=True), "batches": jnp.ones(4), "backward_batches": 1}, "save"),
        ({"batches": jnp.ones(4), "backward_batches": jnp.ones(5)}, "must be shaped as batches"),
        ({"mode": Reverse("offload")}, "use 'step' or 'sqrt' there"),
        ({"mode": "reverse"}, r"Reverse\(\), Mixed\(\), Truncated\(steps\), Implicit.*'reverse'"),
        ({"mode": Mixed}, "mode must be one of .*got the class Mixed"),
        ({"mode": None}, "mode must be one of .*got None"),
        ({"steps": -1}, "steps must be 0 or more, an integer, got -1"),
        ({"steps": 2.5}, "steps must be 0 or more, an integer, got 2.5"),
        ({"steps": True}, "steps must be 0 or more, an integer, got True"),
        ({"batches": jnp.float32(1)}, "must have a leading axis of steps"),
        ({"optimizer": "sgd"}, "must be an optax transformation .*got str"),
        ({"optimizer": lambda hyper: None}, "must be an optax transformation .*got NoneType"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    call = {"optimizer": optax.sgd(RATE), "params": jnp.array(THETA), "hyper": jnp.array(H)}
    with pytest.raises(ValueError, match=message):
        bilevel.solve(quadratic, **(call | {"steps": 4} | arguments))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Reverse("all"), "remat must be one of none, step, sqrt, offload, got 'all'"),
        (lambda: Truncated(-1), "steps must be 0 or more, an integer, got -1"),
        (lambda: Truncated(2.5), "steps must be 0 or more, an integer, got 2.5"),
        (lambda: Truncated(True), "steps must be 0 or more, an integer, got True"),
        (lambda: Mixed("step"), "save must be True or False, got 'step'"),
        (lambda: Implicit("lu"), "solver must be one of cg, neumann, got 'lu'"),
        (lambda: Implicit("neumann"), "rate must be positive for the Neumann series"),
        (lambda: Implicit(iterations=0), "iterations must be 1 or more, an integer, got 0"),
        (lambda: Implicit(iterations=2.5), "iterations must be 1 or more, an integer, got 2.5"),
        (lambda: Implicit(damping=float("nan")), "damping must be 0 or more, and finite, got nan"),
        (lambda: Implicit(tolerance=-1.0), "tolerance must be 0 or more"),
        (lambda: Implicit(damping=-1.0), "damping must be 0 or more"),
    ],
)
def test_wrong_modes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def kept(hyper, decay=1.0):
    """Descent whose rate is nowhere but in its state, where it decays from step to step."""
    return optax.GradientTransformation(
        lambda params: {"rate": hyper["rate"], "key": jax.random.key(0), "count": jnp.int32(0)},
        lambda gradient, state, params: (
            jax.tree.map(lambda g: -state["rate"] * g, gradient),
            state | {"rate": state["rate"] * decay, "count": state["count"] + 1},
        ),
    )


def scheduled_rate(hyper):
    return lambda count: hyper["rate"] * hyper["momentum"] ** count


INJECT = optax.inject_hyperparams
# The same optimizer with its variables in its functions, and in its state.
IN_STATE = {
    "sgd": (
        lambda h: optax.sgd(h["rate"], momentum=h["momentum"]),
        lambda h: INJECT(optax.sgd)(h["rate"], momentum=h["momentum"]),
    ),
    "adam": (
        lambda h: optax.adam(h["rate"], b1=h["momentum"], eps_root=1e-8),
        lambda h: INJECT(optax.adam)(h["rate"], b1=h["momentum"], eps_root=1e-8),
    ),
    "every second step": (
        lambda h: optax.MultiSteps(optax.sgd(h["rate"]), 2).gradient_transformation(),
        lambda h: optax.MultiSteps(INJECT(optax.sgd)(h["rate"]), 2).gradient_transformation(),
    ),
    "if finite": (
        lambda h: optax.apply_if_finite(optax.sgd(h["rate"], momentum=h["momentum"]), 3),
        lambda h: optax.apply_if_finite(INJECT(optax.sgd)(h["rate"], momentum=h["momentum"]), 3),
    ),
    "a schedule": (
        lambda h: optax.sgd(scheduled_rate(h)),
        lambda h: INJECT(optax.sgd)(scheduled_rate(h)),
    ),
    "its own state": (lambda h: optax.sgd(h["rate"]), kept),
    "a state that decays": (
        lambda h: optax.sgd(scheduled_rate(h)),
        lambda h: kept(h, decay=h["momentum"]),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode",
    [Truncated(0), pytest.param(Truncated(1), marks=SLOW), Truncated(5, save=True)],
    ids=str,
)
@pytest.mark.parametrize("name", IN_STATE)
def test_truncation_finds_the_outer_variable_in_the_optimizer_state(name, mode):
    """What the state merely keeps isn't what the steps before have made."""

    def gradient(optimizer):
        def outer(hyper):
            theta = jnp.array(THETA)
            loss = lambda theta, hyper, _: quadratic(theta, hyper["h"], None)  # noqa: E731
            solution = bilevel.solve(loss, optimizer, theta, hyper, steps=STEPS, mode=mode)
            return jnp.sum((solution.params - TARGET) ** 2)

        hyper = {"rate": jnp.float64(0.1), "momentum": jnp.float64(0.7), "h": jnp.array(H)}
        return jax.jit(jax.grad(outer))(hyper)

    in_functions, in_state = (gradient(optimizer) for optimizer in IN_STATE[name])
    assert_close(in_state, in_functions)
    assert bool(in_functions["rate"]) == (mode.steps > 0)


@pytest.mark.parametrize("closed_over", [False, True])
def test_a_truncated_gradient_of_a_rate_in_the_state_has_the_closed_form(closed_over):
    """theta_T = (1 - rate a)^K theta_{T-K}, with the first T - K steps taken as they are."""
    a, rate, theta, last = 1.7, 0.3, 0.9, 5

    def reached(rate):
        loss = lambda theta, hyper, _: 0.5 * a * theta**2  # noqa: E731
        make = optax.inject_hyperparams(optax.sgd)
        optimizer = make(rate) if closed_over else make
        mode = Truncated(last)
        return bilevel.solve(loss, optimizer, theta, rate, steps=STEPS, mode=mode).params

    expected = -a * last * (1 - rate * a) ** (STEPS - 1) * theta
    assert_close(jax.grad(reached)(rate), expected, rtol=1e-12)


def test_truncation_keeps_the_initial_parameters_out_of_the_optimizer_state():
    """Lookahead and its kin start from a copy of the parameters; that is a constant too."""
    pull = optax.GradientTransformation(
        lambda params: params, lambda g, start, params: (start - params - 0.1 * g, start)
    )

    def outer(theta, mode):
        h = jnp.array(H)
        solution = bilevel.solve(quadratic, pull, theta, h, steps=STEPS, mode=mode)
        return jnp.sum(solution.params**2)

    assert not np.any(jax.grad(outer)(jnp.array(THETA), Truncated(5)))
    assert np.all(jax.grad(outer)(jnp.array(THETA), Truncated(STEPS)))


TYPES = {  # of parameters, outer variable: relative error of half precision after twelve steps
    ("float32", "float32"): 1e-5,
    ("float64", "float32"): 1e-6,
    ("float32", "float64"): 1e-5,
    ("bfloat16", "float32"): 0.06,
    ("bfloat16", "bfloat16"): 0.1,
    ("float16", "float32"): 0.01,
    ("float32", "bfloat16"): 0.02,
}


TYPED = [Reverse("step"), Mixed(), Mixed(save=True), Truncated(5)]


@cache
def typed_gradients(mode, params_type, hyper_type):
    def loss(theta, hyper, _):
        wide = theta.astype(jnp.promote_types(theta.dtype, jnp.float32))
        return quadratic(wide, hyper["h"].astype(wide.dtype), None)

    def outer(theta, hyper):
        make = lambda h: optax.sgd(h["rate"], momentum=h["momentum"])  # noqa: E731
        solution = bilevel.solve(loss, make, theta, hyper, steps=STEPS, mode=mode)
        return jnp.sum(solution.params.astype(float) ** 2) + jnp.sum(solution.losses)

    values = {"rate": 0.1, "momentum": 0.5, "h": H}
    hyper = jax.tree.map(lambda x: jnp.asarray(x, hyper_type), values)
    theta = jnp.asarray(THETA, params_type)
    return jax.jit(jax.grad(outer, argnums=(0, 1)))(theta, hyper)


@pytest.mark.slow
@pytest.mark.parametrize("mode", TYPED, ids=str)
@pytest.mark.parametrize("types", TYPES, ids="-".join)
def test_types_may_be_mixed(types, mode):
    """Parameters, outer variable and loss each in their own; every gradient in its variable's."""

    params_type, hyper_type = types
    theta, hyper = typed_gradients(mode, params_type, hyper_type)
    assert theta.dtype == params_type
    assert {leaf.dtype for leaf in jax.tree.leaves(hyper)} == {jnp.dtype(hyper_type)}
    exact = typed_gradients(mode, "float64", "float64")
    flat = [np.concatenate([np.ravel(x).astype(float) for x in jax.tree.leaves(tree)])
            for tree in ((theta, hyper), exact)]  # fmt: skip
    np.testing.assert_allclose(flat[0], flat[1], atol=TYPES[types] * np.abs(flat[1]).max())


def test_a_bfloat16_outer_variable_is_summed_over_a_thousand_steps():
    """d theta_T / dh of T steps along h is -rate T; a sum of that in bfloat16 stops growing."""
    steps, h = 1000, jnp.bfloat16(1.0)

    def reached(h):
        loss = lambda theta, h, _: theta * h.astype(jnp.float32)  # noqa: E731
        return bilevel.solve(loss, optax.sgd(0.01), jnp.float32(0), h, steps=steps).params

    np.testing.assert_allclose(float(jax.grad(reached)(h)), -0.01 * steps, rtol=2**-8)


def test_a_truncated_adjoint_sees_the_last_backward_batches():
    batches = jnp.array([0.5, 1.0, 1.5])

    def gradient(backward):
        def outer(hyper):
            loss = lambda theta, hyper, scale: 0.5 * scale * jnp.sum((theta - hyper) ** 2)  # noqa: E731
            mode = bilevel.Truncated(1)
            solution = bilevel.solve(
                loss, optax.sgd(0.1), jnp.zeros(()), hyper, batches,
                mode=mode, backward_batches=backward,
            )  # fmt: skip
            return solution.params

        return jax.grad(outer)(1.0)

    np.testing.assert_allclose(gradient(batches.at[0].set(9.0)), gradient(batches))
    assert gradient(batches.at[2].set(9.0)) != gradient(batches)
