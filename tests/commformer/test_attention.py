"""Relation-enhanced attention against its definition, and at its limits."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.commformer import attention
from jaxmethods.commformer.attention import Cache, RelationAttention, edges_of
from jaxmethods.commformer.config import NetworkConfig, clean, reference
from jaxmethods.commformer.graph import edge_types

B, H, E = 3, 2, 8
SMALL, LARGE = 4, attention.SMALL_TEAM + 2
CONFIG = NetworkConfig(embed=E, heads=H)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def graph_of(kind, n_agents):
    if kind == "raw":
        return 1 + 0.3 * normal(3, n_agents, n_agents)
    shape = (B, n_agents, n_agents) if kind == "batch" else (n_agents, n_agents)
    return jax.random.bernoulli(jax.random.key(4), 0.4, shape).astype(jnp.float32)


def inputs_of(n_agents, config=CONFIG):
    """Query, key and value input, edge embedding, parameters away from their small start."""
    query, key_value = normal(0, B, n_agents, E), normal(1, B, n_agents, E)
    embedding = normal(2, 2, E)
    edges = edges_of(jnp.ones((n_agents, n_agents)), config)
    shapes = jax.eval_shape(
        lambda: RelationAttention(config).init(
            jax.random.key(0), query, key_value, edges, embedding
        )
    )
    random = np.random.default_rng(5)
    params = jax.tree.map(
        lambda p: jnp.asarray(0.4 * random.standard_normal(p.shape), p.dtype), shapes
    )
    return query, key_value, embedding, params


def by_definition(params, query, key_value, embedding, graph, config, causal):
    """Section 3's equations with an embedding for every edge. Returns output and weights."""
    p = params["params"]
    n_agents, width = query.shape[1], E // H

    def heads(x, name):
        return (x @ p[name]["kernel"] + p[name]["bias"]).reshape(*x.shape[:-1], -1, width)

    q, k, v = heads(query, "query"), heads(key_value, "key"), heads(key_value, "value")
    graph = jnp.broadcast_to(graph, (B, n_agents, n_agents))
    scale = 1 / math.sqrt(width)
    if config.relation:
        relation = heads(embedding[edge_types(graph, config.relation_transpose)], "relation")
        of_query, of_key = jnp.split(relation, 2, axis=-2)  # [B, I, J, H, d]
        scores = jnp.sum((q[:, :, None] + of_query) * (k[:, None] + of_key), -1) * scale
        scores = scores * scale if config.attention_scale == "double" else scores
    else:
        scores = jnp.sum(q[:, :, None] * k[:, None], -1) * scale
    eye = jnp.eye(n_agents)
    mask = graph + eye if config.self_loop == "add" else graph * (1 - eye) + eye
    heard = (mask != 0) & (jnp.tri(n_agents, dtype=bool) | (not causal))
    weights = jax.nn.softmax(jnp.where(heard[..., None], scores, -jnp.inf), axis=2)
    weights = weights * mask[..., None]
    context = jnp.einsum("bijh,bjhd->bihd", weights, v).reshape(query.shape)
    return context @ p["out"]["kernel"] + p["out"]["bias"], weights.transpose(0, 3, 1, 2)


def by_module(params, query, key_value, embedding, graph, config, causal):
    network = RelationAttention(config, causal=causal)

    @jax.jit
    def apply(params, query, key_value, embedding, graph):
        edges = edges_of(graph, config)
        return network.apply(params, query, key_value, edges, embedding, method="with_weights")

    return apply(params, query, key_value, embedding, graph)


CONFIGS = {
    "clean": clean().network.model_copy(update={"embed": E, "heads": H}),
    "reference": reference().network.model_copy(update={"embed": E, "heads": H}),
    "no_relation": CONFIG.model_copy(update={"relation": False, "self_loop": "add"}),
}


