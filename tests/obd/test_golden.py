"""The published code's numbers, in every exact mode and in both precisions.

Every size is read from the arrays; the meaning of the arrays and the tolerances are in
tests/golden/README.md.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmethods.data.offline import FlatDataset, q_learning_rows
from jaxmethods.obd import meta_gradient, objectives
from jaxmethods.obd.config import OBDConfig
from jaxmethods.obd.meta_gradient import MODES
from jaxmethods.obd.method import outer_optimizer
from jaxmethods.obd.recipes.teacher_files import load_teacher
from jaxmethods.obd.types import SynSet
from jaxmethods.offline_rl import policies as policy
from jaxmethods.offline_rl.dataset import offline_data
from jaxmethods.offline_rl.policies import PolicyParams
from jaxmethods.offline_rl.scores import normalized_score
from tests.golden_files import golden_files, read

INNER_LR, BETA_W = 0.1, 0.02
MOMENTA = {"m0": 0.0, "m9": 0.9}
PRECISIONS = {"float64": (np.float64, 1e-10), "float32": (np.float32, 2e-4)}


@pytest.fixture(autouse=True)
def _both_precisions():
    with jax.enable_x64(True):
        yield


def assert_relative(actual, expected, tolerance, name=""):
    """Largest error relative to the largest expected magnitude."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale, err_msg=name)


def layers_of(arrays, prefix, suffix=""):
    """The layers `prefix`w0, `prefix`b0, ... of a file."""
    count = sum(name.startswith(f"{prefix}w") for name in arrays)
    return tuple((arrays[f"{prefix}w{i}"], arrays[f"{prefix}b{i}"]) for i in range(count))


def policy_of(arrays, prefix):
    return PolicyParams(
        layers_of(arrays, prefix),
        arrays[f"{prefix}log_std_multiplier"],
        arrays[f"{prefix}log_std_offset"],
    )


class Case:
    """The inputs of all cases in one precision."""

    def __init__(self, file, dtype):
        arrays = {name: jnp.asarray(value, dtype) for name, value in read(file).items()}
        self.arrays = arrays
        self.student = policy_of(arrays, "student_")
        self.teacher = policy_of(arrays, "teacher_")
        self.q = layers_of(arrays, "q_")
        self.syn = SynSet(arrays["syn_states"], arrays["syn_actions"])
        self.noise, self.fresh = arrays["eps_inner"], arrays["eps_bwd_fresh"]

    def batch(self, objective):
        """The outer batch of an objective, minibatches in a row."""
        names = ("batch_states", "batch_actions", "eps_teacher", "eps_outer")
        flat = [self.arrays[n].reshape(-1, self.arrays[n].shape[-1]) for n in names]
        states, actions, teacher_noise, noise = flat
        weights = jnp.ones(len(states), states.dtype)
        if objective != "dbc":
            actions = policy.policy_sample(self.teacher, states, teacher_noise)
            q = policy.q_value(self.q, states, actions)
            weights = objectives.outer_weights(q, OBDConfig(objective=objective), BETA_W)
        return objectives.OuterBatch(states, actions, weights, noise)


def partner(file, prefix, own):
    """The file that belongs to `file` and begins with `prefix`, whatever is appended to both."""
    return file.with_name(prefix + file.stem.removeprefix(own) + ".npz")


def inputs_of(file, own, dtype=np.float64):
    return Case(partner(file, "inputs", own), dtype)


