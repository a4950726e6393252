"""Norms from shared prefixes are those of whole sequences, and depend on nothing else."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmethods.language.prompts import common_prefix
from jaxmethods.models import decoder
from jaxmethods.novo import tree
from jaxmethods.novo.norms import row_norms, run_root
from jaxmethods.novo.score import score, score_batches
from tests.models.decoder.decoders import CONFIGS, LLAMA, random_params


def random_sequences(seed=0, questions=7, root=5, vocab=40):
    """Instruction, question and 1 to 4 candidates, some of them equal or prefixes of each other."""
    rng = np.random.default_rng(seed)
    draw = lambda n: rng.integers(3, vocab, n).tolist()  # noqa: E731
    start, sets = draw(root), []
    for _ in range(questions):
        prompt = start + draw(rng.integers(1, 6))
        candidates = [prompt + draw(rng.integers(1, 5)) for _ in range(rng.integers(1, 5))]
        if len(candidates) > 2:
            candidates[2] = candidates[0]
        if len(candidates) > 3:
            candidates[3] = candidates[1] + draw(2)
        sets.append(candidates)
    return sets


FORWARD = jax.jit(decoder.forward, static_argnums=1, static_argnames="taps")


@partial(jax.jit, static_argnums=1)
def token_scores(params, config, ids):
    """Log-probability of every token but the first, [B, T - 1], from whole sequences."""
    scores = jax.nn.log_softmax(decoder.forward(params, config, ids[:, :-1]).logits)
    return jnp.take_along_axis(scores, ids[:, 1:, None], -1)[..., 0]


@pytest.mark.parametrize("name", ["mistral", "codegen", "opt"])
def test_all_modes_give_the_norms_of_whole_sequences(name):
    config = CONFIGS[name]
    params, sequences = random_params(config), random_sequences()
    naive = score(params, config, sequences, mode="naive")
    for mode in ("tree", "packed"):
        shared = score(params, config, sequences, mode=mode, batch_tokens=64)
        np.testing.assert_array_equal(shared.mask, naive.mask)
        np.testing.assert_allclose(shared.norms, naive.norms, rtol=2e-5, atol=1e-6)
    equal = [place for place, question in enumerate(sequences) if len(question) > 2]
    assert equal
    np.testing.assert_array_equal(shared.norms[equal, 0], shared.norms[equal, 2])


@pytest.mark.slow
@pytest.mark.parametrize("positions", [8, 12])
def test_dynamic_frequencies_are_those_of_each_sequence_alone(positions):
    """Beyond `positions` a sequence's length turns all its tokens: neither padding nor another
    candidate's length may. With 12, the padding of the root lies beyond and no sequence does."""
    config = CONFIGS["llama dynamic"].model_copy(update={"max_positions": positions})
    params = random_params(config, scale=0.5)
    start = [5, 9, 3, 7, 4]
    sequences = [[[*start, 8], [*start, 6, 30, 3, 8, 9, 11]], [[*start, 4, 4]] * 2]
    likelihood = {"prompt_lengths": [len(start) + 1, len(start)], "likelihood": True}
    tree_scores = score(params, config, sequences, **likelihood)
    naive = score(params, config, sequences, mode="naive")
    for place, ids in enumerate(sequences[0]):
        alone = FORWARD(params, config, jnp.asarray([ids]), taps=("head_norms",))
        norms = alone.head_norms[:, 0, -1].reshape(-1)
        np.testing.assert_allclose(tree_scores.norms[0, place], norms, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(naive.norms[0, place], norms, rtol=2e-5, atol=1e-6)
        own = np.arange(len(start), len(ids))
        expected = jax.nn.log_softmax(alone.logits[0])[own - 1, np.asarray(ids)[own]].sum()
        np.testing.assert_allclose(tree_scores.likelihood[0, place], expected, rtol=1e-4)
        assert tree_scores.lengths[0, place] == len(own)
    np.testing.assert_array_equal(tree_scores.norms[1, 0], tree_scores.norms[1, 1])
    np.testing.assert_allclose(tree_scores.norms[1], naive.norms[1], rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(tree_scores.mask, naive.mask)


def test_a_shared_prefix_under_the_frequencies_of_another_length_is_refused():
    config = CONFIGS["llama dynamic"]
    plan = tree.build_tree([[[5, 9, 3, 7], [5, 9, 3, 7, 4, 6, 30, 3, 8]]])
    with pytest.raises(ValueError, match="tree: sequences of up to 9 tokens are longer than max"):
        next(score_batches(random_params(config), config, plan))


def test_neither_order_nor_company_nor_unstacked_layers_change_a_norm():
    params, sequences = random_params(LLAMA), random_sequences(1)
    together = score(params, LLAMA, sequences).norms
    moved = score(params, LLAMA, sequences[::-1], batch_tokens=48).norms[::-1]
    np.testing.assert_allclose(moved, together, rtol=1e-5, atol=1e-6)
    unstacked = score(decoder.unstack_layers(params), LLAMA, sequences).norms
    np.testing.assert_allclose(unstacked, together, rtol=1e-5, atol=1e-6)


def test_likelihoods_are_those_of_whole_sequences():
    params, sequences = random_params(LLAMA), random_sequences(2, questions=4)
    starts = [common_prefix(question) for question in sequences]
    starts = [min(start, 6) for start in starts]
    scores = score(params, LLAMA, sequences, prompt_lengths=starts, likelihood=True)
    assert scores.likelihood is not None
    assert scores.lengths is not None
    flat = [sequence for question in sequences for sequence in question]
    ids = np.array([sequence + [0] * (16 - len(sequence)) for sequence in flat])
    plain = iter(np.asarray(token_scores(params, LLAMA, ids)))
    for place, (question, start) in enumerate(zip(sequences, starts, strict=True)):
        start = min(start, min(map(len, question)) - 1)
        for number, sequence in enumerate(question):
            expected = next(plain)[start - 1 : len(sequence) - 1].sum()
            assert scores.lengths[place, number] == len(sequence) - start
            assert scores.likelihood[place, number] == pytest.approx(expected, abs=2e-4)


def test_scaled_values_scale_their_layer_and_leave_earlier_ones():
    params, sequences = random_params(LLAMA), random_sequences(3, questions=2)
    before = score(params, LLAMA, sequences).norms.reshape(2, -1, LLAMA.layers, LLAMA.heads)
    value = params["layers"]["attention"]["value"]
    scaled = {"value": {"kernel": value["kernel"].at[1].multiply(3.0)}}
    attention = params["layers"]["attention"] | scaled
    params = params | {"layers": params["layers"] | {"attention": attention}}
    after = score(params, LLAMA, sequences).norms.reshape(before.shape)
    np.testing.assert_array_equal(after[:, :, 0], before[:, :, 0])
    np.testing.assert_allclose(after[:, :, 1], 3 * before[:, :, 1], rtol=1e-5)
    assert not np.allclose(after[:, :, 2], before[:, :, 2])


def test_what_comes_after_the_last_heads_is_not_computed():
    params = random_params(LLAMA)
    plan = tree.build_tree(random_sequences())
    sizes = (params, plan.root, plan.batches[0])

    def run(params, root, rows):
        shared = run_root(params, LLAMA, root, jnp.int32(plan.root_length))
        return row_norms(params, LLAMA, shared, rows)

    total = jax.jit(jax.grad(lambda *sizes: run(*sizes).sum()))
    gradient = total(decoder.unstack_layers(params), *sizes[1:])
    last = gradient["layers"][-1]
    for unread in (last["mlp"], last["mlp_norm"], last["attention"]["out"], gradient["head"]):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(unread))
    assert np.any(last["attention"]["value"]["kernel"])
    unstacked = decoder.unstack_layers(params)
    flops = jax.jit(run).lower(unstacked, *sizes[1:]).cost_analysis()["flops"]
    more = decoder.unstack_layers(jax.tree.map(lambda leaf: leaf, params))
    more["layers"][-1]["mlp"]["up"]["kernel"] = jnp.zeros((LLAMA.width, 10 * LLAMA.mlp_width))
    assert jax.jit(run).lower(more, *sizes[1:]).cost_analysis()["flops"] == flops


def test_weights_without_influence_leave_norms_bitwise_equal():
    params, sequences = random_params(LLAMA), random_sequences()
    last = partial(jax.tree.map, lambda leaf: leaf.at[-1].multiply(-3.0))
    layers = params["layers"]
    unread = {name: last(layers[name]) for name in ("mlp", "mlp_norm")}
    unread["attention"] = layers["attention"] | {"out": last(layers["attention"]["out"])}
    ends = {
        name: jax.tree.map(lambda leaf: -3 * leaf, params[name]) for name in ("final_norm", "head")
    }
    changed = params | {"layers": layers | unread} | ends
    before, after = (score(weights, LLAMA, sequences).norms for weights in (params, changed))
    np.testing.assert_array_equal(after, before)


def test_the_compiled_program_has_no_more_operations_than_are_needed():
    config = LLAMA.model_copy(
        update={"width": 256, "mlp_width": 512, "head_dim": 64, "rotary_dim": 64, "layers": 3}
    )
    params = decoder.unstack_layers(random_params(config))  # of a scan, XLA counts one layer
    plan = tree.build_tree(random_sequences(5, questions=12, root=30), batch_tokens=512)
    rows = plan.batches[0]
    root = jax.jit(run_root, static_argnums=1)(params, config, plan.root, plan.root_length)
    program = jax.jit(row_norms, static_argnums=1).lower(params, config, root, rows).compile()
    analysis = program.cost_analysis()
    counted = (analysis[0] if isinstance(analysis, list) else analysis)["flops"]

    tokens, ends = rows.ids.size, rows.ends.size
    keys = rows.ids.shape[1] + plan.root.size
    width, heads = config.width, config.heads * config.head_dim
    kv = 2 * width * config.kv_heads * config.head_dim
    attention = 2 * keys * heads
    layer = kv + 2 * width * heads + attention + 3 * width * config.mlp_width
    last = tokens * kv + ends * (width * heads + attention)
    needed = 2 * (tokens * (config.layers - 1) * layer + last)
    assert needed < counted < 1.05 * needed


@pytest.mark.parametrize("order", ["1", "inf"])
def test_other_orders_of_the_norm(order):
    params, sequences = random_params(LLAMA), random_sequences(4, questions=2)
    other = score(params, LLAMA, sequences, order=order).norms
    naive = score(params, LLAMA, sequences, order=order, mode="naive").norms
    np.testing.assert_allclose(other, naive, rtol=2e-5, atol=1e-6)
    euclidean = score(params, LLAMA, sequences).norms
    assert (other >= euclidean - 1e-5).all() if order == "1" else (other <= euclidean + 1e-5).all()


def test_the_mean_over_one_token_is_that_token():
    params = random_params(LLAMA)
    sequences = [[[1, 5, 9, 7], [1, 5, 9, 8]], [[1, 5, 4, 7], [1, 5, 4, 3]]]
    last = score(params, LLAMA, sequences).norms
    mean = score(params, LLAMA, sequences, tokens="mean").norms
    np.testing.assert_allclose(mean, last, rtol=1e-5)


@given(st.integers(0, 1000), st.integers(16, 300), st.integers(2, 12))
def test_a_plan_runs_every_row_once_in_few_shapes(seed, batch_tokens, shapes):
    lengths = np.random.default_rng(seed).integers(1, 700, 60)
    plan = tree.plan_batches(lengths, batch_tokens, shapes)
    assert sorted(np.concatenate([rows for rows, _, _ in plan])) == list(range(60))
    assert len({(number, length) for _, number, length in plan}) <= shapes
    for rows, number, length in plan:
        assert len(rows) <= number
        assert lengths[rows].max() <= length
    assert all(len(rows) == number for rows, number, _ in plan[:-1])


def test_costs_are_counted():
    sequences = [[[1, 2, 3, 4], [1, 2, 3, 5, 6]], [[1, 2, 7]]]
    cost = tree.build_tree(sequences).cost
    assert cost.naive == 12
    assert cost.tokens == 2 + (1 + 1 + 2) + 1  # root; question, candidates; candidate
    assert cost.shapes == 2
    with pytest.raises(ValueError, match="question 1 has no candidates"):
        tree.build_tree([[[1]], []])


def test_norms_that_are_not_finite_are_an_error():
    params = random_params(LLAMA)
    params["embed"]["tokens"] = params["embed"]["tokens"].at[9].set(jnp.nan)
    with pytest.raises(ValueError, match="norms of question 1 are not finite"):
        score(params, LLAMA, [[[1, 5]], [[1, 9]]])
    dynamic = CONFIGS["llama dynamic"]
    with pytest.raises(ValueError, match="norms of question 1 are not finite"):
        score(params, dynamic, [[[1, 5] * 5, [1, 4] * 5], [[1, 9]]])
    with pytest.raises(ValueError, match="norms of question 1 are not finite"):
        score(params, LLAMA, [[[1, 5]], [[1, 9]]], mode="naive")
