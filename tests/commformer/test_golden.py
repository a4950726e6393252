"""The published code's numbers, reproduced by the shipped functions in the `reference` preset.

Every size is read from the arrays, and files are found by the beginning of their names, so that
other sets of the same kind can be checked with JAXMETHODS_GOLDEN. Tolerances and the meaning of
the arrays: tests/golden/README.md.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmethods.bilevel import alternating
from jaxmethods.commformer import graph as graphs
from jaxmethods.commformer import objectives, policy
from jaxmethods.commformer.attention import RelationAttention, edges_of
from jaxmethods.commformer.config import NetworkConfig, PPOConfig
from jaxmethods.commformer.network import CommFormer
from jaxmethods.commformer.objectives import PPOTargets, ValueNormState
from jaxmethods.commformer.recipes.torch_weights import params_from_torch
from tests.commformer.golden_traces import (
    test_predator_capture_prey_replays_the_reference as test_predator_capture_prey,
)
from tests.commformer.golden_traces import (
    test_predator_prey_replays_the_reference as test_predator_prey,
)
from tests.commformer.golden_traces import (
    test_traffic_junction_builds_the_reference_roads_and_routes as test_traffic_junction_roads,
)
from tests.commformer.golden_traces import (
    test_traffic_junction_replays_the_reference as test_traffic_junction,
)
from tests.commformer.golden_weights import network_of, state_dict
from tests.golden_files import golden_files, read


def assert_relative(actual, expected, tolerance):
    """Largest error relative to the largest expected magnitude."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("file", golden_files("commformer", "relation_attention"))
def test_relation_attention(file):
    golden = read(file)
    cases = [name.removeprefix("y.") for name in golden if name.startswith("y.")]
    assert cases
    for case in cases:
        output, weights = attention_of_case(golden, case)
        np.testing.assert_allclose(
            output.swapaxes(0, 1), golden[f"y.{case}"], atol=2e-5, err_msg=case
        )
        np.testing.assert_allclose(
            weights.transpose(2, 3, 0, 1), golden[f"p.{case}"], atol=2e-5, err_msg=case
        )


def attention_of_case(golden, case):
    """Runs one case `<self|cross>.causal?.loopadd?.rel?.graph?.<hard|soft>`."""
    source, causal, add, relation, uses_graph, kind = case.split(".")
    config = NetworkConfig(
        embed=golden["query"].shape[-1],
        heads=int(golden["num_heads"]),
        relation=relation == "rel1",
        relation_transpose=True,
        attention_scale="double",
        self_loop="add" if add == "loopadd1" else "set",
    )
    edges = edges_of(jnp.asarray(golden[f"adj_{kind}"]), config)
    if uses_graph == "graph0":  # the relation term alone reads the graph
        edges = edges._replace(mask=None)
    query = golden["query"].swapaxes(0, 1)
    key_value = query if source == "self" else golden["key_value"].swapaxes(0, 1)
    network = RelationAttention(config, causal=causal == "causal1")
    apply = jax.jit(partial(network.apply, method="with_weights"))
    return apply(
        attention_params(golden, config), query, key_value, edges, golden["edge_embedding"]
    )


def attention_params(golden, config):
    kernels, biases = np.split(golden["in_proj_weight"], 3), np.split(golden["in_proj_bias"], 3)
    params = {
        part: {"kernel": kernel.T, "bias": bias}
        for part, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True)
    }
    params["out"] = {"kernel": golden["out_weight"], "bias": golden["out_bias"]}
    if config.relation:
        params["relation"] = {"kernel": golden["rel_weight"], "bias": golden["rel_bias"]}
    return {"params": params}


MODELS = [
    *golden_files("commformer", "model_per_agent_head"),
    *golden_files("commformer", "model_shared_head"),
]
MODES = ["exact", "gumbel", "warmup", "warmup_near1"]


