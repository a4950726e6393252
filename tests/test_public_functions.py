"""Every public function in float64, float32, bfloat16 and float16, against float64.

A function that is exported has an entry here: how to call it with arrays of a type, and how many
roundings of that type its result may be off, relative to its largest entry. What computes nothing
in floating point (files, text, whole runs, classes) is listed in `ELSEWHERE`, with its reason.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmethods import bilevel, commformer, kid, language, novo, obd
from jaxmethods.language import divergences
from jaxmethods.numerics import linalg
from tests.programs import quick

PACKAGES = ["bilevel", "commformer", "kid", "language", "obd", "novo", "numerics.linalg", "sql"]
TYPES = ["float64", "float32", "bfloat16", "float16"]


def public(name: str) -> Iterator[str]:
    """Names of the functions of a package's `__all__`, those of exported modules among them."""
    module = importlib.import_module(f"jaxmethods.{name}")
    names = getattr(module, "__all__", None) or [
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    for key in names:
        value = getattr(module, key)
        if inspect.ismodule(value):
            yield from public(value.__name__.removeprefix("jaxmethods."))
        elif inspect.isfunction(value) or isinstance(value, jax.custom_vjp):
            yield f"{name}.{key}"


def draw(seed, *shape):
    """Numbers that every type holds, so that only the arithmetic differs."""
    return np.random.default_rng(seed).integers(-8, 9, shape) / 8


N, C, H = 6, 3, 4
VECTOR, MATRIX = draw(0, N), draw(1, N, N)
SPD = MATRIX @ MATRIX.T + 2 * np.eye(N)
STATES, ACTIONS, NOISE = draw(2, N, 3), draw(3, N, 2), draw(4, N, 2)
NORMS, MASK = draw(5, N, C, H) + 2, np.ones((N, C), bool)
LABELS = np.arange(N) % C
ROWS = language.Tokens(np.arange(8).reshape(2, 4) % 5, np.arange(8).reshape(2, 4) % 3 > 0)
TIED = draw(6, C, C)
POLICY = [(draw(7, 3, 5) / 2, draw(8, 5) / 2), (draw(9, 5, 4) / 2, draw(10, 4) / 2)]
PPO = commformer.PPOConfig()
objectives, graph, gate = commformer.objectives, commformer.graph, commformer.gate


def policy(t):
    layers = tuple((jnp.asarray(w, t), jnp.asarray(b, t)) for w, b in POLICY)
    return obd.PolicyParams(layers, jnp.ones((), t), -jnp.ones((), t))


def moments(t):
    del t
    start = objectives.value_norm_init()
    return objectives.value_norm_update(start, jnp.asarray(VECTOR, jnp.float32))


def solved(t):
    loss = lambda w, h, _: jnp.sum((w - h) ** 2)  # noqa: E731
    rate = jnp.asarray(0.125, t)

    def outer(h):
        arguments = (optax.sgd(rate), jnp.zeros_like(h), h)
        return jnp.sum(bilevel.solve(loss, *arguments, steps=3).params ** 2)

    return jax.grad(outer)(jnp.asarray(VECTOR, t))


def alternated(t):
    loss = lambda w, u: (jnp.sum((w - u) ** 2), {})  # noqa: E731
    problem = bilevel.alternating(loss, optax.sgd(0.125), optax.sgd(0.125), joint=True)
    state = problem.init(jnp.asarray(VECTOR, t), jnp.ones(N, t))
    return problem.step(state, True)[0][:2]


def one_step(t):
    loss = lambda w, u: (jnp.sum((w - u) ** 2 * u), {})  # noqa: E731
    return bilevel.one_step_gradient(loss, jnp.asarray(VECTOR, t), jnp.ones(N, t), 0.125)[1]


def ppo(t):
    own = [jnp.asarray(draw(seed, N) / 4, t) for seed in range(11, 17)]
    targets = objectives.PPOTargets(*own[:4])
    loss, (_, metrics) = objectives.ppo_loss(*own[4:], own[0], targets, moments(t), PPO)
    return loss, metrics


def syn(t):
    return obd.SynSet(jnp.asarray(STATES, t), jnp.asarray(ACTIONS, t))


def outer_batch(t):
    return obd.objectives.OuterBatch(*syn(t), jnp.ones(N, t), jnp.asarray(NOISE, t))


def attended(t):
    q, k, v = (jnp.asarray(draw(seed, 2, C, 2, 4), t) for seed in (20, 21, 22))
    flat = jnp.zeros((2, 2, C, C), jnp.float32)
    return commformer.attention.attend(q, k, v, flat, flat + 1, 0.5)


HEADS = novo.heads_from_indices([0, 2], [1], H)
HEAD = {
    "hidden": {"kernel": draw(30, H, 5), "bias": draw(31, 5)},
    "out": {"kernel": draw(32, 5, 1), "bias": draw(33, 1)},
}


def _floating(x):
    return isinstance(x, np.ndarray) and np.issubdtype(x.dtype, np.floating)


def of(function, *arrays, **options):
    """Calls with every floating array in the type asked for."""

    def call(t):
        given = [jnp.asarray(x, t) if _floating(x) else x for x in arrays]
        return function(*given, **options)

    return call


ENTRIES = {  # name: (call of a type, roundings)
    "bilevel.solve": (solved, 16),
    "bilevel.alternating": (alternated, 8),
    "bilevel.one_step_gradient": (one_step, 8),
    "numerics.linalg.in_turn": (
        lambda t: linalg.in_turn(
            jnp.linalg.cholesky, jnp.asarray([SPD] * 2, jnp.promote_types(t, jnp.float32))
        ),
        32,
    ),
    "commformer.attention.attend": (attended, 16),
    "commformer.graph.selectable": (of(graph.selectable, TIED, self_edges=True), 1),
    "commformer.graph.exact_graph": (of(graph.exact_graph, TIED, k=2), 0),
    "commformer.graph.sample_graph": (of(graph.sample_graph, TIED, 0 * TIED, k=2), 0),
    "commformer.graph.scheduled_graph": (
        of(
            graph.scheduled_graph,
            TIED,
            0 * TIED,
            update=9,
            total_updates=10,
            k=2,
            config=commformer.GraphConfig(),
        ),
        0,
    ),
    "commformer.graph.edge_types": (of(graph.edge_types, TIED, transpose=True), 0),
    "commformer.gate.decide": (of(gate.decide, TIED), 4),
    "commformer.gate.gated_graph": (of(gate.gated_graph, TIED, np.eye(C)), 2),
    "commformer.gate.penalty": (
        lambda t: gate.penalty(gate.decide(jnp.asarray(TIED, t)), commformer.GateConfig()),
        8,
    ),
    "commformer.gate.traffic": (of(gate.traffic, TIED, np.ones((2, C))), 4),
    "commformer.objectives.value_norm_update": (
        lambda t: objectives.value_norm_update(
            objectives.value_norm_init(), jnp.asarray(VECTOR, t)
        ),
        4,
    ),
    "commformer.objectives.value_norm_moments": (
        lambda t: objectives.value_norm_moments(moments(t)),
        4,
    ),
    "commformer.objectives.value_norm_normalize": (
        lambda t: objectives.value_norm_normalize(moments(t), jnp.asarray(VECTOR, t)),
        8,
    ),
    "commformer.objectives.value_norm_denormalize": (
        lambda t: objectives.value_norm_denormalize(moments(t), jnp.asarray(VECTOR, t)),
        8,
    ),
    "commformer.objectives.gae": (
        of(objectives.gae, MATRIX, MATRIX.T, VECTOR, np.ones((N, N)), discount=0.5, gae_lambda=1),
        8,
    ),
    "commformer.objectives.normalize_advantages": (
        of(objectives.normalize_advantages, VECTOR, np.array([1.0, 1, 0, 1, 1, 0])),
        8,
    ),
    "commformer.objectives.value_loss": (
        of(objectives.value_loss, VECTOR, -VECTOR, VECTOR[::-1], clip=0.25, delta=0.5),
        8,
    ),
    "commformer.objectives.ppo_loss": (ppo, 16),
    "obd.objectives.bc_loss": (
        lambda t: obd.objectives.bc_loss(policy(t), syn(t), jnp.asarray(NOISE, t)),
        16,
    ),
    "obd.objectives.outer_loss": (
        lambda t: obd.objectives.outer_loss(policy(t), outer_batch(t)),
        16,
    ),
    "obd.meta_gradient.inner_train": (
        lambda t: obd.meta_gradient.inner_train(
            policy(t), syn(t), jnp.asarray([NOISE] * 2, t), 0.125
        )[1],
        32,
    ),
    "obd.meta_gradient.meta_gradient": (
        lambda t: (
            obd.meta_gradient.meta_gradient(
                syn(t), policy(t), jnp.asarray([NOISE] * 2, t), outer_batch(t), 0.125
            ).loss
        ),
        32,
    ),
    "offline_rl.policies.policy_heads": (
        lambda t: obd.policy.policy_heads(policy(t), syn(t)[0]),
        16,
    ),
    "offline_rl.policies.policy_sample": (
        lambda t: obd.policy.policy_sample(policy(t), syn(t)[0], jnp.asarray(NOISE, t)),
        16,
    ),
    "offline_rl.policies.policy_mode": (lambda t: obd.policy.policy_mode(policy(t), syn(t)[0]), 16),
    "offline_rl.policies.policy_log_prob": (
        lambda t: obd.policy.policy_log_prob(policy(t), syn(t)[0], jnp.asarray(NOISE, t)),
        16,
    ),
    "offline_rl.policies.mlp": (lambda t: obd.policy.mlp(policy(t).layers, syn(t)[0]), 16),
    "language.next_token.next_token_loss": (
        of(lambda logits: language.next_token_loss(logits, ROWS), draw(9, 2, 3, 5)),
        8,
    ),
    "kid.exposure.excess_accumulated_error": (
        of(kid.exposure.excess_accumulated_error, NORMS[..., 0], NORMS[..., 1]),
        32,
    ),
    "kid.exposure.excess_deviation": (
        of(kid.exposure.excess_deviation, NORMS[..., 0], NORMS[..., 1]),
        32,
    ),
    "kid.imperfect.predicted": (of(kid.imperfect.predicted, NORMS), 0),
    "kid.imperfect.token_entropies": (of(kid.imperfect.token_entropies, NORMS), 8),
    "kid.imperfect.select_tokens": (
        lambda t: kid.imperfect.select_tokens(
            None, jnp.asarray(MASK), 0.5, "hard", entropies=jnp.asarray(NORMS[..., 0], t)
        ),
        0,
    ),
    "kid.loss.of_divergence": (
        lambda t: kid.loss.of_divergence(
            jnp.asarray(NORMS[:, 0], t),
            jnp.asarray(NORMS[:, 1], t),
            jnp.asarray(LABELS),
            kid.DivergenceConfig(name="jsd"),
        ),
        16,
    ),
    "novo.heads.choices": (of(novo.heads.choices, NORMS, MASK), 0),
    "novo.heads.correct_counts": (of(novo.heads.correct_counts, NORMS, MASK, LABELS), 0),
    "novo.heads.fit": (of(novo.heads.fit, NORMS, MASK, LABELS), 0),
    "novo.heads.vote": (of(novo.heads.vote, NORMS[0], MASK[0], HEADS), 0),
    "novo.heads.predict": (of(novo.heads.predict, NORMS, MASK, HEADS), 0),
    "novo.heads.largest_of": (of(novo.heads.largest_of, NORMS[..., 0], MASK), 0),
    "novo.baselines.most_likely": (of(novo.baselines.most_likely, NORMS[..., 0], MASK), 0),
    "novo.baselines.standardize": (of(novo.baselines.standardize, NORMS, MASK), 8),
    "novo.baselines.best_on_test": (of(novo.baselines.best_on_test, NORMS, MASK, LABELS), 0),
    "novo.finetune.differentiable_norms": (of(novo.finetune.differentiable_norms, NORMS), 8),
    "novo.finetune.candidate_logits": (
        lambda t: novo.finetune.candidate_logits(
            jax.tree.map(lambda x: jnp.asarray(x, t), HEAD), jnp.asarray(NORMS, t)
        ),
        16,
    ),
    "novo.finetune.candidate_loss": (
        of(novo.finetune.candidate_loss, NORMS[..., 0], MASK, LABELS),
        8,
    ),
}
DIVERGENCES = [
    "forward_kl",
    "reverse_kl",
    "jsd",
    "total_variation",
    "skew_forward_kl",
    "skew_reverse_kl",
    "adaptive_kl",
    "osd_mix",
]
ENTRIES |= {
    f"language.divergences.{name}": (of(getattr(divergences, name), MATRIX, MATRIX[::-1]), 32)
    for name in DIVERGENCES
}
ALIASES = {"language.next_token_loss": "language.next_token.next_token_loss"} | {
    f"novo.{name}": f"novo.heads.{name}" for name in ("correct_counts", "fit", "predict", "vote")
}

ELSEWHERE = {
    "whole updates and runs, tested in tests/<package>": """commformer.trainer
        commformer.evaluate commformer.policy.init commformer.policy.act
        commformer.policy.evaluate_actions commformer.policy.decoded obd.baselines.cloning
        obd.density.flow_learner
        obd.density.fit_density obd.distiller obd.evaluate_returns obd.judge_sets obd.measure_set
        obd.students.train_students obd.students.train_student obd.students.cross_optimizers
        obd.train_students obd.objectives.make_outer_batch obd.students.offline_loss
        language.next_token_learner language.next_token.next_token_learner
        language.next_token.begin language.random_rows language.next_token.random_rows novo.score
        novo.norms.run_root novo.norms.row_norms novo.norms.row_log_likelihoods
        novo.norms.sequence_norms novo.bootstrap novo.resample.bootstrap novo.transfer
        novo.resample.transfer novo.resample.elect novo.baselines.probe
        novo.baselines.probe_predict kid.distiller kid.kid_loss kid.loss.kid_loss kid.loss.states_of
        kid.loss.make_imperfect kid.exposure.token_divergences kid.responses.choose_responses
        kid.responses.replayed kid.responses.validated""",
    "tokens and masks, tested in tests/language/test_divergences.py": """
        language.divergences.head_weight language.divergences.decouple
        language.divergences.decoupled language.divergences.atkd_loss language.divergences.atkd
        language.divergences.easy_tokens language.divergences.lower_median
        language.divergences.cross_entropy language.divergences.entropy
        language.divergences.masked_mean language.divergences.over_chunks
        language.divergences.over_rows language.divergences.cut""",
    "density, tested in tests/obd/test_density.py": """obd.density.init_flow
        obd.density.flow_log_prob obd.density.to_noise obd.density.made
        obd.density.neighbor_density obd.density.state_log_prob obd.density.sdw_weights""",
    "one weighting in five, tested in tests/obd/test_objectives.py": "obd.objectives.outer_weights",
    "fresh parameters": """offline_rl.policies.init_policy offline_rl.policies.init_deterministic
        offline_rl.policies.init_q novo.finetune.init_head commformer.graph.initial_logits
        commformer.graph.fixed_graph commformer.objectives.value_norm_init""",
    "makes functions or modules": """obd.deterministic obd.tanh_gaussian
        offline_rl.policies.deterministic offline_rl.policies.tanh_gaussian obd.students.selected
        obd.students.ensemble_mode obd.meta_gradient.mode_of commformer.policy.make_network
        kid.of_decoder commformer.clean commformer.reference commformer.attention.has_relation""",
    "files, text and numbers of the host": """obd.load obd.load_corl_calql obd.load_offline
        obd.load_teacher obd.offline_data obd.save obd.save_teacher obd.normalized_score
        offline_rl.scores.reference_returns offline_rl.scores.normalized_score
        offline_rl.scores.score offline_rl.scores.score_name obd.used obd.with_rates
        language.render language.clean_choice language.prompts.clean_choice
        language.prompts.render_prompt language.prompts.render
        language.prompts.tokenize_questions language.prompts.canonical_labels
        language.prompts.common_prefix novo.heads_to_json novo.heads_from_json
        novo.heads.heads_to_json novo.heads.heads_from_json novo.misconceptions.words
        novo.misconceptions.questions_in_words novo.misconceptions.tokenizer_of
        kid.world.write_world kid.world.draw_questions kid.world.held_out sql.bird_equal
        sql.build_prompt sql.compact_schema sql.exact_match sql.first_executable
        sql.fuzz_databases sql.hardness sql.match_contents sql.read_bird sql.read_predictions
        sql.read_schema sql.read_spider sql.read_tables sql.results_equal sql.schema_sequence
        sql.vote""",
    "integers, rows and masks": """kid.imperfect.num_masked kid.imperfect.mask_tokens
        kid.imperfect.rewrite kid.imperfect.fill_accuracy kid.imperfect.row_keys
        kid.imperfect.purpose kid.loss.totals kid.loss.rewrites kid.responses.begin_replay
        kid.responses.with_responses obd.baselines.random_rows obd.baselines.top_rows
        obd.baselines.cluster_rows novo.build_tree novo.tree.build_tree
        novo.tree.candidate_starts novo.tree.plan_batches
        novo.select_heads novo.heads.select_heads novo.heads.count_votes novo.heads_from_indices
        novo.heads.heads_from_indices novo.heads.heads_to_indices novo.baselines.single_best
        novo.baselines.all_heads novo.baselines.random_heads novo.baselines.majority
        novo.baselines.chance novo.baselines.accuracy novo.misconceptions.vocabulary
        novo.misconceptions.draw_facts novo.misconceptions.draw_sentences
        novo.misconceptions.draw_items commformer.graph.edges_per_agent
        commformer.graph.given_graph commformer.attention.edges_of
        commformer.policy.shift_actions commformer.policy.traffic_of""",
    "signs are free, tested in tests/merging/static": "numerics.linalg.thin_svd",
    "a mean and a concatenation around an entry": """commformer.policy.action_std
        offline_rl.policies.q_value""",
}


ON_THE_HOST = ()


def test_every_public_function_has_an_entry():
    functions = {name for package in PACKAGES for name in public(package)}
    elsewhere = {name for names in ELSEWHERE.values() for name in names.split()}
    assert functions - set(ENTRIES) - set(ALIASES) - elsewhere == set()
    assert (set(ENTRIES) | set(ALIASES) | elsewhere) - functions == set()


@cache
def result(name, dtype, x64):
    """The entry's numbers, compiled whole where no value is looked at on the host."""
    call, _ = ENTRIES[name]
    with jax.enable_x64(x64):
        found = call(dtype) if name in ON_THE_HOST else jax.jit(lambda: call(dtype))()
    return [np.asarray(leaf).astype(float) for leaf in jax.tree.leaves(found)]


@pytest.mark.parametrize("dtype", quick(TYPES, "bfloat16"))
@pytest.mark.parametrize("name", ENTRIES)
def test_the_value_is_that_of_float64(name, dtype):
    """With float64 switched on, and off where the type is another."""
    _, roundings = ENTRIES[name]
    # Statistics, gates and norms are float32 however wide their inputs are.
    eps = max(float(jnp.finfo(dtype).eps), float(jnp.finfo("float32").eps))
    expected, wide = result(name, "float64", True), result(name, dtype, True)
    values = [wide] if dtype == "float64" else [wide, result(name, dtype, False)]
    for value in values:
        assert len(value) == len(expected)
        for own, exact in zip(value, expected, strict=True):
            scale = max(1e-3, np.abs(exact).max(initial=0))
            np.testing.assert_allclose(own, exact, rtol=0, atol=roundings * eps * scale)


@pytest.mark.parametrize("steps", [0, 1])
def test_no_step_and_one_step_of_gae(steps):
    reward = jnp.ones((steps, 2))
    advantages, returns = objectives.gae(reward, 0 * reward, jnp.ones(2), reward, 0.5, 1.0)
    np.testing.assert_allclose(advantages, np.full((steps, 2), 1.5))
    np.testing.assert_array_equal(returns, advantages)


def test_without_heads_no_votes_are_cast():
    heads = novo.select_heads(jnp.zeros((2, 0), jnp.int32))
    assert heads.max_mask.shape == (0,)
    assert not heads.ok


def test_a_head_with_equal_norms_is_standardized_to_zero_in_float16():
    """1e-12 under the root is 0 in float16, and 0 / 0 no number."""
    own = novo.baselines.standardize(jnp.ones((N, C, H), jnp.float16), jnp.asarray(MASK))
    np.testing.assert_array_equal(own, np.zeros((N, C, H)))
