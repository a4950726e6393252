"""What divergences are, at any logits: bounds, limits, symmetries, and what never is NaN."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.language import divergences as d

ALL = {
    "forward_kl": d.forward_kl,
    "reverse_kl": d.reverse_kl,
    "jsd": d.jsd,
    "total_variation": d.total_variation,
    "skew_forward_kl": d.skew_forward_kl,
    "skew_reverse_kl": d.skew_reverse_kl,
    "adaptive_kl": d.adaptive_kl,
    "osd_mix": d.osd_mix,
    "decoupled": lambda s, t: d.decoupled(s, t, jnp.zeros(s.shape[:-1], int), 0.5, 1.0),
    "atkd": lambda s, t: d.atkd(s, t, jnp.zeros(s.shape[:-1], int), jnp.ones(s.shape[:-1])),
}
BOUNDED = ("jsd", "total_variation", "skew_forward_kl", "skew_reverse_kl")
N, V = 6, 9


def draw(seed, scale=3.0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(N, V)) * scale, jnp.float32)


@pytest.fixture(scope="module")
def evaluate():
    """Values and gradients (of their sum) of everything, one program."""

    def one(function, student, teacher):
        return jax.value_and_grad(lambda s: jnp.sum(function(s, teacher)))(student)

    def call(student, teacher):
        each = {name: function(student, teacher) for name, function in ALL.items()}
        return each, {name: one(function, student, teacher) for name, function in ALL.items()}

    return jax.jit(call)


def test_equal_models_are_no_distance_apart(evaluate):
    values, gradients = evaluate(draw(0), draw(0))
    for name in ALL:
        np.testing.assert_allclose(values[name], 0, atol=1e-6)
        np.testing.assert_allclose(gradients[name][1], 0, atol=1e-6)


def test_bounds(evaluate):
    values, _ = evaluate(draw(0), draw(1))
    assert all((value > 0).all() for value in values.values())
    assert (values["jsd"] <= np.log(2)).all()
    assert (values["total_variation"] <= 1).all()
    assert (values["total_variation"] <= np.sqrt(values["reverse_kl"] / 2)).all()
    for name in ("skew_forward_kl", "skew_reverse_kl"):
        assert (values[name] <= -np.log(0.1)).all()


def test_constants_added_to_logits_change_nothing(evaluate):
    shifted, _ = evaluate(draw(0) + 7, draw(1) - 5)
    values, _ = evaluate(draw(0), draw(1))
    for name in ALL:
        np.testing.assert_allclose(shifted[name], values[name], rtol=2e-5)


def test_large_logits_are_finite(evaluate):
    values, gradients = evaluate(draw(0) * 3000, -draw(0) * 3000)
    for name in ALL:
        assert np.isfinite(values[name]).all()
        assert np.isfinite(gradients[name][1]).all()


def test_a_model_of_nan_is_never_its_teachers_equal(evaluate):
    broken = draw(0).at[2].set(jnp.nan)
    for pair in ((broken, draw(1)), (draw(1), broken)):
        for name, value in evaluate(*pair)[0].items():
            assert np.isnan(value if value.ndim == 0 else value[2]).all(), name
    assert np.isnan(d.entropy(broken)[2])


def test_a_teacher_that_is_sure_has_no_rest_to_teach(evaluate):
    sure = jnp.full((N, V), -jnp.inf).at[:, 0].set(1.0)
    values, gradients = evaluate(draw(0), sure)
    expected = d.cross_entropy(draw(0), jnp.zeros(N, int)) / 2
    np.testing.assert_allclose(values["decoupled"], expected, rtol=1e-5)
    assert np.isfinite(gradients["decoupled"][1]).all()


def test_padding_of_the_vocabulary_adds_nothing(evaluate):
    """-inf in both models: as if the tokens weren't there."""
    padded = [draw(seed).at[:, 6:].set(-jnp.inf) for seed in (0, 1)]
    with_padding, gradients = evaluate(*padded)
    for name, function in ALL.items():
        np.testing.assert_allclose(
            with_padding[name], function(*(d.cut(x, 6) for x in padded)), rtol=1e-5, atol=1e-6
        )
        assert np.isfinite(gradients[name][1]).all()
        np.testing.assert_array_equal(gradients[name][1][:, 6:], 0)


def test_what_only_one_model_excludes(evaluate):
    """Bounded divergences stay finite; a KL is infinite with a finite gradient, or finite."""
    values, gradients = evaluate(draw(0).at[:, 2].set(-jnp.inf), draw(1))
    assert np.isinf(values["forward_kl"]).all()
    assert np.isfinite(values["reverse_kl"]).all()
    other, slopes = evaluate(draw(0), draw(1).at[:, 2].set(-jnp.inf))
    assert np.isinf(other["reverse_kl"]).all()
    for name in BOUNDED:
        assert np.isfinite(values[name]).all()
        assert np.isfinite(other[name]).all()
    for name in (*BOUNDED, "forward_kl", "reverse_kl"):
        assert np.isfinite(gradients[name][1]).all()
        assert np.isfinite(slopes[name][1]).all()


def test_limits_of_skew_and_beta():
    student, teacher = draw(0), draw(1)
    near = functools.partial(np.testing.assert_allclose, rtol=0.02)
    forward, reverse = d.forward_kl(student, teacher), d.reverse_kl(student, teacher)
    near(d.skew_forward_kl(student, teacher, 1e-5), forward)
    near(d.skew_reverse_kl(student, teacher, 1e-5), reverse)
    np.testing.assert_array_equal(d.skew_forward_kl(student, teacher, 0), forward)
    np.testing.assert_allclose(d.skew_reverse_kl(student, teacher, 1), 0, atol=1e-6)
    np.testing.assert_array_equal(d.jsd(student, teacher, 0), forward)
    np.testing.assert_array_equal(d.jsd(student, teacher, 1), reverse)
    near(d.jsd(student, teacher, 1e-3) / 1e-3, forward, rtol=0.05)
    swapped = d.jsd(teacher, student, 0.7)
    np.testing.assert_allclose(d.jsd(student, teacher, 0.3), swapped, rtol=1e-5)
    for name, function in (("beta", d.jsd), ("skew", d.skew_forward_kl)):
        with pytest.raises(ValueError, match=f"{name}: expected a number"):
            function(student, teacher, 1.5)