@pytest.mark.parametrize(
    ("name", "n_agents", "kinds"),
    [
        ("clean", SMALL, ["hard", "raw"]),
        ("reference", SMALL, ["hard", "raw"]),
        ("reference", LARGE, ["hard", "raw"]),
        ("no_relation", SMALL, ["batch"]),
        ("clean", SMALL, ["batch"]),
    ],
)
def test_attention_and_its_gradient_are_those_of_the_definition(name, n_agents, kinds):
    config, causal = CONFIGS[name], name != "clean"
    query, key_value, embedding, params = inputs_of(n_agents, config)
    cotangent = (normal(6, B, n_agents, E), normal(7, B, H, n_agents, n_agents))

    def value_and_gradient(function, inputs):
        value, pullback = jax.vjp(lambda *x: function(*x, config, causal), *inputs)
        return value, pullback(cotangent)

    @jax.jit
    def both(*inputs):
        return value_and_gradient(by_module, inputs), value_and_gradient(by_definition, inputs)

    for kind in kinds:
        ours, theirs = both(params, query, key_value, embedding, graph_of(kind, n_agents))
        jax.tree.map(
            lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=2e-4), ours, theirs
        )


def test_the_derivative_of_a_gradient_is_that_of_the_definition():
    """Unrolled bi-level steps differentiate the written-out reverse rule forward."""
    config = CONFIGS["clean"]
    query, key_value, embedding, params = inputs_of(SMALL, config)
    graph, direction = graph_of("raw", SMALL), normal(8, SMALL, SMALL)

    def curvature(function):
        def loss(x):
            output, _ = function(params, query, key_value, embedding, x, config, False)
            return jnp.sum(jnp.sin(output))

        return jax.jit(lambda x: jax.jvp(jax.grad(loss), (x,), (direction,))[1])(graph)

    expected = curvature(by_definition)
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(curvature(by_module), expected, rtol=1e-3, atol=1e-4)


def test_full_graph_without_relation_is_plain_attention():
    config = CONFIG.model_copy(update={"relation": False})
    query, _, _, params = inputs_of(SMALL, config)
    output = RelationAttention(config).apply(
        params, query, query, edges_of(jnp.ones((SMALL, SMALL)), config)
    )
    p = params["params"]

    def heads(name):
        x = query @ p[name]["kernel"] + p[name]["bias"]
        return x.reshape(B, SMALL, H, E // H)

    context = jax.nn.dot_product_attention(heads("query"), heads("key"), heads("value"))
    expected = context.reshape(query.shape) @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_mat_ignores_the_graph():
    config = CONFIG.model_copy(update={"model": "mat"})
    query, key_value, _, params = inputs_of(SMALL, config)
    outputs = [
        by_module(params, query, key_value, None, graph_of(kind, SMALL), config, False)
        for kind in ("hard", "raw")
    ]
    for first, second in zip(*outputs, strict=True):
        np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(outputs[0][1].sum(-1), 1.0, rtol=1e-6)
    assert np.all(outputs[0][1] > 0)


@pytest.mark.parametrize("causal", [False, True])
def test_without_edges_an_agent_hears_only_itself(causal):
    query, key_value, embedding, params = inputs_of(SMALL)
    graph = graph_of("hard", SMALL)
    _, weights = by_module(params, query, key_value, embedding, graph, CONFIG, causal)
    heard = np.asarray((graph + np.eye(SMALL)) > 0) & (np.tri(SMALL, dtype=bool) | (not causal))
    assert np.all(np.asarray(weights)[:, :, ~heard] == 0)
    assert np.all(np.asarray(weights)[:, :, heard] > 0)
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-6)


def test_adding_self_loops_doubles_the_weight_of_a_selected_self_edge():
    query, key_value, embedding, params = inputs_of(SMALL)
    graph = graph_of("hard", SMALL).at[0, 0].set(1.0).at[1, 1].set(0.0)
    weights = {}
    for loop in ("set", "add"):
        config = CONFIG.model_copy(update={"self_loop": loop})
        weights[loop] = by_module(params, query, key_value, embedding, graph, config, False)[1]
    factor = 1 + np.diag(np.diag(graph))
    np.testing.assert_allclose(weights["add"], factor * weights["set"], rtol=1e-6)


