"""The encoder-decoder and its policy: who depends on whom, caching, initialization, types."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmethods.commformer import policy
from jaxmethods.commformer.config import NetworkConfig, clean, reference
from jaxmethods.commformer.network import CommFormer
from tests.programs import normal, quick, weights

B, N, D, A, E = 6, 4, 7, 3, 8
GRAPH = jnp.array(
    [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [1, 0, 0, 0]], jnp.float32
)  # 0 hears 1, 1 hears 2, 2 hears itself, 3 hears 0
seeds = st.integers(0, 2**31 - 1)


def make(config, n_agents=N):
    """A network with random parameters away from its start, where outputs hardly differ."""
    network = CommFormer(config, n_agents=n_agents, n_actions=A)
    obs = jnp.zeros((1, n_agents, D))
    shapes = jax.eval_shape(lambda: policy.init(network, jax.random.key(0), obs))
    random = np.random.default_rng(0)

    def fill(path, leaf):
        center = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(center + 0.3 * random.standard_normal(leaf.shape), leaf.dtype)

    return network, jax.tree_util.tree_map_with_path(fill, shapes)


def small(config, **changes):
    return config.model_copy(update={"embed": E, "dropout": 0.0, **changes})


VARIANTS = {
    "reference": small(reference().network, heads=2, blocks=2),
    "clean_shared": small(clean().network, action_head="shared"),
    "dense": small(clean().network, model="mat", heads=2),
}


class Played:
    """A batch played and judged by one network on one graph per sample."""

    def __init__(self, config: NetworkConfig) -> None:
        self.network, self.params = make(config)

        @jax.jit
        def play(key):
            keys = jax.random.split(key, 4)
            obs = jax.random.randint(keys[0], (B, N, D), 0, 4, jnp.int8)
            mask = jax.random.bernoulli(keys[1], 0.6, (B, N, A)).at[..., -1].set(True)
            graph = jax.random.bernoulli(keys[2], 0.5, (B, N, N)).astype(jnp.float32)
            network, params = self.network, self.params
            sampled = policy.act(network, params, keys[3], obs, mask, graph)
            greedy = policy.act(network, params, keys[3], obs, mask, graph, greedy=True)
            judged = policy.evaluate_actions(network, params, obs, sampled.action, mask, graph)
            rep = network.apply(params, obs, graph, method="encode").rep
            shifted = policy.shift_actions(greedy.action, A)
            logits = network.apply(params, shifted, rep, graph, method="decode")
            return mask, sampled, judged, greedy, logits

        self.play = play


@pytest.fixture(scope="module", params=quick(VARIANTS, "reference"))
def played(request):
    return Played(VARIANTS[request.param])


@settings(max_examples=15)
@given(seeds)
def test_log_probabilities_of_acting_are_those_of_teacher_forcing(played, seed):
    """Cached decoding of one agent after the other is the parallel pass over all."""
    _, acted, judged, _, _ = played.play(jax.random.key(seed))
    np.testing.assert_allclose(acted.log_prob, judged.log_prob, atol=1e-5)
    np.testing.assert_allclose(acted.value, judged.value, atol=1e-6)


@settings(max_examples=15)
@given(seeds)
def test_greedy_actions_are_the_best_available_logits_along_themselves(played, seed):
    mask, _, _, acted, logits = played.play(jax.random.key(seed))
    logits = np.where(mask, logits, -1e10)
    np.testing.assert_array_equal(acted.action, logits.argmax(-1))
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    np.testing.assert_allclose(acted.log_prob, log_probs.max(-1), atol=1e-5)


@settings(max_examples=15)
@given(seeds)
def test_unavailable_actions_are_never_taken_and_entropy_is_finite(played, seed):
    mask, acted, judged, _, _ = played.play(jax.random.key(seed))
    assert np.all(np.take_along_axis(np.asarray(mask), np.asarray(acted.action)[..., None], -1))
    assert np.all(judged.entropy >= -1e-6)
    assert np.all(judged.entropy <= np.log(np.asarray(mask).sum(-1)) + 1e-5)


def test_sampled_actions_follow_their_probabilities():
    network, params = make(VARIANTS["clean_shared"])
    draws = 20_000
    obs = jnp.broadcast_to(jnp.arange(N * D, dtype=jnp.int8).reshape(N, D) % 5, (draws, N, D))
    mask = jnp.ones((draws, N, A))
    acted = jax.jit(lambda key: policy.act(network, params, key, obs, mask, GRAPH))(
        jax.random.key(3)
    )
    joint, first, counts = np.unique(
        np.asarray(acted.action), axis=0, return_index=True, return_counts=True
    )
    probability = np.exp(np.asarray(acted.log_prob).sum(-1))[first]
    assert len(joint) > 10
    error = np.sqrt(probability * (1 - probability) / draws)
    assert np.all(np.abs(counts / draws - probability) < 4.5 * error + 1e-9)


def hears(graph):
    return np.asarray((graph + np.eye(len(graph))) > 0)


class TestDependence:
    """Jacobians of one sample; a path in the graph is the only way to be heard."""

    @pytest.fixture(scope="class")
    def jacobians(self):
        network, params = make(small(clean().network))
        obs = jax.random.normal(jax.random.key(1), (1, N, D))
        shifted = policy.shift_actions(jnp.array([[2, 0, 1, 1]]), A)

        def encode(obs):
            value, rep, *_ = network.apply(params, obs, GRAPH, method="encode")
            return jnp.concatenate([rep, value[..., None]], -1)[0]

        def decode(obs, shifted):
            rep = network.apply(params, obs, GRAPH, method="encode").rep
            return network.apply(params, shifted, rep, GRAPH, method="decode")[0]

        @jax.jit
        def all_of_them(obs, shifted):
            of_encoder = jax.jacrev(encode)(obs)
            of_logits = jax.jacrev(decode, argnums=(0, 1))(obs, shifted)
            return of_encoder, *of_logits

        jacobians = all_of_them(obs, shifted)
        return [np.abs(j[:, :, 0]).max((1, 3)) > 0 for j in jacobians]

    def test_representations_depend_on_the_observations_that_are_heard(self, jacobians):
        """Of no others, in an encoder of one block."""
        np.testing.assert_array_equal(jacobians[0], hears(GRAPH))

    def test_logits_do_not_depend_on_agents_that_cannot_be_reached(self, jacobians):
        _, observations, actions = jacobians
        reachable = np.linalg.matrix_power(hears(GRAPH).astype(int), N) > 0
        assert not np.any(observations & ~reachable)
        assert not np.any(actions & ~(reachable & np.tri(N, dtype=bool)))
        assert np.all(np.diag(observations))
        assert np.all(np.diag(actions))

    def test_logits_depend_on_earlier_agents_with_an_edge(self, jacobians):
        actions = jacobians[2]
        assert actions[3, 0]  # 3 hears 0
        assert not actions[0, 1]  # 0 hears 1, who decides later
        assert not actions[2, :2].any()


def test_permuting_agents_with_their_graph_permutes_the_encoder():
    network, params = make(VARIANTS["reference"])
    obs = jax.random.normal(jax.random.key(1), (B, N, D))
    order = jnp.array([2, 0, 3, 1])
    encode = jax.jit(lambda obs, graph: network.apply(params, obs, graph, method="encode"))
    value, rep, *_ = encode(obs, GRAPH)
    permuted = encode(obs[:, order], GRAPH[order][:, order])
    np.testing.assert_allclose(permuted[0], value[:, order], atol=1e-5)
    np.testing.assert_allclose(permuted[1], rep[:, order], atol=1e-5)
    assert not np.allclose(encode(obs[:, order], GRAPH)[1], rep[:, order], atol=1e-3)


def test_parameter_count_at_the_predator_prey_default():
    """128,803 with the edge logits: the published 148,599 without its 19,796 dead ones."""
    network = CommFormer(reference().network, n_agents=3, n_actions=5)
    shapes = jax.eval_shape(lambda: policy.init(network, jax.random.key(0), jnp.zeros((1, 3, 261))))
    assert sum(p.size for p in jax.tree.leaves(shapes)) + 3 * 3 == 128_803


class TestFreshParameters:
    @pytest.fixture(scope="class")
    def params(self):
        network = CommFormer(NetworkConfig(blocks=2), n_agents=3, n_actions=5)
        obs = jnp.zeros((1, 3, 100))
        return jax.jit(lambda key: policy.init(network, key, obs))(jax.random.key(0))["params"]

    def test_they_carry_a_layer_and_an_agent_axis(self, params):
        for part in ("encoder", "decoder"):
            assert all(p.shape[0] == 2 for p in jax.tree.leaves(params[part]["blocks"]))
            kernel = params[part]["blocks"]["hidden"]["kernel"]
            assert not np.allclose(kernel[0], kernel[1])
        assert all(p.shape[0] == 3 for p in jax.tree.leaves(params["head"]))
        kernel = params["head"]["out"]["kernel"]
        assert not np.allclose(kernel[0], kernel[1])

    @pytest.mark.parametrize(
        ("path", "gain"),
        [
            ("encoder.obs_in", 2**0.5),
            ("encoder.value_hidden", 2**0.5),
            ("encoder.value_out", 0.01),
            ("decoder.action_in", 2**0.5),
            ("decoder.blocks.hidden", 2**0.5),
            ("decoder.blocks.out", 0.01),
            ("head.hidden_0", 2**0.5),
            ("head.out", 0.01),
        ],
    )
    def test_kernels_outside_the_encoder_blocks_are_orthogonal(self, params, path, gain):
        kernel = self.at(params, path)["kernel"]
        kernel = kernel[-1] if kernel.ndim == 3 else kernel  # of the last layer or agent
        columns = kernel.T if kernel.shape[0] < kernel.shape[1] else kernel
        eye = gain**2 * np.eye(columns.shape[1])
        np.testing.assert_allclose(columns.T @ columns, eye, atol=1e-5 * gain**2)

    @pytest.mark.parametrize(
        "path",
        [
            "encoder.blocks.attention.query",
            "encoder.blocks.attention.relation",
            "encoder.blocks.attention.out",
            "encoder.blocks.hidden",
            "decoder.blocks.cross_attention.value",
        ],
    )
    def test_kernels_of_attention_and_encoder_blocks_are_small(self, params, path):
        np.testing.assert_allclose(self.at(params, path)["kernel"].std(), 0.02, rtol=0.1)

    def test_biases_are_zero_and_edge_embeddings_standard_normal(self, params):
        leaves = jax.tree.leaves_with_path(params)
        biases = [p for path, p in leaves if path[-1].key in ("bias", "shift")]
        assert len(biases) > 20
        assert all(np.all(bias == 0) for bias in biases)
        np.testing.assert_allclose(params["edge_embedding"].std(), 1.0, rtol=0.2)

    @staticmethod
    def at(params, path):
        for name in path.split("."):
            params = params[name]
        return params


class TestDropout:
    CONFIG = VARIANTS["reference"].model_copy(update={"dropout": 0.3})
    OBS = jnp.ones((B, N, D)).at[:, :, 0].set(0.0)

    def encoder(self, config):
        network, params = make(config)

        def encode(rngs):
            deterministic = rngs is None
            return network.apply(
                params, self.OBS, GRAPH, deterministic, method="encode", rngs=rngs
            )[1]

        return encode

    def test_it_is_random_in_its_key_alone(self):
        encode = jax.jit(self.encoder(self.CONFIG))
        first, again, second = (encode({"dropout": jax.random.key(seed)}) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert not np.allclose(first, second)
        assert not np.allclose(first[0], first[1])  # the samples of a batch differ too

    def test_without_a_key_or_at_rate_zero_nothing_is_drawn(self):
        rngs = {"dropout": jax.random.key(0)}
        at_zero = self.encoder(self.CONFIG.model_copy(update={"dropout": 0.0}))
        encode = self.encoder(self.CONFIG)
        programs = [jax.make_jaxpr(f)(r) for f, r in ((encode, None), (at_zero, rngs))]
        assert "random_bits" in str(jax.make_jaxpr(encode)(rngs))
        assert not any("random_bits" in str(program) for program in programs)


def test_in_reduced_precision_parameters_values_and_log_probabilities_stay_float32():
    config = small(clean().network, embed=32)
    network, params = make(config)
    half = network.clone(config=config.model_copy(update={"dtype": "bfloat16"}))
    obs = jax.random.randint(jax.random.key(1), (B, N, D), 0, 5, jnp.int8)
    action, mask = jnp.ones((B, N), jnp.int32), jnp.ones((B, N, A))
    fresh = jax.eval_shape(lambda: policy.init(half, jax.random.key(0), obs))
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(fresh))
    cache = jax.eval_shape(lambda: half.apply(params, B, method="init_cache"))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(cache))

    @jax.jit
    def judge(params):
        return [
            policy.evaluate_actions(module, params, obs, action, mask, GRAPH)
            for module in (half, network)
        ]

    for reduced, exact in zip(*map(jax.tree.leaves, judge(params)), strict=True):
        assert reduced.dtype == jnp.float32
        np.testing.assert_allclose(reduced, exact, atol=0.1 * (1 + np.abs(exact).max()))
        assert not np.array_equal(reduced, exact)


@pytest.mark.slow
class TestContinuousActions:
    """Normal around the network's output; agents are told each other's actions as they are."""

    @pytest.fixture(scope="class", params=["commformer", "ippo"])
    def played(self, request):
        network = policy.make_network(small(clean().network, model=request.param), N, A, True)
        obs = normal(0, B, N, D)
        params = weights(lambda key: policy.init(network, key, obs))
        own = {**params["params"], "log_std": jnp.linspace(-1.0, 1.0, A)}
        params = {"params": own}
        mask = jnp.ones((B, N, A), bool)

        @jax.jit
        def play(params, key):
            acted = policy.act(network, params, key, obs, mask, GRAPH)
            judged = policy.evaluate_actions(network, params, obs, acted.action, mask, GRAPH)
            greedy = policy.act(network, params, key, obs, mask, GRAPH, greedy=True)
            return acted, judged, greedy

        return params, *play(params, jax.random.key(2))

    @pytest.mark.slow
    def test_each_dimension_has_its_probability_and_acting_agrees_with_judging(self, played):
        _, acted, judged, _ = played
        assert acted.action.shape == acted.log_prob.shape == (B, N, A)
        np.testing.assert_allclose(acted.log_prob, judged.log_prob, atol=1e-5)

    def test_the_standard_deviation_lies_below_one_half(self, played):
        params, _, judged, _ = played
        std = 0.5 / (1 + np.exp(-np.linspace(-1.0, 1.0, A)))
        np.testing.assert_allclose(policy.action_std(params), std, rtol=1e-6)
        entropy = 0.5 * np.log(2 * np.pi * np.e * std**2)
        np.testing.assert_allclose(judged.entropy, np.broadcast_to(entropy, (B, N, A)), rtol=1e-5)

    def test_greedy_play_takes_the_mean_which_is_most_probable(self, played):
        params, _, _, greedy = played
        peak = -np.log(policy.action_std(params)) - 0.5 * np.log(2 * np.pi)
        np.testing.assert_allclose(greedy.log_prob, np.broadcast_to(peak, (B, N, A)), rtol=1e-5)

    def test_actions_are_handed_on_as_they_are(self):
        action = jnp.arange(B * N * A, dtype=jnp.float32).reshape(B, N, A)
        shifted = policy.shift_actions(action, A, continuous=True)
        np.testing.assert_array_equal(shifted[:, 1:], action[:, :-1])
        assert not shifted[:, 0].any()


class TestIndependentActors:
    """IPPO's agents depend on what they see themselves; MAPPO's critic on everything."""

    @pytest.mark.parametrize("model", ["ippo", "mappo"])
    def test_who_depends_on_whom(self, model):
        network = policy.make_network(small(clean().network, model=model), N, A)
        obs = jax.random.normal(jax.random.key(0), (N, D))
        params = policy.init(network, jax.random.key(1), obs[None])
        tokens = jnp.zeros((1, N, A + 1))

        @jax.jit
        def jacobians(obs):
            logits, value = jax.jacrev(lambda o: network.apply(params, o[None], tokens, GRAPH))(obs)
            return jnp.abs(logits[0]).max((1, 3)), jnp.abs(value[0]).max(2)

        logits, value = jacobians(obs)  # [N, N]: of agent i's output, by agent j's observation
        others = ~np.eye(N, dtype=bool)
        assert np.all(logits[others] == 0)
        assert np.all(logits[~others] > 0)
        assert np.all(value[others] == 0) if model == "ippo" else np.all(value > 0)