def test_forward_kl_is_its_parts():
    student, teacher, targets = draw(0), draw(1), jnp.arange(N)
    parts = d.decouple(student, teacher, targets)
    together = parts.target + parts.uncertainty * parts.other
    np.testing.assert_allclose(d.forward_kl(student, teacher), together, rtol=1e-4)
    soft = -jnp.sum(jax.nn.softmax(teacher) * jax.nn.log_softmax(student), -1)
    np.testing.assert_allclose(d.forward_kl(student, teacher) + d.entropy(teacher), soft, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_summed_in_float32(dtype):
    """A sum over 20,000 tokens in half precision is off by percents."""
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(rng.normal(size=(2, 20_000)), dtype) for _ in range(2))
    exact = d.forward_kl(student.astype(jnp.float32), teacher.astype(jnp.float32))
    assert d.forward_kl(student, teacher).dtype == jnp.float32
    np.testing.assert_array_equal(d.forward_kl(student, teacher), exact)


def test_means():
    values = jnp.asarray([[1.0, 2, jnp.nan], [5, jnp.nan, jnp.nan], [jnp.nan] * 3])
    mask = jnp.asarray([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert d.masked_mean(values, mask) == pytest.approx(8 / 3)
    assert d.masked_mean(values, mask, "sequence") == pytest.approx((1.5 + 5) / 2)
    assert d.masked_mean(values, mask, total=jnp.int32(16)) == 0.5
    assert d.masked_mean(values, 0 * mask) == 0
    assert d.masked_mean(values, 0 * mask, "sequence") == 0
    gradient = jax.grad(lambda v: d.masked_mean(v, mask))(values)
    np.testing.assert_allclose(gradient, np.asarray(mask) / 3, rtol=1e-6)


def test_atkd_without_hard_easy_or_any_tokens_is_finite():
    student, teacher = draw(0), draw(1)
    for mask in (jnp.zeros(N), jnp.zeros(N).at[0].set(1)):
        assert np.isfinite(d.atkd(student, teacher, jnp.zeros(N, int), mask))


def largest_array(text):
    shapes = re.findall(r"f32\[([\d,]+)\]", text)
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)


def test_chunks_never_hold_all_logits():
    """In the compiled gradient, no array is as large as the logits of all tokens."""
    tokens, width, vocabulary, chunk = 64, 8, 512, 8

    def loss(heads, hidden):
        def values(states):
            return d.reverse_kl(states[0] @ heads[0], states[1] @ heads[1])

        return jnp.mean(d.over_chunks(values, (hidden, hidden[:, ::-1]), chunk))

    heads = [jnp.ones((width, vocabulary)), jnp.ones((width, vocabulary)) / 2]
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    hidden = jax.random.normal(jax.random.key(0), (tokens, width))
    text = gradient.lower(heads, hidden).compile().as_text()
    assert largest_array(text) < tokens * vocabulary
    for size in (1, 7, 64, 100):
        found = d.over_chunks(lambda x: d.forward_kl(x[0], x[1]), (hidden, hidden[::-1]), size)
        np.testing.assert_allclose(found, d.forward_kl(hidden, hidden[::-1]), rtol=1e-6)


def test_chunks_are_as_equal_as_they_can_be():
    sizes = []
    d.over_chunks(lambda x: sizes.append(len(x)) or x, jnp.zeros((12, 2)), 10)
    assert set(sizes) == {6}


def test_a_few_places_of_all_rows_at_a_time_give_what_all_tokens_give():
    hidden = jax.random.normal(jax.random.key(0), (3, 5, 4))  # [B, R, V]
    pair = (hidden, hidden[::-1])
    for size in (1, 7, 100):
        found = d.over_rows(lambda x: d.forward_kl(x[0], x[1]), pair, size)
        np.testing.assert_allclose(found, d.forward_kl(*pair), rtol=1e-6)


def test_a_temperature_of_zero_is_no_divergence_of_zero():
    with pytest.raises(ValueError, match="temperature: expected a positive number, got 0"):
        d.forward_kl(draw(0), draw(1), 0.0)


def test_the_mean_of_float16_does_not_overflow():
    values = jnp.full((1, 3000), 30, jnp.float16)
    assert d.masked_mean(values, jnp.ones((1, 3000))) == 30


@pytest.mark.parametrize("missing", [-1, -100])
def test_a_target_that_is_no_token_has_no_loss_and_no_gradient(missing):
    """A mean that leaves it out is finite, and so is its gradient."""
    student, teacher = (jax.random.normal(jax.random.key(seed), (3, 7)) for seed in (0, 1))
    targets = jnp.array([2, missing, 3])

    def loss(student, rows):
        own, target = student[rows], targets[rows]
        each = d.cross_entropy(own, target)
        each = each + d.decoupled(own, teacher[rows], target, 1.0, 2.0)
        return d.masked_mean(each, target >= 0), each

    (value, each), slope = jax.value_and_grad(loss, has_aux=True)(student, jnp.arange(3))
    (expected, _), known = jax.value_and_grad(loss, has_aux=True)(student, jnp.array([0, 2]))
    assert jnp.isnan(each[1])
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(slope, known, rtol=1e-5, atol=1e-7)