def test_an_empty_graph_leaves_every_agent_alone():
    query, _, embedding, params = inputs_of(SMALL)
    graph = jnp.zeros((SMALL, SMALL))
    _, weights = by_module(params, query, query, embedding, graph, CONFIG, False)
    np.testing.assert_allclose(weights, np.broadcast_to(np.eye(SMALL), weights.shape), atol=1e-7)


def test_a_self_loop_that_adds_up_to_zero_leaves_no_row_empty():
    """A raw logit of -1 plus 1: all weights are 0, where a softmax over nothing would be NaN."""
    config = CONFIG.model_copy(update={"self_loop": "add"})
    query, _, embedding, params = inputs_of(SMALL)
    output, weights = by_module(params, query, query, embedding, -jnp.eye(SMALL), config, False)
    np.testing.assert_array_equal(weights, 0.0)
    bias = params["params"]["out"]["bias"]
    np.testing.assert_array_equal(output, jnp.broadcast_to(bias, output.shape))


def test_one_graph_for_all_samples_is_the_same_as_a_copy_for_each():
    query, key_value, embedding, params = inputs_of(SMALL)
    graph = graph_of("raw", SMALL)
    copies = jnp.broadcast_to(graph, (B, SMALL, SMALL))
    one, many = (
        by_module(params, query, key_value, embedding, g, CONFIG, True)[0] for g in (graph, copies)
    )
    np.testing.assert_allclose(one, many, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "graph"),
    [("clean", "batch"), ("reference", "raw"), ("no_relation", "hard"), ("reference", "batch")],
)
def test_cached_steps_are_the_rows_of_causal_attention(name, graph):
    config, graph = CONFIGS[name], graph_of(graph, SMALL)
    query, key_value, embedding, params = inputs_of(SMALL, config)
    module, edges = RelationAttention(config, causal=True), edges_of(graph, config)
    expected = module.apply(params, query, key_value, edges, embedding)
    cache = Cache(*jnp.full((2, B, H, SMALL, E // H), 7.0))  # what is not written is not read

    @jax.jit
    def step(cache, index):
        own_query, own_key_value = query[:, index], key_value[:, index]
        output, cache = module.apply(
            params, own_query, own_key_value, edges, embedding, cache, index, method="step"
        )
        return cache, output

    _, rows = jax.lax.scan(step, cache, jnp.arange(SMALL))
    np.testing.assert_allclose(rows.swapaxes(0, 1), expected, atol=1e-5)


def test_no_embedding_per_edge_is_ever_made():
    query, key_value, embedding, params = inputs_of(LARGE)
    graph = graph_of("raw", LARGE)

    def loss(params, graph):
        output, _ = by_module(params, query, key_value, embedding, graph, CONFIG, True)
        return jnp.sum(output)

    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(params, graph)
    largest = max(math.prod(shape) for shape in shapes_in(jaxpr.jaxpr))
    assert largest < B * LARGE * LARGE * E


def shapes_in(jaxpr):
    """Shapes of all arrays that a program makes, called programs included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from shapes_in(inner)


def test_in_reduced_precision_the_weights_stay_float32():
    config = CONFIG.model_copy(update={"dtype": "bfloat16"})
    query, key_value, embedding, params = inputs_of(SMALL)
    graph = graph_of("hard", SMALL)
    output, weights = by_module(params, query, key_value, embedding, graph, config, False)
    expected, exact = by_module(params, query, key_value, embedding, graph, CONFIG, False)
    assert output.dtype == jnp.bfloat16
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(weights, exact, atol=0.05)
    np.testing.assert_allclose(output.astype(jnp.float32), expected, atol=0.3)


def test_a_missing_edge_embedding_is_named():
    query, key_value, _, params = inputs_of(SMALL)
    with pytest.raises(ValueError, match=r"edge_embedding must be .* got None"):
        by_module(params, query, key_value, None, graph_of("hard", SMALL), CONFIG, False)
