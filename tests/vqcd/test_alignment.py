"""Alignment modules: codes, other kinds, training, padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import vqcd
from jaxmethods.vqcd.spaces import alignment, codebook
from jaxmethods.vqcd.spaces.aligner import aligner, learning_rate, parallel
from tests.programs import weights
from tests.vqcd.toy import SIZES, STATES, changed, rows

X = jnp.asarray(rows(0)[0])
PARAMS = weights(alignment.init, STATES, 3)
# Wide enough that several codes are used from the start.
SPREAD = PARAMS | {
    "codebook": jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (16, 2)), jnp.float32)
}


def train(config, data, steps, start=None):
    """Every state of training on `alignment_rows`, one module, and the last metrics."""
    method = aligner(config)
    init, step = jax.jit(method.init), jax.jit(method.step)
    states, metrics = [init(jax.random.key(0), data) if start is None else start], {}
    for _ in range(steps):
        state, metrics = step(states[-1], data)
        states.append(state)
    return states, metrics


def one(values, module=0):
    """Rows of one module without the leading axis."""
    data = vqcd.alignment_rows([np.asarray(values)], module)
    return jax.tree.map(lambda leaf: leaf[0], data)


def test_aligned_vectors_are_rows_of_the_codebook():
    encoded = vqcd.alignment.encode(SPREAD, STATES, X)
    vectors = encoded.z.reshape(-1, 3, 2)
    np.testing.assert_array_equal(vectors, SPREAD["codebook"][encoded.index])
    assert len(np.unique(encoded.index)) > 2


def test_a_code_is_nearest_to_itself_and_ties_go_to_the_lowest():
    codes = SPREAD["codebook"]
    np.testing.assert_array_equal(codebook.nearest(codes, codes), np.arange(16))
    tied = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert codebook.nearest(tied, jnp.zeros(2)) == 0
    assert codebook.nearest(tied, jnp.array([0.0, 2.0])) == 1


def test_close_codes_far_from_zero_are_told_apart():
    codes = jnp.array([[3.0, 3.0], [3.0 + 1e-3, 3.0]])
    assert codebook.nearest(codes, jnp.array([3.0 + 6e-4, 3.0])) == 1


def test_the_gradient_of_the_reconstruction_passes_straight_through_the_codes():
    config = changed(STATES, beta=0.0)

    def through_codes(shift):
        moved = dict(SPREAD, encoder=dict(SPREAD["encoder"]))
        last = moved["encoder"]["dense1"]
        moved["encoder"]["dense1"] = last | {"bias": last["bias"] + shift}
        return alignment.loss(moved, config, X)[1].losses.reconstruction

    def at_codes(z):
        return jnp.square(alignment.decode(SPREAD, config, z, 3) - X).mean()

    encoded = alignment.encode(SPREAD, config, X).z
    expected = jax.grad(at_codes)(encoded).sum(0)
    np.testing.assert_allclose(jax.grad(through_codes)(jnp.zeros(6)), expected, atol=1e-6)


def test_unused_codes_have_no_gradient_and_others_are_pulled_to_their_vectors():
    gradient = jax.grad(lambda p: alignment.loss(p, STATES, X)[0])(SPREAD)["codebook"]
    used = np.zeros(16, bool)
    used[np.asarray(alignment.encode(SPREAD, STATES, X).index)] = True
    assert not gradient[~used].any()
    assert gradient[used].any(-1).all()
    assert 0 < used.sum() < 16


@pytest.mark.parametrize("clip", ["elementwise", "l2"])
def test_codes_stay_within_rho_after_every_step(clip):
    config = changed(STATES, rho=0.05, clip=clip, lr=1e-2)
    states, _ = train(config, one(X), 8)
    assert np.abs(states[0].params["codebook"]).max() <= 1 / 16
    for state in states[1:]:
        codes = state.params["codebook"]
        sizes = np.abs(codes) if clip == "elementwise" else np.linalg.norm(codes, axis=-1)
        assert sizes.max() <= 0.05 * (1 + 1e-6)
    if clip == "l2":
        assert np.abs(states[-1].params["codebook"]).max() > 0.04


def test_an_average_codebook_has_no_gradient_of_its_own():
    config = changed(STATES, update="ema")
    gradient = jax.grad(lambda p: alignment.loss(p, config, X)[0])(SPREAD)
    assert not gradient["codebook"].any()
    states, _ = train(config, one(X), 3)
    assert (states[-1].params["codebook"] != states[0].params["codebook"]).any()


def test_dead_codes_are_put_where_vectors_are():
    config = changed(STATES, restart_after=2)
    far = jnp.asarray(PARAMS["codebook"]).at[1:].set(1.0)
    method = aligner(config)
    state = method.init(jax.random.key(0), one(X))
    state = state._replace(params=PARAMS | {"codebook": far})
    states, _ = train(config, one(X), 2, state)
    assert len(np.unique(states[1].params["codebook"][1:].round(1), axis=0)) == 1
    moved = states[2].params["codebook"][1:]
    assert len(np.unique(moved, axis=0)) > 5
    assert (np.asarray(states[2].idle)[1:] == 0).all()


def test_k_means_starts_at_different_vectors():
    config = changed(STATES, codebook_start="kmeans")
    state = jax.jit(aligner(config).init)(jax.random.key(0), one(X))
    codes = np.asarray(state.params["codebook"])
    encoded = alignment.encoder_output(state.params, config, X).reshape(-1, 2)
    nearest = np.square(codes[:, None] - np.asarray(encoded)).sum(-1).min(1)
    np.testing.assert_allclose(nearest, 0, atol=1e-10)
    assert len(np.unique(codes, axis=0)) == 16


def test_training_reconstructs_with_many_codes():
    config = changed(STATES, codes=64, encoder=(32,), decoder=(32,), batch=64, lr=1e-2, steps=200)
    states, metrics = train(config, one(X), 200)
    start = alignment.loss(states[0].params, config, X)[1].losses.reconstruction
    end = alignment.loss(states[-1].params, config, X)[1].losses.reconstruction
    assert end < 0.15 < 0.5 < start
    use = codebook.code_use(alignment.encode(states[-1].params, config, X).index, 64)
    assert use.share > 0.25
    assert use.perplexity > 8
    assert metrics["codes_used"] > 0.1


def test_use_of_a_codebook():
    use = codebook.code_use(jnp.array([[0, 1], [2, 3]]), 8)
    np.testing.assert_allclose([use.share, use.perplexity], [0.5, 4.0], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vq", "ae", "fsq", "vae"])
def test_modules_with_padding_equal_modules_without(kind):
    config = changed(STATES, kind=kind)
    values = [rows(task)[0] for task in range(3)]
    method = parallel(aligner(config))
    data = vqcd.alignment_rows(values)
    state = jax.jit(method.init)(jax.random.key(0), data)
    step = jax.jit(method.step)
    for _ in range(5):
        state, _ = step(state, data)
    for task in (0, 1):
        alone, _ = train(config, one(values[task], task), 5)
        params = jax.tree.map(lambda leaf, task=task: leaf[task], state.params)
        params = vqcd.trimmed(params, config, SIZES[task][0])
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(alone[-1].params), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6)


def test_the_grid_of_a_fixed_codebook_is_its_table():
    config = changed(STATES, kind="fsq", codes=25)
    params = alignment.init(jax.random.key(0), config, 3)
    encoded = alignment.encode(params, config, X)
    table = alignment.table(params, config)
    assert table.shape == (25, 2)
    np.testing.assert_allclose(encoded.z.reshape(-1, 3, 2), table[encoded.index], rtol=1e-6)
    assert np.abs(table).max() == config.rho
    extremes, index = alignment.quantize(params, config, jnp.array([[-9.0, 9.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(extremes, [[-1.0, 1.0], [0.0, 0.0]])
    np.testing.assert_array_equal(index, [20, 12])


@pytest.mark.parametrize("kind", ["vq", "fsq"])
def test_a_code_is_nearest_to_itself_in_the_common_space(kind):
    config = changed(STATES, kind=kind, codes=16, rho=3.0)
    params = alignment.init(jax.random.key(0), config, 3)
    table = alignment.table(params, config)
    np.testing.assert_array_equal(alignment.nearest_codes(params, config, table), table)


def test_a_grid_of_two_levels_needs_enough_codes():
    with pytest.raises(ValueError, match="at least 4 with fsq and width 2"):
        changed(STATES, kind="fsq", codes=3)


def test_the_variational_loss_is_reconstruction_and_divergence():
    config = changed(STATES, kind="vae", kl_weight=0.7)
    params = alignment.init(jax.random.key(0), config, 3)
    total, forward = alignment.loss(params, config, X, jax.random.key(1))
    output = alignment.encoder_output(params, config, X)
    mean, log_variance = jnp.split(output, 2, axis=-1)
    kl = 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance).mean()
    np.testing.assert_allclose(forward.losses.divergence, kl, rtol=1e-5)
    np.testing.assert_allclose(total, forward.losses.reconstruction + 0.7 * kl, rtol=1e-6)
    np.testing.assert_array_equal(alignment.encode(params, config, X).z, mean)
    with pytest.raises(ValueError, match="kind = 'vae'"):
        alignment.loss(params, config, X)


def test_padding_and_identity_keep_the_values():
    config = changed(STATES, kind="pad", padded_size=5)
    encoded = alignment.encode({}, config, X).z
    assert encoded.shape == (60, 5)
    assert not encoded[:, 3:].any()
    np.testing.assert_array_equal(alignment.decode({}, config, encoded, 3), X)
    same = changed(STATES, kind="none", padded_size=3)
    np.testing.assert_array_equal(alignment.encode({}, same, X).z, X)
    with pytest.raises(ValueError, match="expected 2 columns"):
        alignment.encode({}, changed(config, padded_size=2), X)
    with pytest.raises(ValueError, match="expected 5 columns with 'none'"):
        alignment.encode({}, changed(same, padded_size=5), X)
    with pytest.raises(ValueError, match="one that is trained, got 'pad'"):
        aligner(config)


def test_rows_are_kept_as_codes_and_what_they_stand_for():
    codes, table = vqcd.align_rows(SPREAD, STATES, X)
    assert codes.dtype == jnp.int16
    encoded = alignment.encode(SPREAD, STATES, X)
    np.testing.assert_array_equal(codes, encoded.index)
    np.testing.assert_array_equal(table[codes.astype(int)].reshape(60, 6), encoded.z)
    floats, nothing = vqcd.align_rows(SPREAD, changed(STATES, kind="ae"), X)
    assert (floats.shape, floats.dtype, nothing) == ((60, 6), jnp.float32, None)


@pytest.mark.slow
def test_gradients_are_those_of_finite_differences():
    """Of the smooth parts: codes don't change within the step."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), SPREAD)
        x = jnp.asarray(X, jnp.float64)

        def without_codes(shift):
            moved = jax.tree.map(lambda p: p + shift * jnp.cos(p), params)
            return alignment.loss(moved, changed(STATES, kind="ae"), x)[0]

        def with_fixed_input(shift):
            decoder = jax.tree.map(lambda p: p + shift * jnp.cos(p), params["decoder"])
            return alignment.loss(params | {"decoder": decoder}, STATES, x)[0]

        def codebook_term(shift):
            codes = params["codebook"] + shift * jnp.cos(3 * params["codebook"])
            return alignment.loss(params | {"codebook": codes}, STATES, x)[1].losses.codebook

        for loss in (without_codes, with_fixed_input, codebook_term):
            difference = (loss(1e-6) - loss(-1e-6)) / 2e-6
            np.testing.assert_allclose(jax.grad(loss)(0.0), difference, rtol=1e-5)


def test_learning_rates_end_where_they_should():
    for decay, middle in {"linear": 5.5e-4, "cosine": 5.5e-4}.items():
        rate = learning_rate(changed(STATES, lr_decay=decay, steps=100))
        np.testing.assert_allclose([rate(0), rate(50), rate(100)], [1e-3, middle, 1e-4], rtol=1e-5)
    quarter = [
        learning_rate(changed(STATES, lr_decay=d, steps=100))(25) for d in ("linear", "cosine")
    ]
    assert quarter[1] > quarter[0]


def test_the_difference_of_two_tasks_features():
    first, second = jnp.zeros((10, 2)), jnp.full((7, 2), 3.0)
    found = vqcd.feature_difference(jax.random.key(0), first, second)
    np.testing.assert_allclose(found, 18**0.5, rtol=1e-6)
