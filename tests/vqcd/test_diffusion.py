"""Noising, guidance and the samplers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.vqcd import diffusion
from jaxmethods.vqcd.config import DiffusionConfig
from tests.vqcd.toy import changed

CONFIG = DiffusionConfig(steps=20, stride=5)
SCHEDULE = diffusion.cosine_schedule(20)
PRESENT = jnp.array([[0.3, -0.2], [0.1, 0.9], [-0.7, 0.4]])
SHAPE, BOUND = (4, 2), (-1.0, 1.0)
SAMPLERS = ("strided", "ddpm", "dpm-solver++")


def predict(x, k, keep):
    """A noise function that depends on all that it is given."""
    return jnp.tanh(x + 0.1 * k[:, None, None] / 20 + 0.5 * keep[:, :, None])


def sample(config, seed=0, function=predict):
    return diffusion.sample_plan(jax.random.key(seed), function, config, PRESENT, SHAPE, BOUND)


def start():
    return jax.random.normal(jax.random.key(5), (3, *SHAPE))


def test_the_data_follow_from_what_was_noised_and_the_noise():
    k = jnp.array([0, 7, 15])
    x0, noise = start(), jax.random.normal(jax.random.key(6), (3, *SHAPE))
    x = diffusion.q_sample(SCHEDULE, x0, k, noise)
    np.testing.assert_allclose(diffusion.data_from_noise(SCHEDULE, x, k, noise), x0, atol=1e-5)


def test_the_last_stride_adds_no_noise_and_ends_at_the_data():
    tables = diffusion.strided(200, 20)
    assert tables.variance[0] == 0
    np.testing.assert_allclose(tables.alpha[0], np.sqrt(tables.abar[0]), rtol=1e-6)


def test_every_step_of_one_has_the_posteriors_variances():
    tables, schedule = diffusion.strided(50, 1), diffusion.cosine_schedule(50)
    np.testing.assert_allclose(tables.variance, schedule.posterior_variance, rtol=2e-3, atol=1e-6)


def test_guidance_of_one_and_none():
    x, k = start(), jnp.full(3, 4)
    ones = jnp.ones((3, 1))
    np.testing.assert_array_equal(diffusion.guided(predict, 1.0)(x, k), predict(x, k, ones))
    np.testing.assert_array_equal(diffusion.guided(predict, 0.0)(x, k), predict(x, k, 0 * ones))


def test_one_doubled_batch_equals_two_passes():
    x, k, ones = start(), jnp.full(3, 4), jnp.ones((3, 1))
    with_condition, without = predict(x, k, ones), predict(x, k, 0 * ones)
    expected = without + 1.7 * (with_condition - without)
    np.testing.assert_allclose(diffusion.guided(predict, 1.7)(x, k), expected, atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_plan_is_one_scan_with_one_call_of_a_doubled_batch(sampler):
    calls = []

    def counted(x, k, keep):
        calls.append(x.shape)
        return predict(x, k, keep)

    config = changed(CONFIG, sampler=sampler)
    text = str(jax.make_jaxpr(lambda: sample(config, function=counted))())
    # A scan is traced more than once; every time with one call.
    assert set(calls) == {(6, *SHAPE)}
    length = diffusion.grid_size(config)
    assert text.count("scan[") == 1
    assert f"length={length}" in text
    assert length == (20 if sampler == "ddpm" else 4)


@pytest.mark.parametrize(
    "changes", [*({"sampler": name} for name in SAMPLERS), {"clip": "data"}], ids=str
)
def test_plans_keep_the_present_and_their_bounds(changes):
    config = changed(CONFIG, **changes)
    steps = diffusion.denoise(
        diffusion.guided(predict, 1.2),
        config,
        3.0 * start(),
        PRESENT,
        BOUND,
        lambda number: jax.random.normal(
            jax.random.fold_in(jax.random.key(1), number), (3, *SHAPE)
        ),
    )
    plan, trace = steps
    np.testing.assert_array_equal(
        trace[:, :, 0], np.broadcast_to(PRESENT, (trace.shape[0], *PRESENT.shape))
    )
    np.testing.assert_array_equal(trace[-1], plan)
    assert np.abs(plan).max() <= 1.0 + 1e-6


def test_without_variance_the_noise_does_not_matter():
    config = changed(CONFIG, eta=0.0)
    plans = [
        diffusion.denoise(
            diffusion.guided(predict, 1.2),
            config,
            start(),
            PRESENT,
            BOUND,
            lambda number, seed=seed: jax.random.normal(jax.random.key(seed), (3, *SHAPE)),
        )[0]
        for seed in range(2)
    ]
    np.testing.assert_array_equal(*plans)
    assert (sample(CONFIG, 0) != sample(CONFIG, 1))[:, 1:].all()


def gaussian_noise(mean, deviation):
    """The exact noise prediction of data N(mean, deviation^2) at every step."""

    def exact(x, k, keep):
        signal, sigma = (jnp.asarray(t)[k][:, None, None] for t in (SOLVED.signal, SOLVED.sigma))
        variance = signal**2 * deviation**2 + sigma**2
        return sigma * (x - signal * mean) / variance + 0 * keep[:, :, None]

    return exact


SOLVED = diffusion.cosine_schedule(200)


ABAR = np.cumprod(1.0 - np.asarray(SOLVED.betas, np.float64))


def moments(config, mean, deviation):
    """Where a sampler's steps lead N(0, 1) if data are N(mean, deviation^2), in closed form.

    Written from q(x' | x, x_0) = N(sqrt(a') x_0 + sqrt(1 - a' - s^2) (x - sqrt(a) x_0) / sqrt(1 -
    a), s^2), with E[x_0 | x] in place of x_0: all is linear, so moments are enough.
    """
    stride = 1 if config.sampler == "ddpm" else config.stride
    center, variance = 0.0, 1.0
    last = 200 - (1 if config.grid == "last" else stride)
    for k in range(last, -1, -stride):
        now, after = ABAR[k], ABAR[k - stride] if k >= stride else 1.0
        gain = np.sqrt(now) * deviation**2 / (now * deviation**2 + 1 - now)
        eta = {"ddpm": 1.0, "strided": config.eta, "dpm-solver++": 0.0}[config.sampler]
        added = eta * (1 - after) / (1 - now) * (1 - now / after)
        kept = np.sqrt((1 - after - added) / (1 - now))
        data = np.sqrt(after) - kept * np.sqrt(now)
        center = kept * center + data * (mean + gain * (center - np.sqrt(now) * mean))
        variance = (kept + data * gain) ** 2 * variance + added
    return center, np.sqrt(variance)


@pytest.mark.slow
@pytest.mark.parametrize(("mean", "deviation"), [(0.5, 0.3), (-0.4, 1.0), (0.7, 0.0)])
@pytest.mark.parametrize(
    "changes",
    [
        {"stride": 20},
        {"stride": 20, "eta": 0.0},
        {"stride": 4, "eta": 0.5},
        {"stride": 20, "grid": "last", "clip": "data"},
        {"stride": 1},
        {"sampler": "ddpm"},
    ],
    ids=str,
)
def test_samplers_have_the_moments_that_follow_from_the_exact_noise(changes, mean, deviation):
    config = DiffusionConfig(steps=200, guidance=1.0, **changes)
    found = plans_of_a_gaussian(config, mean, deviation)
    expected = moments(config, mean, deviation)
    error = max(deviation, 1e-3) / 4000**0.5
    np.testing.assert_allclose([found.mean(), found.std()], expected, atol=4 * error)


def plans_of_a_gaussian(config, mean, deviation):
    """Position 1 of 4000 plans, [4000, 1]."""
    plans = jax.jit(
        lambda key: diffusion.sample_plan(
            key, gaussian_noise(mean, deviation), config, jnp.zeros((4000, 1)), (2, 1), (-9.0, 9.0)
        )
    )(jax.random.key(0))
    return np.asarray(plans[:, 1])


@pytest.mark.parametrize("deviation", [0.3, 1.0])
def test_few_steps_of_the_solver_are_closer_than_few_strides(deviation):
    off = []
    for sampler in ("dpm-solver++", "strided"):
        config = DiffusionConfig(steps=200, stride=20, sampler=sampler, eta=0.0, guidance=1.0)
        off.append(abs(plans_of_a_gaussian(config, 0.5, deviation).std() - deviation))
    assert off[0] < 0.75 * off[1]


def flow(sampler, stride, deviation=0.3):
    """The largest distance to where the probability flow of a Gaussian leads, in closed form."""
    starts = jnp.linspace(-2, 2, 9)[:, None]
    config = DiffusionConfig(steps=200, stride=stride, sampler=sampler, eta=0.0)
    signal, sigma = SOLVED.signal[200 - stride], SOLVED.sigma[200 - stride]
    ratio = deviation / jnp.sqrt(signal**2 * deviation**2 + sigma**2)
    exact = 0.5 + (starts - signal * 0.5) * ratio
    begin = jnp.broadcast_to(starts[:, None], (9, 2, 1))
    guide = diffusion.guided(gaussian_noise(0.5, deviation), 1.0)
    bounds, present = (-9.0, 9.0), jnp.zeros((9, 1))
    plan, _ = diffusion.denoise(guide, config, begin, present, bounds, jnp.zeros_like)
    return plan, float(jnp.abs(plan[:, 1] - exact).max())


def test_the_solver_is_of_second_order_and_strides_are_of_first():
    strides = [flow("strided", stride)[1] for stride in (10, 5)]
    solver = [flow("dpm-solver++", stride)[1] for stride in (10, 5)]
    assert 1.7 < strides[0] / strides[1] < 2.3
    assert solver[0] / solver[1] > 2.0**2
    assert solver[1] < 0.25 * strides[1]


def test_the_solver_without_extrapolation_is_the_strided_sampler_without_noise(monkeypatch):
    tables = diffusion.solver(200, 20)
    first = tables._replace(extrapolation=np.zeros(10, np.float32))
    monkeypatch.setattr(diffusion, "solver", lambda *_: first)
    np.testing.assert_allclose(flow("dpm-solver++", 20)[0], flow("strided", 20)[0], atol=2e-5)


def test_clipped_data_leave_noise_alone_and_clipped_plans_cut_it():
    """Exact predictions need no clipping; plans that still hold noise exceed the data's bounds."""
    found, noise = {}, jax.random.normal(jax.random.key(0), (50, 5, 2, 1))
    for clip, bound in (("data", 9.0), ("data", 0.501), ("plan", 0.501)):
        config = DiffusionConfig(steps=200, stride=4, guidance=1.0, clip=clip)
        guide = diffusion.guided(gaussian_noise(0.5, 0.0), 1.0)
        begin, present = jnp.ones((5, 2, 1)), jnp.zeros((5, 1))
        bounds = (1.0 - bound, bound)
        _, trace = diffusion.denoise(guide, config, begin, present, bounds, lambda n: noise[n])
        found[clip, bound] = trace[:, :, 1]
    np.testing.assert_allclose(found["data", 9.0], found["data", 0.501], atol=2e-3)
    assert np.abs(found["data", 0.501]).max() > 1.5
    assert np.abs(found["plan", 0.501][1:]).max() <= 0.501


