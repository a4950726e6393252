"""k-hot graphs: selection, exactness, gradients and the distribution of samples."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxmethods.commformer import graph as graphs
from jaxmethods.commformer.config import GraphConfig

N, K = 5, 2
seeds = st.integers(0, 2**31 - 1)
few = settings(max_examples=25)

exact = jax.jit(lambda logits: graphs.exact_graph(logits, K))
sampled = jax.jit(lambda logits, noise: graphs.sample_graph(logits, noise, K))


def logits_and_noise(seed, scale=1.0):
    key, noise_key = jax.random.split(jax.random.key(seed))
    return scale * jax.random.normal(key, (N, N)), jax.random.gumbel(noise_key, (N, N))


@pytest.mark.parametrize(
    ("n_agents", "sparsity", "k"),
    [(3, 0.4, 1), (10, 0.4, 4), (100, 0.29, 29), (27, 0.4, 10), (5, 1.0, 5), (7, 0.01, 1)],
)
def test_each_agent_hears_the_floor_of_its_share_but_at_least_one(n_agents, sparsity, k):
    assert graphs.edges_per_agent(n_agents, sparsity) == k


@pytest.mark.parametrize("sparsity", [0.0, -0.1, 1.5])
def test_an_impossible_sparsity_is_named(sparsity):
    with pytest.raises(ValueError, match=f"sparsity must lie in .* got {sparsity}"):
        graphs.edges_per_agent(3, sparsity)


def test_too_many_edges_are_named():
    with pytest.raises(ValueError, match=r"k must lie in .* got 4"):
        graphs.exact_graph(jnp.ones((3, 3)), 4)


@few
@given(seeds, st.sampled_from([1e-3, 1.0, 30.0]))
def test_graphs_are_exactly_zero_or_one_with_k_ones_per_row(seed, scale):
    """Although probabilities, which float32 rounds, are added and taken off."""
    logits, noise = logits_and_noise(seed, scale)
    for graph in (exact(logits), sampled(logits, noise)):
        assert set(np.unique(graph)) <= {0.0, 1.0}
        np.testing.assert_array_equal(graph.sum(-1), K)


@few
@given(seeds)
def test_the_exact_graph_holds_the_largest_logits_of_every_row(seed):
    logits, _ = logits_and_noise(seed)
    chosen = np.where(np.asarray(exact(logits)) == 1, logits, np.inf).min(-1)
    others = np.where(np.asarray(exact(logits)) == 0, logits, -np.inf).max(-1)
    assert np.all(chosen > others)


@few
@given(seeds)
def test_the_sampled_graph_is_the_exact_graph_of_perturbed_logits(seed):
    logits, noise = logits_and_noise(seed)
    np.testing.assert_array_equal(sampled(logits, noise), exact(logits + noise))


@few
@given(seeds)
def test_logit_gradients_sum_to_zero_over_senders(seed):
    """A softmax does not change when all its logits move together."""
    logits, noise = logits_and_noise(seed)
    weights = jax.random.normal(jax.random.key(seed + 1), (N, N))
    for graph_of in (exact, lambda x: sampled(x, noise)):
        gradient = jax.grad(lambda x, graph_of=graph_of: jnp.sum(weights * graph_of(x)))(logits)
        assert np.abs(gradient).max() > 1e-4
        np.testing.assert_allclose(gradient.sum(-1), 0.0, atol=1e-6)


def test_the_gradient_is_that_of_the_relaxed_sample():
    logits, noise = logits_and_noise(3)
    weights = jax.random.normal(jax.random.key(9), (N, N))
    tau = 0.5
    gradient = jax.grad(lambda x: jnp.sum(weights * graphs.sample_graph(x, noise, K, tau)))(logits)
    relaxed = jax.grad(lambda x: jnp.sum(weights * jax.nn.softmax((x + noise) / tau)))(logits)
    np.testing.assert_allclose(gradient, relaxed, rtol=1e-5, atol=1e-7)


def test_full_sparsity_selects_every_edge_whatever_the_noise():
    logits, noise = logits_and_noise(0)
    k = graphs.edges_per_agent(N, 1.0)
    np.testing.assert_array_equal(graphs.sample_graph(logits, noise, k), np.ones((N, N)))
    np.testing.assert_array_equal(graphs.exact_graph(logits, k), np.ones((N, N)))


def test_samples_are_draws_without_replacement_weighted_by_the_softmax():
    """Every pair of senders comes as often as when drawn one after the other."""
    draws = 10_000
    logits = 1.2 * jax.random.normal(jax.random.key(5), (4, 4))
    noise = jax.random.gumbel(jax.random.key(6), (draws, 4, 4))
    samples = np.asarray(jax.vmap(lambda g: graphs.sample_graph(logits, g, K))(noise))
    np.testing.assert_array_equal(samples.sum(-1), K)
    pairs = list(itertools.combinations(range(4), K))
    for receiver, p in enumerate(np.asarray(jax.nn.softmax(logits), np.float64)):
        p /= p.sum()
        expected = [p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j]) for i, j in pairs]
        counts = [samples[:, receiver, pair].all(-1).sum() for pair in pairs]
        assert stats.chisquare(counts, draws * np.array(expected)).pvalue > 1e-3


class TestTrainingGraph:
    CONFIG = GraphConfig(warmup_updates=3, post_stable=True, post_ratio=0.55)
    UPDATES = 20  # the exact graph is used after update 11

    @pytest.fixture(scope="class")
    def graph_at(self):
        logits, noise = logits_and_noise(1)

        @jax.jit
        def at(update):
            return graphs.scheduled_graph(logits, noise, update, self.UPDATES, K, self.CONFIG)

        assert not np.array_equal(sampled(logits, noise), exact(logits))
        return at, {"raw": logits, "sampled": sampled(logits, noise), "exact": exact(logits)}

    @pytest.mark.parametrize(
        ("update", "kind"),
        [(0, "raw"), (3, "raw"), (4, "sampled"), (11, "sampled"), (12, "exact"), (20, "exact")],
    )
    def test_it_is_raw_then_sampled_then_exact(self, graph_at, update, kind):
        at, expected = graph_at
        np.testing.assert_array_equal(at(jnp.int32(update)), expected[kind])

    def test_without_post_stable_it_stays_sampled(self, graph_at):
        config = self.CONFIG.model_copy(update={"post_stable": False})
        logits, noise = logits_and_noise(1)
        graph = graphs.scheduled_graph(logits, noise, 20, self.UPDATES, K, config)
        np.testing.assert_array_equal(graph, graph_at[1]["sampled"])

    def test_the_raw_graph_passes_its_gradient_unchanged(self):
        logits, noise = logits_and_noise(1)
        weights = jax.random.normal(jax.random.key(2), (N, N))
        gradient = jax.grad(
            lambda x: jnp.sum(
                weights * graphs.scheduled_graph(x, noise, 0, self.UPDATES, K, self.CONFIG)
            )
        )(logits)
        np.testing.assert_allclose(gradient, weights, rtol=1e-6)


def test_tied_logits_select_the_senders_of_lowest_index():
    logits = graphs.initial_logits(jax.random.key(0), N, noise=0.0)
    expected = np.repeat([[1, 1, 0, 0, 0]], N, axis=0)
    np.testing.assert_array_equal(exact(logits), expected)


def test_noise_in_the_initial_logits_breaks_the_ties():
    logits = graphs.initial_logits(jax.random.key(0), 40, noise=1e-2)
    assert len(np.unique(logits, axis=0)) == 40
    np.testing.assert_allclose(logits.std(), 1e-2, rtol=0.1)
    np.testing.assert_allclose(logits.mean(), 1.0, atol=1e-3)


def test_fixed_graphs():
    key = jax.random.key(4)
    np.testing.assert_array_equal(graphs.fixed_graph("full", key, N, K), np.ones((N, N)))
    np.testing.assert_array_equal(graphs.fixed_graph("none", key, N, K), np.zeros((N, N)))
    random = np.asarray(graphs.fixed_graph("random", key, N, K))
    np.testing.assert_array_equal(random.sum(-1), K)
    assert len(np.unique(random, axis=0)) > 1
    with pytest.raises(ValueError, match=r"kind must be .* got 'star'"):
        graphs.fixed_graph("star", key, N, K)  # pyright: ignore[reportArgumentType]


def test_edge_types_are_one_from_one_on():
    """Raw logits beyond 2 and below 0 have a type too."""
    graph = jnp.array([[0.0, 0.999, 1.0], [2.5, -0.3, -2.0], [1.0001, 0.5, 7.0]])
    expected = np.array([[0, 0, 1], [1, 0, 0], [1, 0, 1]])
    np.testing.assert_array_equal(graphs.edge_types(graph, transpose=False), expected)
    np.testing.assert_array_equal(graphs.edge_types(graph, transpose=True), expected.T)


def test_without_self_edges_every_selected_edge_is_a_message():
    config = GraphConfig(self_edges=False, warmup_updates=0, post_stable=True)
    logits = 5.0 * jnp.eye(4)  # everyone would choose itself
    k = graphs.edges_per_agent(4, 0.5, self_edges=False)
    noise = jax.random.gumbel(jax.random.key(0), (4, 4))
    for made in (
        graphs.scheduled_graph(logits, noise, 1, 10, k, config),
        graphs.scheduled_graph(logits, noise, 9, 10, k, config),
        graphs.fixed_graph("random", jax.random.key(1), 4, k, self_edges=False),
    ):
        np.testing.assert_array_equal(jnp.diag(made), 0)
        np.testing.assert_array_equal(made.sum(-1), k)
    assert graphs.edges_per_agent(3, 1.0, self_edges=False) == 2


def test_what_is_never_selected_has_no_gradient():
    weights = jnp.arange(9.0).reshape(3, 3)

    def score(logits):
        return jnp.sum(weights * graphs.exact_graph(graphs.selectable(logits, False), 1))

    gradient = jax.grad(score)(jnp.ones((3, 3)))
    assert jnp.all(jnp.isfinite(gradient))
    np.testing.assert_array_equal(jnp.diag(gradient), 0)
    assert jnp.any(gradient != 0)
