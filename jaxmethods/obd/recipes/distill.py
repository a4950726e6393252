"""OBD on the command line: from a dataset to a distilled set that is tested and written down.

The stages are those that the config asks for: a teacher learned from the data alone, the density
of its states, the distillation, and what it is compared with. A teacher or density that is learned
is learned for each seed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.layout import Layout, Rule
from jaxmethods.method import Batch, Method, State, made_once
from jaxmethods.numerics.keys import named
from jaxmethods.obd import density, method
from jaxmethods.obd.baselines import cloning
from jaxmethods.obd.config import CloningConfig, ComparisonConfig, OBDConfig
from jaxmethods.obd.config import DistillRun as Run
from jaxmethods.obd.evaluate import (
    judge_policies,
    judge_sets,
    measure_policy,
    measure_set,
    player,
    trained_students,
)
from jaxmethods.obd.recipes import comparison, figures
from jaxmethods.obd.recipes import distilled_files as distilled
from jaxmethods.obd.recipes.comparison import Competitor, contest, real_sets
from jaxmethods.obd.recipes.diagnosis import diagnosable
from jaxmethods.obd.recipes.inputs import Inputs
from jaxmethods.obd.types import Source, SynSet
from jaxmethods.offline_rl import calql, iql
from jaxmethods.offline_rl.policies import Policy, tanh_gaussian
from jaxmethods.offline_rl.scores import score_name
from jaxmethods.offline_rl.types import Teacher
from jaxmethods.stages import (
    Compute,
    Diagnosable,
    Evaluation,
    Part,
    Place,
    Recipe,
    Results,
    Train,
)

__all__ = ["Run", "recipe"]

RULES = (Rule(r"^(syn|optimizer)/", ("data",)),)
"""A set's pairs are split over `data`, if they must be: several seeds are split before."""


class Found(NamedTuple):
    """What a distillation finds."""

    syn: SynSet
    """Every pair is used: their number is the config's in all seeds."""
    step: jax.Array
    """[] int32: outer steps done."""


def recipe(run: Run) -> Recipe:
    """Offline reinforcement learning and density where asked for, the distillation, comparison.

    Raises:
        DataError: a file cannot be used; files are read here, before anything is written.
        ValueError: sizes that don't fit the data, an unknown environment.
        MissingExtraError: the environment's simulator is not installed.
    """
    inputs = Inputs(run)
    stages: list[Train | Compute] = []
    if run.teacher.learn is not None:
        stages.append(offline_rl_stage(run, inputs))
    if run.density.tau > 0:
        stages.append(density_stage(run, inputs))
    stages.append(distillation_stage(run, inputs))
    measure = "offline_loss" if run.evaluation.environment is None else "score"
    headline = [f"distillation/{measure}"]
    if run.evaluation.random_selection:
        headline.append(f"distillation/random_{measure}")
    if run.comparison is not None:
        if run.comparison.cloning_steps:
            stages.append(cloning_stage(run, run.comparison, inputs))
        stages.append(comparison_stage(run, inputs))
    if closes_with_scores(run):
        stages.append(scores_stage(run, inputs))
        shown = ("distilled", "random", *(["teacher"] if has_teacher(run) else []))
        headline = [f"scores/score_{name}" for name in shown]
    reads = [stage.name for stage in stages if stage.name in ("distillation", "scores")]
    return Recipe(
        stages,
        partial(report, run, inputs),
        reads,
        headline,
        partial(ready, run, inputs),
        partial(diagnosed, run, inputs),
    )


def ready(
    run: Run, inputs: Inputs, results: Results, seed: int
) -> Callable[[jax.Array], jax.Array]:
    """A student that is trained on the distilled set now, as in the inner loop.

    Args:
        run: the run's config.
        inputs: the data.
        results: of the run's stages.
        seed: index into the run's seeds.

    Returns:
        Observations [..., S] as the environment gives them -> deterministic actions [..., A].
    """
    _, student = _student(run, results, seed)
    norm, mode = inputs.offline()[1], method.make_student(run.distillation.student).mode

    @jax.jit
    def policy(observations: jax.Array) -> jax.Array:
        """Deterministic actions [..., A] for the environment's observations [..., S]."""
        return mode(student, norm.apply(observations))

    return policy


def diagnosed(run: Run, inputs: Inputs, results: Results, seed: int) -> Diagnosable:
    """The same student as a model that can be diagnosed.

    Args:
        run: the run's config.
        inputs: the data.
        results: of the run's stages.
        seed: index into the run's seeds.

    Returns:
        A pure function with parameters and data.
    """
    syn, student = _student(run, results, seed)
    policy = method.make_student(run.distillation.student)
    return diagnosable(policy, student, syn, inputs.offline()[0])