def test_data_that_leave_their_bounds_are_clipped_before_the_step():
    tables, x, predicted = diffusion.strided(200, 20), jnp.ones((1, 1, 1)), -jnp.ones((1, 1, 1))
    noise = diffusion.within_bounds(tables, predicted, x, jnp.int32(9), (-2.0, 2.0))
    signal, sigma = np.sqrt(tables.abar[9]), np.sqrt(1 - tables.abar[9])
    np.testing.assert_allclose((1 - sigma * noise[0, 0, 0]) / signal, 2.0, rtol=1e-5)
    same = diffusion.within_bounds(tables, predicted, x, jnp.int32(9), (-20.0, 20.0))
    np.testing.assert_allclose(same, predicted, rtol=1e-5)


def test_position_zero_is_neither_noised_nor_missed():
    x0, k = start(), jnp.array([3, 9, 15])
    noise, keep = jax.random.normal(jax.random.key(2), x0.shape), jnp.ones((3, 1))
    seen = []

    def spy(offset):
        def function(x, k, keep):
            seen.append(x[:, 0])
            return predict(x, k, keep) + offset

        return function

    def loss(offset):
        return diffusion.diffusion_loss(spy(offset), SCHEDULE, x0, k, noise, keep, 2)

    slopes = jax.grad(loss)(jnp.zeros_like(x0))
    assert not slopes[:, 0].any()
    assert slopes[:, 1:].all()
    value = loss(jnp.zeros_like(x0))
    np.testing.assert_array_equal(seen[-1], x0[:, 0])
    x = diffusion.put_present(diffusion.q_sample(SCHEDULE, x0, k, noise), x0[:, 0])
    error = jnp.square(predict(x, k, keep) - noise)[:, 1:]
    # The mean is over all positions all the same.
    np.testing.assert_allclose(value, error.sum() / x0.size, rtol=1e-6)