@pytest.mark.parametrize("file", golden_files("obd", "policy_forward"))
def test_policies_and_critic(file):
    golden, case = read(file), inputs_of(file, "policy_forward")
    states, noise = case.arrays["batch_states"][0], case.arrays["eps_outer"][0]
    student = case.student
    mean, log_std = policy.policy_heads(student, states)
    teacher_noise = case.arrays["eps_teacher"][0]
    taught = policy.policy_sample(case.teacher, states, teacher_noise)
    clipped = np.clip(golden["student_log_std_unclamped"], *policy.LOG_STD_BOUNDS)
    for actual, expected in [
        (mean, golden["student_mean"]),
        (log_std, clipped),
        (policy.policy_sample(student, states, noise), golden["student_action_sampled"]),
        (policy.policy_log_prob(student, states, noise), golden["student_log_prob"]),
        (policy.policy_mode(student, states), golden["student_action_deterministic"]),
        (taught, golden["teacher_action_sampled"]),
        (policy.q_value(case.q, states, taught), golden["q_value"]),
    ]:
        assert_relative(actual, expected, 1e-10)


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("file", golden_files("obd", "inner_loop"))
def test_cloning(file, momentum):
    golden, case = read(file), inputs_of(file, "inner_loop")
    for steps, suffix in ((1, "after1"), (len(case.noise), "afterT")):
        clone, losses = jax.jit(meta_gradient.inner_train)(
            case.student, case.syn, case.noise[:steps], INNER_LR, MOMENTA[momentum]
        )
        assert_relative(losses, golden[f"{momentum}_inner_losses"][:steps], 1e-10)
        expected = policy_of(golden, f"{momentum}_{suffix}_")
        jax.tree.map(lambda a, e: assert_relative(a, e, 1e-10), clone, expected)


META_FILES = golden_files("obd", "meta_grad")


def objective_of(file):
    """(objective, file of inputs) of meta_grad_OBJECTIVE[...].npz."""
    objective = file.stem.removeprefix("meta_grad_").split("_")[0]
    return objective, partner(file, "inputs", f"meta_grad_{objective}")


@partial(jax.jit, static_argnames="mode")
def gradients(syn, student, noise, batch, momenta, mode):
    """Meta-gradients for several momenta; compiled once for all files of the same sizes."""

    def one(momentum):
        return meta_gradient.meta_gradient(
            syn, student, noise, batch, INNER_LR, momentum, mode=MODES[mode]
        )

    return jax.vmap(one)(momenta)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("file", META_FILES)
def test_meta_gradient(file, mode, precision):
    golden, (objective, inputs) = read(file), objective_of(file)
    dtype, tolerance = PRECISIONS[precision]
    case = Case(inputs, dtype)
    momenta = jnp.asarray(list(MOMENTA.values()), dtype)
    found = gradients(case.syn, case.student, case.noise, case.batch(objective), momenta, mode=mode)
    for index, name in enumerate(MOMENTA):
        loss, (states, actions), _ = jax.tree.map(lambda leaf, i=index: leaf[i], found)
        assert states.dtype == dtype
        assert_relative(loss, golden[f"{name}_outer_loss"], tolerance)
        assert_relative(states, golden[f"{name}_d_states"], tolerance)
        assert_relative(actions, golden[f"{name}_d_actions"], tolerance)
        if precision == "float32":
            assert_relative(states, golden[f"{name}_d_states_f32"], tolerance)
            assert_relative(actions, golden[f"{name}_d_actions_f32"], tolerance)


@jax.jit
def published_gradient(syn, student, noise, batch, fresh):
    return meta_gradient.meta_gradient(syn, student, noise, batch, INNER_LR, backward_noise=fresh)


@pytest.mark.parametrize("file", META_FILES)
def test_fresh_backward_noise_gives_the_published_gradient(file):
    golden, (objective, inputs) = read(file), objective_of(file)
    case = Case(inputs, np.float64)
    found = published_gradient(
        case.syn, case.student, case.noise, case.batch(objective), case.fresh
    )
    assert_relative(found.gradient.states, golden["m0_d_states_reference_fresh_noise"], 1e-10)
    assert_relative(found.gradient.actions, golden["m0_d_actions_reference_fresh_noise"], 1e-10)


@jax.jit
def adjoints(student, syn, noise, batch, momentum):
    """Derivatives of the outer loss in the first and in the last parameters."""
    last, pull = jax.vjp(
        lambda params: meta_gradient.inner_train(params, syn, noise, INNER_LR, momentum)[0],
        student,
    )
    at_last = jax.grad(objectives.outer_loss)(last, batch)
    return pull(at_last)[0], at_last


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("file", META_FILES)
def test_adjoints_of_the_first_and_last_parameters(file, momentum):
    golden, (objective, inputs) = read(file), objective_of(file)
    case = Case(inputs, np.float64)
    at_first, at_last = adjoints(
        case.student, case.syn, case.noise, case.batch(objective), MOMENTA[momentum]
    )
    for adjoint, name in ((at_last, "d_thetaT_l2"), (at_first, "d_theta0_l2")):
        assert_relative(optax.tree.norm(adjoint), golden[f"{momentum}_{name}"], 1e-10)