class Model:
    """A golden whole-policy file and what our functions make of its inputs."""

    def __init__(self, file: Path) -> None:
        self.golden = read(file)
        self.network = network_of(self.golden)
        params = params_from_torch(state_dict(self.golden), self.network.config)
        self.edges, self.params = params["edges"], params["network"]
        self.k = int(self.golden["topk"])
        self.exact = graphs.exact_graph(self.edges, self.k)
        self.inferred = jax.jit(self._infer)(self.params, self.exact)
        pairs = [self._graph_of_mode(mode) for mode in MODES]
        graph_of_modes = jnp.stack([graph for graph, _ in pairs])
        self.trained = jax.jit(self._pull_back)(self.params, graph_of_modes)
        self.graph_pullbacks = dict(zip(MODES, (pullback for _, pullback in pairs), strict=True))

    def _infer(self, params, graph):
        golden, network = self.golden, self.network
        value, rep, *_ = network.apply(params, golden["obs"], graph, method="encode")
        shifted = policy.shift_actions(golden["teacher_action"][..., 0], network.n_actions)
        logits = network.apply(params, shifted, golden["enc_rep"], graph, method="decode")
        # The batch twice: with the file's mask of available actions, and with none.
        masks = np.concatenate([golden["avail"], np.ones_like(golden["avail"])])
        obs = np.concatenate([golden["obs"]] * 2)
        acted = policy.act(network, params, jax.random.key(0), obs, masks, graph, greedy=True)
        features = self._first_decoder_block(params, graph)
        return value, rep, shifted, logits, acted, features

    def _first_decoder_block(self, params, graph):
        params = jax.tree.map(lambda p: p, params)
        for part in ("encoder", "decoder"):
            blocks = params["params"][part]["blocks"]
            params["params"][part]["blocks"] = jax.tree.map(lambda p: p[:1], blocks)
        config = self.network.config.model_copy(update={"blocks": 1})
        golden, edges = self.golden, edges_of(graph, config)

        def features(module: CommFormer):
            shifted, rep = golden["shifted_action"], golden["enc_rep"]
            return module.decoder(shifted, rep, edges, module.edge_embedding)

        return self.network.clone(config=config).apply(params, method=features)

    def _graph_of_mode(self, mode):
        """The graph of a training mode, and the pullback to its logits."""
        if mode == "exact":
            return jax.vjp(lambda edges: graphs.exact_graph(edges, self.k), self.edges)
        if mode == "gumbel":
            noise = self.golden["gumbel_noise"]
            return jax.vjp(lambda edges: graphs.sample_graph(edges, noise, self.k), self.edges)
        raw = self.edges if mode == "warmup" else jnp.asarray(self.golden[f"{mode}.edges"])
        return raw, lambda gradient: (gradient,)

    def _pull_back(self, params, graph_of_modes):
        """Teacher-forced outputs, and the gradients of their products with the cotangents."""
        golden = self.golden
        cotangents = tuple(golden[f"cot_{name}"][..., 0] for name in ("logp", "value", "entropy"))

        def outputs(params, graph):
            action = golden["teacher_action"][..., 0]
            out = policy.evaluate_actions(
                self.network, params, golden["obs"], action, golden["avail"], graph
            )
            return out.log_prob, out.value, out.entropy

        def of_mode(graph):
            out, pullback = jax.vjp(outputs, params, graph)
            return out, pullback(cotangents)

        return jax.lax.map(of_mode, graph_of_modes)


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return Model(request.param)


def test_the_exact_graph_is_that_of_the_file(model):
    np.testing.assert_array_equal(model.exact, model.golden["exact_graph"])


def test_encoder_and_decoder(model):
    golden = model.golden
    value, rep, shifted, logits, _, features = model.inferred
    np.testing.assert_allclose(rep, golden["enc_rep"], atol=2e-4)
    np.testing.assert_allclose(value, golden["enc_value"][..., 0], atol=2e-4)
    np.testing.assert_array_equal(shifted, golden["shifted_action"])
    np.testing.assert_allclose(features, golden["dec_block0"], atol=2e-4)
    np.testing.assert_allclose(logits, golden["dec_logits"], atol=2e-4)


def test_greedy_decoding(model):
    golden, acted = model.golden, model.inferred[4]
    action, log_prob, value = (np.split(np.asarray(x), 2) for x in acted[:3])
    for half, suffix in enumerate(["", "_noavail"]):
        np.testing.assert_array_equal(action[half], golden[f"greedy_action{suffix}"][..., 0])
        expected = golden[f"greedy_logp{suffix}"][..., 0]
        np.testing.assert_allclose(log_prob[half], expected, atol=2e-4)
        np.testing.assert_allclose(value[half], golden["greedy_value"][..., 0], atol=2e-4)