def test_actions_that_are_diffused_are_predicted_at_position_zero_too():
    x0, k = jax.random.normal(jax.random.key(5), (3, 4, 3)), jnp.array([3, 9, 15])

    def loss(offset):
        return diffusion.diffusion_loss(
            lambda x, k, keep: predict(x, k, keep) + offset,
            SCHEDULE,
            x0,
            k,
            jnp.ones_like(x0),
            jnp.ones((3, 1)),
            2,
        )

    slopes = jax.grad(loss)(jnp.zeros_like(x0))
    assert not slopes[:, 0, :2].any()
    assert slopes[:, 0, 2].all()


def test_a_warm_start_is_noised_to_the_step_it_starts_from():
    x0, noise = start(), jax.random.normal(jax.random.key(2), (3, *SHAPE))
    found = diffusion.noised(CONFIG, x0, noise, calls=3)
    expected = diffusion.q_sample(SCHEDULE, x0, jnp.full(3, 10), noise)
    np.testing.assert_array_equal(found, expected)


def test_the_last_steps_of_strides_begin_where_training_ends():
    tables = diffusion.strided(200, 20, grid="last")
    assert tables.steps.tolist() == [*range(19, 200, 20)]
    assert tables.variance[0] == 0
    assert tables.abar_prev[0] == 1
    np.testing.assert_array_equal(tables.abar_prev[1:], tables.abar[:-1])
    config = changed(CONFIG, grid="last")
    x0, noise = start(), jax.random.normal(jax.random.key(2), (3, *SHAPE))
    expected = diffusion.q_sample(SCHEDULE, x0, jnp.full(3, 14), noise)
    np.testing.assert_array_equal(diffusion.noised(config, x0, noise, calls=3), expected)


def test_a_stride_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="divisor of the 20 diffusion steps, got 7"):
        changed(CONFIG, stride=7)


def test_eta_is_a_share_of_the_variance():
    full, half = diffusion.strided(200, 20), diffusion.strided(200, 20, 0.5)
    np.testing.assert_allclose(half.variance, 0.5 * np.asarray(full.variance), rtol=1e-6)