@pytest.mark.parametrize("file", golden_files("obd", "outer_update"))
def test_outer_updates(file):
    golden, case = read(file), inputs_of(file, "outer_update")
    optimizer = outer_optimizer(2.0, 0.1, 0.9)
    syn, state = case.syn, optimizer.init(case.syn)
    for i, norm in enumerate(golden["total_norm_before_clip"]):
        gradient = SynSet(
            jnp.asarray(golden["grad_states"][i]), jnp.asarray(golden["grad_actions"][i])
        )
        assert_relative(optax.tree.norm(gradient), norm, 1e-10)
        updates, state = optimizer.update(gradient, state)
        syn = optax.apply_updates(syn, updates)
        # The published code adds 1e-6 to the norm when it clips.
        assert_relative(syn.states, golden["states_after"][i], 1e-6)
        assert_relative(syn.actions, golden["actions_after"][i], 1e-6)


def d4rl_like() -> Path:
    """The folder with the teachers that `calql_forward` was computed with."""
    folder = Path(os.environ.get("JAXMETHODS_SHARED", "missing")) / "data" / "d4rl_like"
    if not folder.is_dir():
        pytest.skip("JAXMETHODS_SHARED has no data/d4rl_like")
    return folder


@pytest.mark.parametrize("env", ["hopper", "halfcheetah", "walker2d"])
@pytest.mark.parametrize("file", golden_files("obd", "calql_forward"))
def test_exported_teachers(file, env):
    folder, golden = d4rl_like(), read(file)
    teacher = load_teacher(folder / f"{env}-calql.npz")
    states = teacher.norm.apply(jnp.asarray(golden[f"{env}_obs_raw"]))
    noise = jnp.asarray(golden[f"{env}_eps"])
    sampled = policy.policy_sample(teacher.policy, states, noise)
    for actual, name in [
        (policy.policy_mode(teacher.policy, states), "action_deterministic"),
        (policy.policy_heads(teacher.policy, states)[1], "log_std"),
        (sampled, "action_sampled"),
        (policy.q_value(teacher.q1, states, sampled), "q1_at_sampled"),
        (policy.q_value(teacher.q2, states, sampled), "q2_at_sampled"),
    ]:
        assert actual.dtype == np.float32
        assert_relative(actual, golden[f"{env}_{name}"], 2e-4, name)


@pytest.mark.parametrize("file", golden_files("obd", "d4rl_protocol"))
def test_rows_and_statistics_of_a_flat_dataset(file):
    golden = read(file)
    # Not through `flat_dataset`, which would refuse the file's actions: they leave [-1, 1].
    flat = FlatDataset(
        **{name.removeprefix("flat_"): golden[name] for name in golden if name.startswith("flat_")}
    )
    rows = q_learning_rows(flat)
    np.testing.assert_array_equal(rows.index, golden["ql_index"])
    for name in ("observations", "actions", "rewards", "next_observations", "terminals"):
        np.testing.assert_array_equal(getattr(rows, name), golden[f"ql_{name}"], err_msg=name)
    data, norm = offline_data(flat)
    assert_relative(norm.mean, golden["obs_mean"], 1e-6)
    assert_relative(norm.std, golden["obs_std_plus_eps"], 1e-6)
    assert_relative(data.states, golden["normalized_observations"], 1e-6)
    np.testing.assert_array_equal(data.actions, golden["ql_actions"])


@pytest.mark.parametrize("file", golden_files("obd", "d4rl_protocol"))
def test_normalized_scores(file):
    golden = read(file)
    for name in golden:
        if name.endswith("_returns"):
            env = name.removesuffix("_returns")
            score = normalized_score(env, golden[name])
            np.testing.assert_allclose(score, golden[f"{env}_normalized"], rtol=1e-10)