@pytest.mark.parametrize("mode", MODES)
def test_teacher_forced_outputs_and_gradients(model, mode):
    golden = model.golden
    index = MODES.index(mode)
    out, (gradient, graph_gradient) = jax.tree.map(lambda leaf: leaf[index], model.trained)
    for name, value in zip(("logp", "value", "entropy"), out, strict=True):
        np.testing.assert_allclose(value, golden[f"{mode}.{name}"][..., 0], atol=2e-4)
    gradients = {
        "grad_edges": model.graph_pullbacks[mode](graph_gradient)[0],
        "grad_edge_embedding": gradient["params"]["edge_embedding"],
        "grad_enc_in_fc": gradient["params"]["encoder"]["obs_in"]["kernel"].T,
        "grad_dec_act_fc": gradient["params"]["decoder"]["action_in"]["kernel"].T,
    }
    for name, value in gradients.items():
        if f"{mode}.{name}" in golden:
            assert_relative(value, golden[f"{mode}.{name}"], 1e-3)


@pytest.mark.parametrize("file", golden_files("commformer", "model_pp_default_size"))
def test_model_at_predator_prey_size(file):
    golden = read(file)
    network = network_of(golden)
    params = params_from_torch(state_dict(golden), network.config)
    graph = graphs.exact_graph(params["edges"], int(golden["topk"]))
    mask = np.ones((*golden["obs"].shape[:2], network.n_actions))

    @jax.jit
    def act_and_judge(params, obs):
        acted = policy.act(network, params, jax.random.key(0), obs, mask, graph, greedy=True)
        return acted, policy.evaluate_actions(network, params, obs, acted.action, mask, graph)

    acted, judged = act_and_judge(params["network"], golden["obs"])
    np.testing.assert_array_equal(acted.action, golden["greedy_action"][..., 0])
    for value, name in [
        (acted.log_prob, "greedy_logp"),
        (acted.value, "value"),
        (judged.log_prob, "teacher_logp"),
        (judged.entropy, "entropy"),
        (judged.value, "value"),
    ]:
        np.testing.assert_allclose(value, golden[name][..., 0], atol=1e-4, err_msg=name)


@pytest.mark.parametrize("file", golden_files("commformer", "khot_gumbel"))
def test_k_hot_sampling(file):
    golden = read(file)
    cases = [name.removesuffix(".y_hard") for name in golden if name.endswith(".y_hard")]
    assert cases
    for case in cases:
        name, temperature = case.split(".tau")
        logits, gumbel, k = (golden[f"{name}.{key}"] for key in ("logits", "gumbel", "k"))
        sample, pullback = jax.vjp(
            lambda x, gumbel=gumbel, k=int(k), tau=float(temperature): graphs.sample_graph(
                x, gumbel, k, tau
            ),
            jnp.asarray(logits),
        )
        np.testing.assert_array_equal(sample, golden[f"{case}.y_hard"], err_msg=case)
        gradient = pullback(jnp.asarray(golden[f"{name}.cotangent"]))[0]
        np.testing.assert_allclose(gradient, golden[f"{case}.grad_logits"], atol=1e-6)


@pytest.mark.parametrize("file", golden_files("commformer", "valuenorm"))
def test_value_norm(file):
    golden = read(file)
    state = objectives.value_norm_init()
    np.testing.assert_allclose(
        jnp.stack(objectives.value_norm_moments(state)), golden["initial_mean_var"], rtol=1e-5
    )
    np.testing.assert_allclose(
        objectives.value_norm_denormalize(state, golden["x0"]),
        golden["initial_denormalize_of_x0"],
        rtol=1e-5,
    )
    for t in range(sum(re.fullmatch(r"x\d+", name) is not None for name in golden)):
        batch = golden[f"x{t}"]
        state = objectives.value_norm_update(state, batch)
        for value, name in [
            (jnp.stack(state), "state"),
            (jnp.stack(objectives.value_norm_moments(state)), "mean_var"),
            (objectives.value_norm_normalize(state, batch), "normalize"),
            (objectives.value_norm_denormalize(state, batch), "denormalize"),
        ]:
            assert_relative(value, golden[f"{name}{t}"], 1e-5)


