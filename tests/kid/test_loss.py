"""The loss on tiny decoders: what it is, what it doesn't depend on, and what it never holds."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.kid.config import DivergenceConfig
from jaxmethods.kid.loss import kid_loss, make_imperfect, of_divergence, states_of
from jaxmethods.kid.method import loss_and_gradient
from jaxmethods.kid.model import of_decoder
from jaxmethods.language import divergences as d
from jaxmethods.models import decoder
from tests.kid import small
from tests.kid.small import MODEL, STUDENT, STUDENT_PARAMS, TEACHER_PARAMS, config, make_batch

KEY = jax.random.key(3)


@functools.cache
def program(settings):
    return jax.jit(
        functools.partial(loss_and_gradient, student=STUDENT, teacher=MODEL, config=settings)
    )


def run(settings, batch=None, params=STUDENT_PARAMS, key=KEY):
    batch = make_batch() if batch is None else batch
    return program(settings)(params, TEACHER_PARAMS, batch, key)


def assert_same(one, other, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), one, other)


@functools.cache
def imperfect_of(settings):
    batch = make_batch()
    states = states_of(STUDENT, STUDENT_PARAMS, batch)
    keys = jax.random.split(KEY, 4)
    return jax.jit(lambda: make_imperfect(keys, STUDENT, STUDENT_PARAMS, states, batch, settings))()


def plain_logits(model_config, params, ids):
    """Those that predict each response token, by one whole pass of a row, padded at its end."""
    batch = make_batch()
    rows, forward = [], jax.jit(decoder.forward, static_argnums=1)
    for row, (own, new) in enumerate(zip(small.PROMPTS, small.RESPONSES, strict=True)):
        sequence = np.zeros((1, small.P + small.R), np.int32)
        sequence[0, : own + new] = [*batch.prompts[row, small.P - own :], *ids[row, :new]]
        logits = forward(params, model_config, sequence).logits[0]
        rows.append(logits[own - 1 : own - 1 + new, : small.V])
    return jnp.concatenate(rows)


@pytest.mark.parametrize("mle_input", ["imperfect", "clean"])
def test_the_loss_is_its_formula(mle_input):
    """Against whole passes of single rows, one after the other."""
    settings = config(mle_input=mle_input, mle_weight=0.5)
    loss, terms, _ = run(settings)
    written, selected = imperfect_of(settings)
    student = plain_logits(small.CONFIG, STUDENT_PARAMS, written)
    teacher = plain_logits(small.TEACHER, TEACHER_PARAMS, written)
    clean = plain_logits(small.CONFIG, STUDENT_PARAMS, make_batch().responses)
    gold = make_batch().responses[make_batch().response_mask.astype(bool)]
    divergence = jnp.mean(d.reverse_kl(student, teacher))
    likelihood = jnp.mean(d.cross_entropy(clean if mle_input == "clean" else student, gold))
    assert_same((terms.divergence, terms.likelihood), (divergence, likelihood))
    assert_same(loss, divergence + 0.5 * likelihood)
    assert terms.fills == jnp.sum(selected) == 6
    assert (written != make_batch().responses).any()


@pytest.mark.slow
@pytest.mark.parametrize("sure", [20.0, 40.0])
def test_a_teacher_that_is_sure_teaches_gold_tokens_or_punishes_others_by_its_sureness(sure):
    """Such a teacher's forward KL is the likelihood, value and gradient: same tokens, same mean.

    Its reverse KL is the chance of another token times its sureness, less the student's entropy: a
    student that knows nothing is moved by that far more than by the likelihood.
    """
    batch = make_batch()
    states = sure * jax.nn.one_hot(batch.responses, small.V)
    batch = batch._replace(teacher_states=states)
    teacher = MODEL._replace(logits=lambda params, states: states)

    def found(settings):
        def loss(params):
            return kid_loss(params, None, batch, KEY, STUDENT, teacher, settings)[0]

        return jax.jit(jax.value_and_grad(loss))(STUDENT_PARAMS)

    plain = {"rewrite": "vanilla", "mle_weight": 0.0}
    likelihood = found(config("none", rewrite="vanilla"))
    assert_same(found(config("forward_kl", **plain)), likelihood, atol=1e-4)

    logits = plain_logits(small.CONFIG, STUDENT_PARAMS, batch.responses)
    gold = batch.responses[batch.response_mask.astype(bool)]
    other = 1 - jnp.take_along_axis(jax.nn.softmax(logits), gold[:, None], 1)[:, 0]
    expected = jnp.mean(sure * other - d.entropy(logits))
    np.testing.assert_allclose(found(config("reverse_kl", **plain))[0], expected, rtol=1e-4)


def test_fills_are_what_the_student_predicts_on_the_masked_response():
    settings = config()
    written, selected = imperfect_of(settings)
    batch = make_batch()
    masked = jnp.where(selected, 1, batch.responses)
    logits = plain_logits(small.CONFIG, STUDENT_PARAMS, masked)
    counted = batch.response_mask.astype(bool)
    expected = jnp.where(selected[counted], jnp.argmax(logits, -1), batch.responses[counted])
    np.testing.assert_array_equal(written[counted], expected)
    assert not (selected & ~batch.maskable.astype(bool)).any()


@pytest.mark.parametrize(
    "settings",
    [
        config(),
        pytest.param(config("jsd", mle_input="clean"), marks=pytest.mark.slow),
        pytest.param(config(mask_token="hide"), marks=pytest.mark.slow),
        pytest.param(config(strategy="hard", fill="sample"), marks=pytest.mark.slow),
    ],
    ids=["kid", "clean", "hide", "hard"],
)
def test_a_shared_prefix_changes_nothing(settings):
    shared, apart = run(settings), run(settings.model_copy(update={"share_prefix": False}))
    assert_same(shared, apart)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(shared[2]))


def test_padding_and_its_token_change_nothing():
    first = run(config())
    for other in (make_batch("right"), make_batch(pad=5), make_batch("right", pad=2)):
        assert_same(run(config(), other)[::2], first[::2])


@pytest.mark.slow
def test_more_padding_changes_nothing():
    """More room for responses draws other random numbers: the strategy that draws none."""
    quiet = config(strategy="uniform")
    assert_same(run(quiet, make_batch(room=(3, 4)))[::2], run(quiet)[::2])


def test_nothing_to_replace_is_plain_distillation_bit_for_bit():
    plain = run(config(rewrite="vanilla"))
    jax.tree.map(np.testing.assert_array_equal, run(config(alpha=0.0)), plain)
    batch = make_batch()._replace(maskable=jnp.zeros_like(make_batch().maskable))
    # Another program, gradients of up to 4: rounding is relative.
    found = run(config(share_prefix=False), batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), found, plain)


@pytest.mark.slow
def test_chunks_of_logits_and_micro_batches_change_nothing():
    whole = run(config())
    assert_same(run(config(micro_batches=4, logit_chunk=5)), whole)


@pytest.mark.slow
def test_micro_batches_of_row_means_change_nothing():
    assert_same(
        run(config(normalizer="sequence", micro_batches=2)), run(config(normalizer="sequence"))
    )


@pytest.mark.slow
def test_rows_do_not_depend_on_those_beside_them():
    order = np.array([2, 0, 3, 1])
    keys = jax.random.split(KEY, 4)
    batch = jax.tree.map(lambda leaf: leaf[order], make_batch())
    assert_same(run(config(), key=keys), run(config(), batch, key=keys[order]))


def test_a_row_without_tokens_adds_nothing():
    none = make_batch()
    empty = none._replace(
        response_mask=none.response_mask.at[1].set(0), maskable=none.maskable.at[1].set(0)
    )
    other = empty._replace(responses=empty.responses.at[1].set(9))
    assert_same(run(config(), empty)[::2], run(config(), other)[::2], 0)
    nothing = none._replace(response_mask=0 * none.response_mask, maskable=0 * none.maskable)
    loss, _, gradient = run(config(), nothing)
    assert loss == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_no_gradient_to_the_teacher():
    def loss(teacher_params):
        given = (STUDENT_PARAMS, teacher_params, make_batch(), KEY)
        return kid_loss(*given, STUDENT, MODEL, config())[0]

    gradient = jax.grad(loss)(TEACHER_PARAMS)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_a_teacher_that_is_the_student_teaches_nothing():
    settings = config(mle_weight=0.0)
    loss, _, gradient = jax.jit(
        lambda p: loss_and_gradient(p, p, make_batch(), KEY, STUDENT, STUDENT, settings)
    )(STUDENT_PARAMS)
    assert_same(loss, 0.0, 1e-6)
    assert_same(gradient, jax.tree.map(jnp.zeros_like, gradient))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "atkd", "adaptive_kl", "total_variation"])
def test_every_divergence_has_a_finite_loss_and_gradient(name):
    loss, terms, gradient = run(config(name))
    assert np.isfinite(loss)
    assert (terms.divergence > 0) == (name != "none")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_divergences_get_their_parameters():
    logits = jax.random.normal(KEY, (2, 5, small.V))
    targets = jnp.arange(5)
    settings = DivergenceConfig(
        temperature=2, beta=0.3, skew=0.2, head_mass=0.7, target_weight=0.4, other_weight=0.6
    )
    expected = {
        "forward_kl": d.forward_kl(*logits, 2),
        "jsd": d.jsd(*logits, 0.3, 2),
        "total_variation": d.total_variation(*logits, 2),
        "skew_forward_kl": d.skew_forward_kl(*logits, 0.2, 2),
        "skew_reverse_kl": d.skew_reverse_kl(*logits, 0.2, 2),
        "adaptive_kl": d.adaptive_kl(*logits, 0.7, 2),
        "decoupled": d.decoupled(*logits, targets, 0.4, 0.6, 2),
        "osd_mix": d.osd_mix(*logits, 2),
    }
    for name, values in expected.items():
        own = of_divergence(*logits, targets, settings.model_copy(update={"name": name}))
        np.testing.assert_array_equal(own["divergence"], values)


@pytest.mark.slow
def test_no_array_holds_logits_of_all_tokens():
    """Neither of the sequence nor of the response; checked in the compiled gradient."""
    size, rows = 997, 8
    model_config = small.CONFIG.model_copy(update={"vocab_size": size})
    model = of_decoder(model_config)
    params = decoder.init_params(KEY, model_config)
    batch = jax.tree.map(lambda leaf: jnp.tile(leaf, (rows // 4, 1)), make_batch())
    settings = config(logit_chunk=6, mle_input="clean")
    text = (
        jax.jit(lambda p: loss_and_gradient(p, p, batch, KEY, model, model, settings))
        .lower(params)
        .compile()
        .as_text()
    )
    shapes = [
        [int(n) for n in shape.split(",")] for shape in re.findall(r"[fs]\d+\[([\d,]+)\]", text)
    ]
    largest = max(np.prod(shape) for shape in shapes if size in shape)
    assert largest == size * model_config.width  # the embedding and the head themselves
    assert size * rows * small.R > largest


def test_a_divergence_needs_a_teacher():
    with pytest.raises(ValueError, match="teacher: is needed"):
        kid_loss(STUDENT_PARAMS, None, make_batch(), KEY, STUDENT, None, config())


def test_states_of_the_teacher_that_were_kept_give_the_same_loss():
    batch, settings = make_batch(), config(rewrite="vanilla")
    seen = jnp.ones(batch.responses.shape, bool)

    @jax.jit
    def both(params, teacher):
        states = states_of(MODEL, teacher, batch)(batch.responses, seen)
        kept = batch._replace(teacher_states=states)
        return [
            kid_loss(params, teacher, one, KEY, STUDENT, MODEL, settings)[0]
            for one in (batch, kept)
        ]

    run, kept = both(STUDENT_PARAMS, TEACHER_PARAMS)
    np.testing.assert_allclose(run, kept, rtol=1e-6)
    kept = batch._replace(teacher_states=jnp.zeros((*seen.shape, small.TEACHER.width)))
    with pytest.raises(ValueError, match="expected None where responses are rewritten"):
        jax.eval_shape(
            lambda p, t: kid_loss(p, t, kept, KEY, STUDENT, MODEL, config()),
            STUDENT_PARAMS,
            TEACHER_PARAMS,
        )