def _student(run: Run, results: Results, seed: int) -> tuple[SynSet, Any]:
    """The set of a seed, and what a student learns from it."""
    syn: SynSet = jax.tree.map(lambda leaf: leaf[seed], results["distillation"].syn)
    key = named(jax.random.key(run.seed + seed), "ready")
    students = trained_students(run.distillation, 1, key, syn)
    return syn, jax.tree.map(lambda leaf: leaf[0], students)


def closes_with_scores(run: Run) -> bool:
    """Whether everybody plays at the end, which is then the one place where scores are measured."""
    return run.comparison is not None and run.evaluation.environment is not None


def has_teacher(run: Run) -> bool:
    """Whether there is a near-expert policy."""
    return run.teacher.learn is not None or run.teacher.path is not None


def offline_rl_stage(run: Run, inputs: Inputs) -> Train:
    """A teacher from the data alone."""
    learner, teacher = (
        (made_once(iql.learner, run.teacher.iql, run.teacher.steps), iql.teacher)
        if run.teacher.learn == "iql"
        else (made_once(calql.learner, run.teacher.calql), calql.teacher)
    )
    return Train(
        "offline_rl",
        learner,
        run.teacher.steps,
        lambda results: inputs.transitions(),
        result=lambda state, batch: teacher(state),
        evaluation=policy_evaluation(run, lambda state: teacher(state).policy),
    )


def policy_evaluation(run: Run, policy: Callable[[State], Any]) -> Evaluation | None:
    """How the one plain policy in a state is judged, with the `norm` of the stage's batch."""
    play = player(run.evaluation, OBDConfig())
    if play is None:
        return None

    def measure(state: State, batch: Batch, key: jax.Array) -> Any:
        return measure_policy(play, policy(state), batch.norm, key)

    along = ("score",) if closes_with_scores(run) else ()
    return Evaluation(measure, partial(judge_policies, play), along=along)


def density_stage(run: Run, inputs: Inputs) -> Train:
    """A flow fitted to the states; the result is the weight of each of them [L]."""
    flow, tau = run.density.flow, run.density.tau

    def result(state: State, states: Batch) -> jax.Array:
        log_p = density.state_log_prob(partial(density.flow_log_prob, state.params), states)
        return density.sdw_weights(log_p, tau, states.shape[-1])

    return Train(
        "density",
        made_once(density.flow_learner, flow),
        flow.steps,
        lambda results: inputs.offline()[0].states,
        result=result,
    )


def distillation_stage(run: Run, inputs: Inputs) -> Train:
    """The distillation, fed by what was learned before it."""
    config, evaluation = run.distillation, run.evaluation

    def measure(state: State, source: Source, key: jax.Array) -> Any:
        return measure_set(evaluation, config, state.syn, source, key)

    along: list[str] = []
    if closes_with_scores(run):
        prefixes = ["", "random_"] if evaluation.random_selection else [""]
        along = [f"{prefix}{name}" for prefix in prefixes for name in ("score", "score_error")]
    per_seed = []
    if run.density.tau > 0:
        per_seed.append("^data/density_weights$")
    if run.teacher.learn is not None:
        per_seed.append("^teacher/")
    if config.init_pool:
        per_seed.append("^init_pool/")
    return Train(
        "distillation",
        made_once(method.distiller, config),
        run.outer_steps,
        lambda results: source(run, inputs, results),
        result=lambda state, batch: Found(state.syn, state.step),
        evaluation=Evaluation(
            measure,
            partial(judge_sets, evaluation, config),
            score=None if evaluation.environment is None else "score",
            along=along,
        ),
        layout=Layout(state=RULES, per_seed=per_seed),
        main=True,
    )


def source(run: Run, inputs: Inputs, results: Results) -> Source:
    """What is distilled; teacher and density weights have a seed axis where they were learned, a
    pool of initial students always has, or a seed would depend on those beside it."""
    data, norm = inputs.offline()
    if "density" in results:
        data = data._replace(density_weights=results["density"])
    unpooled = Source(data, norm, teacher_of(inputs, results))
    if not run.distillation.init_pool:
        return unpooled
    config = run.distillation
    student = method.make_student(config.student)

    def pool(key: jax.Array) -> Any:
        return method.init_pool(key, config, unpooled, student)

    return unpooled._replace(init_pool=jax.lax.map(pool, _keys(run, "initial students")))


def teacher_of(inputs: Inputs, results: Results) -> Teacher | None:
    """The teacher that was learned, with a seed axis; else the one that was read."""
    return results.get("offline_rl", inputs.teacher)


def cloning_stage(run: Run, against: ComparisonConfig, inputs: Inputs) -> Train:
    """Behavioral cloning on all the data, to compare with."""
    plain = tanh_gaussian(run.distillation.student.n_layers, run.distillation.student.hidden)
    return Train(
        "cloning",
        made_once(_cloning, against.cloning, plain),
        against.cloning_steps,
        lambda results: Source(*inputs.offline()),
        result=lambda state, batch: state.params,
        evaluation=policy_evaluation(run, lambda state: state.params),
    )