@pytest.mark.parametrize("file", golden_files("commformer", "gae"))
def test_gae(file):
    golden = read(file)
    reward, mask = golden["rewards"], golden["masks"][1:]
    discounts = float(golden["gamma"]), float(golden["lam"])
    value, bootstrap = golden["value_preds"], golden["next_value"]
    norm = ValueNormState(*golden["valuenorm_state"])
    advantages, returns = objectives.gae(
        reward,
        objectives.value_norm_denormalize(norm, value),
        objectives.value_norm_denormalize(norm, bootstrap),
        mask,
        *discounts,
    )
    assert_relative(advantages, golden["advantages"], 2e-5)
    assert_relative(returns, golden["returns"], 2e-5)
    active = golden["active_masks"][:-1]
    normalized = objectives.normalize_advantages(advantages, active)
    assert_relative(normalized, golden["advantages_normalized"], 2e-5)
    advantages, returns = objectives.gae(reward, value, bootstrap, mask, *discounts)
    assert_relative(advantages, golden["advantages_no_valuenorm"], 2e-5)
    assert_relative(returns, golden["returns_no_valuenorm"], 2e-5)


def ppo_cases(golden):
    """Names of the cases, with their clip range and whether they use the active mask."""
    for name in golden:
        found = re.fullmatch(r"clip([\d.]+)\.mask([01])\.policy_loss", name)
        if found:
            yield name.removesuffix(".policy_loss"), float(found[1]), found[2] == "1"


@pytest.mark.parametrize("file", golden_files("commformer", "ppo_loss"))
def test_ppo_loss(file):
    golden = read(file)
    cases = list(ppo_cases(golden))
    assert cases
    for case, clip, masked in cases:
        config = PPOConfig(
            clip=clip,
            huber_delta=float(golden["huber_delta"]),
            entropy_coefficient=float(golden["entropy_coef"]),
            value_coefficient=float(golden["value_coef"]),
        )
        minibatch = PPOTargets(
            *(jnp.asarray(golden[n]) for n in ("old_logp", "old_values", "adv", "returns")),
            active=jnp.asarray(golden["active"]) if masked else None,
        )
        norm = ValueNormState(*golden[f"{case}.vn_before"])
        (loss, (norm, metrics)), gradients = jax.jit(
            jax.value_and_grad(objectives.ppo_loss, argnums=(0, 1, 2), has_aux=True),
            static_argnums=5,
        )(golden["logp"], golden["entropy"], golden["values"], minibatch, norm, config)
        true_huber = golden[f"{case}.value_loss_true_huber"]
        expected = {
            "policy_loss": golden[f"{case}.policy_loss"],
            "value_loss": true_huber,
            "entropy": golden[f"{case}.entropy"],
            "ratio": golden[f"{case}.ratio"].mean(),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(
                metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=f"{case} {name}"
            )
        assert_relative(jnp.stack(norm), golden[f"{case}.vn_after"], 1e-5)
        assert_relative(gradients[0], golden[f"{case}.grad_logp"], 1e-5)
        assert_relative(gradients[1], golden[f"{case}.grad_entropy"], 1e-5)
        # The published Huber loss is 0 below -delta; where no error is, it is the true one.
        if np.isclose(golden[f"{case}.value_loss_reference"], true_huber, rtol=1e-7, atol=0):
            assert_relative(gradients[2], golden[f"{case}.grad_values"], 1e-5)
            np.testing.assert_allclose(loss, golden[f"{case}.loss_reference"], rtol=1e-5)


@pytest.mark.parametrize("file", golden_files("commformer", "ppo_loss"))
def test_value_loss_where_the_published_huber_loss_is_one_sided(file):
    golden = read(file)
    delta = float(golden["huber_delta"])
    zero = np.float32(0)
    of_error = jax.vmap(lambda e: objectives.value_loss(zero, zero, e, 0.2, delta))
    np.testing.assert_allclose(of_error(golden["huber_error"]), golden["huber_true"], rtol=1e-5)
    names = [name for name in golden if re.fullmatch(r"novn\..*\.value_loss_true_huber", name)]
    assert names
    for name in names:
        clip, masked = re.fullmatch(r"novn\.clip([\d.]+)\.mask([01])\..*", name).groups()
        loss = objectives.value_loss(
            golden["values"],
            golden["old_values"],
            golden["returns"],
            float(clip),
            delta,
            golden["active"] if masked == "1" else None,
        )
        np.testing.assert_allclose(loss, golden[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("file", golden_files("commformer", "bilevel_five_epochs"))
def test_five_bilevel_epochs(file):
    golden = read(file)
    network = network_of(golden, "w0.")
    config = PPOConfig(
        clip=float(golden["clip"]),
        huber_delta=float(golden["huber_delta"]),
        entropy_coefficient=float(golden["entropy_coef"]),
        value_coefficient=float(golden["value_coef"]),
    )
    minibatch = PPOTargets(
        *(golden[n][..., 0] for n in ("old_logp", "old_value", "adv", "ret", "active"))
    )

    def loss(params, edges, gumbel, norm):
        graph = graphs.sample_graph(edges, gumbel, int(golden["topk"]))
        out = policy.evaluate_actions(
            network, params, golden["obs"], golden["action"][..., 0], golden["avail"], graph
        )
        return objectives.ppo_loss(out.log_prob, out.entropy, out.value, minibatch, norm, config)

    adam = optax.adam(float(golden["lr"]), eps=float(golden["adam_eps"]))
    clip = optax.clip_by_global_norm(float(golden["max_grad_norm"]))
    edge_adam = optax.adam(float(golden["edge_lr"]), eps=float(golden["edge_adam_eps"]))
    problem = alternating(loss, optax.chain(clip, adam), edge_adam)
    step = jax.jit(problem.step)

    def weights(prefix):
        return params_from_torch(state_dict(golden, prefix), network.config)["network"]

    start = params_from_torch(state_dict(golden, "w0."), network.config)
    state, norm = problem.init(start["network"], start["edges"]), objectives.value_norm_init()
    epochs = len(golden["gumbel"])
    for epoch, gumbel in enumerate(golden["gumbel"]):
        upper = epoch == epochs - 1
        tolerance = 1e-4 if epoch == 0 else 1e-3
        state, report = step(state, jnp.bool_(upper), gumbel, norm)
        norm, metrics = report.aux
        if upper:  # Adam's first moment after its first step: (1 - 0.9) times the gradient
            gradient = state.upper_optimizer[0].mu / 0.1
            assert_relative(gradient, golden[f"epoch{epoch}.grad_edges"], 1e-3)
        for ours, theirs in [
            ("value_loss", "value_loss"),
            ("policy_loss", "policy_loss"),
            ("entropy", "entropy"),
            ("ratio", "ratio_mean"),
        ]:
            expected = golden[f"epoch{epoch}.{theirs}"]
            np.testing.assert_allclose(metrics[ours], expected, atol=tolerance, err_msg=theirs)
        np.testing.assert_allclose(state.upper, golden[f"epoch{epoch}.edges_after"], atol=tolerance)
        if not upper:  # at the upper step the published norm holds the network's old gradients
            expected = golden[f"epoch{epoch}.grad_norm_reported"]
            np.testing.assert_allclose(report.gradient_norm, expected, rtol=tolerance)
        if f"w{epoch + 1}.edges" in golden:
            jax.tree.map(
                lambda ours, theirs, tolerance=tolerance: np.testing.assert_allclose(
                    ours, theirs, atol=tolerance
                ),
                state.lower,
                weights(f"w{epoch + 1}."),
            )
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-3),
        state.lower,
        weights(f"w{epochs - 1}."),
    )
    assert_relative(jnp.stack(norm), golden["vn_final"], 1e-5)


__all__ = [  # the environments' traces, replayed in golden_traces.py
    "test_predator_capture_prey",
    "test_predator_prey",
    "test_traffic_junction",
    "test_traffic_junction_roads",
]