def _cloning(config: CloningConfig, policy: Policy) -> Method:
    """Cloning that is fed a `Source`: what judges the policy needs the normalization, too."""
    learner = cloning(config, policy)
    objective = learner.objective
    assert objective is not None
    return Method(
        lambda key, batch: learner.init(key, batch.data),
        lambda state, batch: learner.step(state, batch.data),
        lambda state, batch: objective(state, batch.data),
    )


def comparison_stage(run: Run, inputs: Inputs) -> Train:
    """Students of the distilled set and of real pairs; the result is their parameters."""

    def data(results: Results) -> dict[str, SynSet]:
        keys = _keys(run, "real pairs")
        select = jax.vmap(real_sets, (0, None, None, None))
        chosen = select(keys, inputs.offline()[0], inputs.returns(), run.distillation.n_syn)
        return {"distilled": results["distillation"].syn, **chosen}

    return Train(
        "comparison",
        made_once(contest, run.distillation, run.evaluation.students),
        run.distillation.inner_steps,
        data,
        result=lambda state, batch: state.students,
        layout=Layout(per_seed=("",)),
    )


def scores_stage(run: Run, inputs: Inputs) -> Compute:
    """Everybody plays, once: scores [seeds, K, E] by the name of the competitor."""
    play, play_plain = (
        player(run.evaluation, config) for config in (run.distillation, OBDConfig())
    )
    assert play is not None
    assert play_plain is not None
    names = [*comparison.SETS, *(["teacher"] if has_teacher(run) else [])]
    if run.comparison is not None and run.comparison.cloning_steps:
        names.append("cloning_all_data")

    def parts(results: Results, place: Place) -> list[Part]:
        students, teacher = results["comparison"], teacher_of(inputs, results)
        rivals = [Competitor(name, play, students[name], True) for name in comparison.SETS]
        if teacher is not None:
            learned = "offline_rl" in results
            one = _only(teacher.policy, 1 if learned else 0)
            # One that was read may have been trained on states that were normalized otherwise.
            own = None if learned else teacher.norm
            rivals.append(Competitor("teacher", play_plain, one, learned, own))
        if "cloning" in results:
            one = _only(results["cloning"], 1)
            rivals.append(Competitor("cloning_all_data", play_plain, one, True))
        return comparison.score_parts(rivals, inputs.offline()[1], _keys(run, "scores"), place)

    return Compute(
        "scores",
        parts,
        lambda found: {name: part["scores"] for name, part in zip(names, found, strict=True)},
        comparison.score_metrics,
    )


def _only(policy: Any, axis: int) -> Any:
    """A policy as a crowd of one."""
    return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, axis), policy)


def _keys(run: Run, name: str) -> jax.Array:
    """[seeds], for one purpose."""
    seeds = jnp.arange(run.seeds) + run.seed
    return jax.vmap(lambda seed: named(jax.random.key(seed), name))(seeds)


def report(run: Run, inputs: Inputs, results: Results, folder: Path) -> None:
    """Writes every seed's set and draws the first; and the scores of all who competed.

    Args:
        run: the run's config.
        inputs: the data.
        results: of the run's stages.
        folder: of the run.
    """
    found: Found = results["distillation"]
    write_sets(run, inputs, found, folder)
    first = jax.tree.map(lambda leaf: leaf[0], found.syn)
    figures.draw_set(first, inputs.offline()[0], folder / "figures" / "synthetic_set.png")
    if "scores" in results:
        over = f"{run.seeds} seeds" if run.seeds > 1 else f"{run.evaluation.students} students"
        comparison.draw_scores(
            comparison.over_seeds(results["scores"]),
            folder / "figures" / "scores.png",
            f"{run.distillation.n_syn} pairs, standard error over {over}",
            score_name(str(run.evaluation.environment)),
        )


def write_sets(run: Run, inputs: Inputs, found: Found, folder: Path) -> None:
    """Writes every seed's set: syn.npz and its card, or syn-seed3.npz where there are several.

    Args:
        run: the run's config.
        inputs: the data, and hashes of the files they came from.
        found: leaves [seeds, ...].
        folder: of the run.
    """
    for place in range(run.seeds):
        own = jax.tree.map(lambda leaf, i=place: leaf[i], found)
        seed = run.seed + place
        name = "syn.npz" if run.seeds == 1 else f"syn-seed{seed}.npz"
        distilled.save(
            folder / name,
            own.syn,
            inputs.offline()[1],
            run.distillation,
            seed=seed,
            outer_steps=int(own.step),
            **inputs.files,
        )
