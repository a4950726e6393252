"""A sequence of three generated tasks of different sizes, tiny; its planner opens again."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

import jaxmethods
from jaxmethods import cli, registry
from jaxmethods.data.offline import DataError
from jaxmethods.offline_rl.scores import REFERENCE
from jaxmethods.training import loop
from jaxmethods.vqcd import PolicyConfig, act, baselines, initial_bank, task_weights
from jaxmethods.vqcd.config import Run
from jaxmethods.vqcd.recipes import continual, planner_files
from jaxmethods.vqcd.recipes.learners import Learner
from jaxmethods.vqcd.recipes.scoring import _weights
from jaxmethods.vqcd.recipes.summary import judged
from jaxmethods.vqcd.recipes.tasks import Tasks
from tests.diagnosis import check_diagnosable
from tests.objectives import check_objectives
from tests.permissions import check_others_can_read
from tests.same_numbers import check_same_numbers
from tests.vqcd.recipes.tiny import NAMES, parts, values
from tests.vqcd.toy import ACTIONS, PERCEPTRON, STATES, space


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(run, how many programs were compiled and found again)."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    loop._program.cache_clear()
    run = jaxmethods.run(values(), folder)
    return run, loop._program.cache_info()


@pytest.mark.slow
def test_stages_run_task_by_task(finished):
    run, _ = finished
    expected = []
    for name in NAMES:
        expected += [f"align_{name}", f"codes_{name}"]
        for learner in ("vqcd", "finetune"):
            expected += [f"{learner}_{name}", f"score_{learner}_{name}"]
    assert [stage.name for stage in run.recipe.stages] == [*expected, "summary"]


@pytest.mark.slow
def test_a_learner_can_be_diagnosed(finished):
    check_diagnosable(finished[0])


@pytest.mark.slow
def test_a_monitor_shows_what_modules_and_learners_go_down_on(finished):
    sides = {f"align_{NAMES[0]}": lambda m: m["states_loss"] + m["actions_loss"]}
    # Modules' gradients go straight through the rounding to codes.
    check_objectives(
        finished[0],
        sides,
        not_a_derivative=tuple(sides),
        stages=(*sides, f"vqcd_{NAMES[0]}"),
    )


@pytest.mark.slow
def test_tasks_of_a_learner_share_one_compiled_program(finished):
    """Modules have a method, and each learner; the other two tasks find it."""
    _, programs = finished
    assert programs.misses == 1 + 2
    assert programs.hits == 2 * (1 + 2)


@pytest.mark.slow
def test_vqcd_forgets_nothing_on_one_tree_and_finetuning_does(finished):
    run, _ = finished
    tasks, (own, finetune) = parts(run)
    for row in range(2):
        then, now = (judged(tasks, own, run.results, row, at) for at in (row, 2))
        np.testing.assert_array_equal(then.probe_plans, now.probe_plans)
        np.testing.assert_array_equal(then.digest, now.digest)
        moved, last = (judged(tasks, finetune, run.results, row, at) for at in (row, 2))
        assert np.any(moved.probe_plans != last.probe_plans)
    summary = {name: values.tolist() for name, values in run.metrics["summary"].items()}
    assert summary["vqcd_forgetting"] == [0.0, 0.0]
    assert summary["vqcd_plans_kept"] == [1.0, 1.0]
    assert summary["finetune_plans_kept"] == [0.0, 0.0]


@pytest.mark.slow
def test_plans_after_all_tasks_come_from_the_last_bank_alone(finished):
    """Zeroing what a task owns in the last bank changes this task's plans and no other's."""
    run, _ = finished
    _, (own, _) = parts(run)
    bank = jax.tree.map(lambda leaf: leaf[0], own.bank(run.results, 2))
    from jaxmethods.vqcd import task_weights

    lost = jax.tree.map(
        lambda owner, leaf: leaf if owner is None else np.where(owner == 1, 0.0, leaf),
        bank.owner,
        bank.ema,
        is_leaf=lambda leaf: leaf is None,
    )
    for task in range(3):
        before, after = (
            jax.tree.leaves(task_weights(own.planner, one, task).network)
            for one in (bank, bank._replace(ema=lost))
        )
        same = all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
        assert same == (task != 1)


@pytest.fixture(scope="module")
def reversed_run(tmp_path_factory):
    """The tasks from the last to the first, played again even where weights are unchanged; and what
    was finished when each task's data were first opened."""
    folder, opened, read = tmp_path_factory.mktemp("back") / "run", {}, Tasks._flat

    def watch(self, task, number):
        stages = sorted(path.name for path in (folder / "parts").glob("score_*"))
        opened.setdefault(task.name, stages)
        return read(self, task, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tasks, "_flat", watch)
        changes = {
            "order": list(reversed(NAMES)),
            "learners": ["vqcd"],
            "evaluation": {"episodes": 2, "play_unchanged": True},
        }
        return jaxmethods.run(values(**changes), folder), opened


@pytest.mark.slow
def test_the_next_task_is_not_opened_before_the_last_one_ends(reversed_run):
    assert reversed_run[1] == {
        "system": [],
        "point": ["score_vqcd_system"],
        "pendulum": ["score_vqcd_point", "score_vqcd_system"],
    }


@pytest.mark.slow
def test_the_order_of_tasks_changes_no_task(finished, reversed_run):
    _, (own, _) = parts(finished[0])
    _, (other,) = parts(reversed_run[0])
    banks = own.bank(finished[0].results, 2), other.bank(reversed_run[0].results, 2)
    for one, two in zip(*(jax.tree.leaves((bank.params, bank.ema)) for bank in banks), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.slow
def test_unchanged_weights_play_again_alike(finished, reversed_run):
    """What is taken over for unchanged weights is what playing again finds."""
    tasks, (own, _) = parts(finished[0])
    back, (other,) = parts(reversed_run[0])
    for row in range(3):
        once = judged(tasks, own, finished[0].results, row, 2)
        twice = judged(back, other, reversed_run[0].results, 2 - row, 2)
        np.testing.assert_array_equal(once.played.returns, twice.played.returns)


KILLED = """
import os, signal, sys
import jaxmethods
from jaxmethods.training.checkpoints import Checkpoints
from tests import programs
from tests.vqcd.recipes.tiny import values

programs.compile_fast()
save = Checkpoints.save

def save_and_die(self, step, *rest):
    save(self, step, *rest)
    if step == 2 and "vqcd_system" in str(self.path(step)):
        os.kill(os.getpid(), signal.SIGKILL)

Checkpoints.save = save_and_die
training = {"log_every": 2, "evaluate_every": 2, "checkpoint_every": 2}
jaxmethods.run(values(learners=["vqcd"], training=training), sys.argv[1])
"""


@pytest.mark.slow
def test_a_run_killed_in_the_third_task_ends_in_the_same_bits(finished, tmp_path):
    run, _ = finished
    folder = tmp_path / "killed"
    root = Path(__file__).parents[3]
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder)], cwd=root, capture_output=True, text=True
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert (folder / "results" / "vqcd_point").exists()
    assert not (folder / "results" / "vqcd_system").exists()
    resumed = jaxmethods.run(jaxmethods.load_run(folder).config, folder, resume=True)
    _, (own, _) = parts(run)
    banks = own.bank(run.results, 2), own.bank(resumed.results, 2)
    for one, two in zip(*(jax.tree.leaves(bank.params) for bank in banks), strict=True):
        np.testing.assert_array_equal(one, two)
    for name, numbers in resumed.metrics["summary"].items():
        np.testing.assert_array_equal(numbers, run.metrics["summary"][name])


@pytest.mark.slow
def test_the_run_leaves_tables_figures_and_a_planner(finished):
    run, _ = finished
    folder = run.folder
    for name in ("scores", "final", "spaces", "owners", "plans", "episodes"):
        assert (folder / "figures" / f"{name}.png").is_file(), name
    table = (folder / "table.md").read_text()
    assert "bit for bit" in table
    content = json.loads((folder / "result.json").read_text())
    assert content["headline"] == [
        "summary/vqcd_final",
        "summary/finetune_final",
        "summary/vqcd_forgetting",
        "summary/finetune_forgetting",
    ]
    for seed in (3, 4):
        left = sorted(path.name for path in (folder / f"planner-seed{seed}").iterdir())
        assert left == ["card.json", "planner.npz"]
        check_others_can_read(folder / f"planner-seed{seed}")


@pytest.mark.slow
def test_console_report_and_result_carry_the_same_numbers(finished):
    check_same_numbers(finished[0].folder)


@pytest.fixture(scope="module")
def planner(finished):
    return planner_files.load_planner(finished[0].folder / "planner-seed3")


@pytest.mark.slow
def test_a_planners_weights_are_those_of_the_run(finished, planner):
    run, _ = finished
    learner = Learner(run.config, run.config.learners[0])
    for number, task in enumerate(("pendulum", "point")):
        own = _weights(learner.planner, learner.bank(run.results, 2), np.int32(number))
        for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(planner.weights(task)), strict=True):
            np.testing.assert_array_equal(a[0], b)


def test_tasks_are_known_by_the_number_that_owns_their_weights():
    """It is the task's own, whatever is learned first, but with PackNet its turn."""
    order = ["system", "pendulum", "point"]
    run = Run.model_validate(values(order=order, learners=["vqcd", "packnet"]))
    plain, packed = (Learner(run, one) for one in run.learners)
    assert plain.owners() == list(NAMES)
    assert packed.owners() == order
    bank = jax.jit(initial_bank, static_argnums=1)(jax.random.key(0), PERCEPTRON)
    tasks = [{"name": name, "owner": packed.task(n)} for n, name in enumerate(NAMES)]
    planner = planner_files.Planner(PERCEPTRON, None, bank, {}, {"tasks": tasks})
    for owner, name in enumerate(order):
        expected = task_weights(PERCEPTRON, bank, owner)
        jax.tree.map(np.testing.assert_array_equal, planner.weights(name), expected)


@pytest.mark.slow
def test_a_planner_acts_in_every_task(planner):
    for task, (states, actions) in {"pendulum": (3, 1), "point": (6, 2)}.items():
        observations = np.ones((2, states), np.float32)
        acted, memory = planner.act(task, observations, planner.begin(2), jax.random.key(0))
        assert acted.shape == (2, actions)
        assert np.all(np.abs(acted) < 1)
        assert int(memory.age) == 0


@pytest.mark.slow
def test_unknown_tasks_and_other_sizes_are_refused(planner):
    with pytest.raises(ValueError, match="unknown task 'pont' \\(did you mean 'point'"):
        planner.weights("pont")
    with pytest.raises(ValueError, match="expected \\[E, 6\\], got \\[2, 3\\]"):
        planner.act("point", np.ones((2, 3)), planner.begin(2), jax.random.key(0))


def test_a_planner_that_clones_the_behavior_opens_again(tmp_path):
    config = baselines.rehearsal(PERCEPTRON)
    policy = PolicyConfig(planner=config, states=STATES, actions=ACTIONS)
    bank = jax.jit(initial_bank, static_argnums=1)(jax.random.key(0), config)
    tree = {"weights": bank.ema, "owner": bank.owner, "spaces": {"first": space()}}
    card = {
        "tasks": [{"name": "first", "target": 0.8}],
        "planner": config.model_dump(mode="json"),
        "policy": policy.model_dump(mode="json"),
    }
    planner_files.write_planner(tmp_path / "planner", tree, card)
    opened = planner_files.load_planner(tmp_path / "planner")
    observations, key = np.ones((2, 3), np.float32), jax.random.key(1)
    acted, memory = opened.act("first", observations, opened.begin(2), key)
    expected = act(policy, task_weights(config, bank, 0), space(), 0.8, observations, memory, key)
    np.testing.assert_allclose(acted, expected[0], rtol=1e-6)


def test_a_planner_that_is_not_a_number_is_not_written(tmp_path):
    tree = {"weights": {"last": np.array([1.0, np.nan], np.float32)}}
    with pytest.raises(DataError, match="weights/last: expected numbers, got NaN"):
        planner_files.write_planner(tmp_path / "planner", tree, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_damaged_planner_is_refused(finished, tmp_path):
    folder = tmp_path / "planner"
    shutil.copytree(finished[0].folder / "planner-seed3", folder)
    content = bytearray((folder / "planner.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "planner.npz").write_bytes(content)
    with pytest.raises(DataError, match="is not that of the card"):
        planner_files.load_planner(folder)
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"version": 99}))
    with pytest.raises(DataError, match="version 99"):
        planner_files.load_planner(folder)
    (folder / "card.json").unlink()
    with pytest.raises(DataError, match=r"its card\.json is missing"):
        planner_files.load_planner(folder)


@pytest.mark.slow
def test_a_resumed_run_with_other_tasks_is_refused(finished, capsys, tmp_path):
    run, _ = finished
    config = tmp_path / "fewer.yaml"
    config.write_text(yaml.safe_dump(values(tasks=values()["tasks"][:2])))
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*.npz")}
    command = ["run", str(config), "--out", str(run.folder), "--resume", "--quiet"]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert "tasks" in error
    assert before == {path: path.stat().st_mtime_ns for path in run.folder.rglob("*.npz")}


def flat(path: Path, rows=40, change=lambda arrays: None, seed=0):
    """An npz file of episodes of ten rows, pendulum's sizes."""
    draw = np.random.default_rng(seed)
    arrays = {
        "observations": draw.normal(size=(rows, 3)).astype(np.float32),
        "actions": draw.uniform(-1, 1, (rows, 1)).astype(np.float32),
        "rewards": draw.normal(size=rows).astype(np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.arange(rows) % 10 == 9,
    }
    change(arrays)
    np.savez(path, **arrays)
    return path


def one_episode(arrays):
    arrays["timeouts"][:-1] = 0


def nan_row(arrays):
    arrays["observations"][7, 1] = np.nan


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"order": ["pendulum", "pont", "system"]}, "unknown task 'pont' (did you mean 'point'?)"),
        ({"order": ["pendulum"]}, "expected each of pendulum, point, system once"),
        ({"planner": {"network": {"horizon": 6, "multipliers": [1, 2, 4]}}}, "multiple of 4"),
        ({"planner": {"shares": [0.5, 0.5, 0.5]}}, "sum of at most 1, got 1.5"),
        ({"planner": {"shares": [0.5, 0.5]}}, "one for each of the 3 tasks, got 2"),
        ({"planner": {"tasks": 2}}, "planner.tasks: unknown field"),
        ({"planner": {"network": {"channels": 2}}}, "planner.network.channels: unknown field"),
        ({"learners": [{"kind": "vqcd", "action_channels": 2}]}, "action_channels: unknown field"),
        ({"planner": {"batch": 10000}}, "expected at least a batch of 10000 windows"),
        ({"learners": []}, "learners: expected at least one"),
        ({"learners": ["vqcd", "vqcd"]}, "different names, got 'vqcd' twice"),
        ({"learners": [{"kind": "vqcd", "lrr": 1}]}, "lrr: unknown field"),
        (
            {"learners": [{"kind": "generative_replay", "behavior": "diffused"}]},
            "behavior: expected 'inverse', whose actions follow from imagined states",
        ),
        (
            {"tasks": [values()["tasks"][0] | {"data_seed": 2**32}]},
            "data_seed: expected an integer from 0 to 2147483647, got 4294967296",
        ),
        ({"evaluation": {"replan_every": 8}}, "replan_every: expected below the horizon"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_what_cannot_be_run_is_refused_in_one_line(changes, expected, tmp_path, capsys):
    config = tmp_path / "bad.yaml"
    config.write_text(yaml.safe_dump(values(**changes)))
    assert cli.main(["run", str(config), "--out", str(tmp_path / "run"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert expected in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "environment", "expected"),
    [
        (lambda arrays: arrays.pop("timeouts"), "pendulum", "timeouts: missing"),
        (lambda arrays: arrays["timeouts"].fill(0), "pendulum", "expected rows at which episodes"),
        (one_episode, "pendulum", "expected episodes beside those that are held out, got 1 in all"),
        (nan_row, "pendulum", "observations: expected finite numbers, got nan in row 7"),
        (lambda arrays: None, "point_mass", "point_mass has 6 observations and 2 actions, got"),
        (lambda arrays: None, "pendulm", "unknown environment 'pendulm' (did you mean 'pendulum'?"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(
    change, environment, expected, tmp_path, capsys
):
    path = flat(tmp_path / "task.npz", change=change)
    task = {"name": "only", "path": str(path), "environment": environment}
    config = tmp_path / "bad.yaml"
    config.write_text(yaml.safe_dump(values(tasks=[task])))
    assert cli.main(["run", str(config), "--out", str(tmp_path / "run"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert expected in error
    assert not (tmp_path / "run").exists()


def test_the_width_of_padding_is_that_of_the_widest_task():
    """Also of a run that goes on from the config it has written."""
    alignment = {"states": {"kind": "pad"}, "actions": {"kind": "pad"}}
    run, recipe = registry.parse(values(alignment=alignment), "tiny.yaml")
    assert [stage.name for stage in recipe.stages][:2] == ["codes_pendulum", "vqcd_pendulum"]
    written, _ = registry.parse(run.model_dump(mode="json"), "config.yaml")
    assert written == run
    for config in (run, written):
        spaces = continual._with_sizes(config).alignment
        assert (spaces.states.channels, spaces.actions.channels) == (6, 2)


def test_an_environment_with_other_arguments_has_a_scale_of_its_own():
    """An episode of 20 steps has no return like the known ones, which are of 100."""
    point = {"name": "whole", "generate": "expert", "environment": {"name": "point_mass"}}
    short = point | {"name": "short", "environment": {"name": "point_mass", "time_limit": 20}}
    same = point | {"name": "same", "environment": {"name": "point_mass", "time_limit": 100}}
    tasks = Tasks(Run.model_validate(values(tasks=[point, short, same])))
    assert tasks.reference(0) == tasks.reference(2) == REFERENCE["point_mass"]
    low, high = tasks.reference(1)
    assert 0 < low < high < 20
    np.testing.assert_allclose(tasks.score(1, np.array([low, high])), [0, 100])


def test_episodes_that_are_cut_short_have_a_scale_of_their_own():
    pytest.importorskip("mujoco")
    point = {"name": "point", "generate": "expert", "environment": {"name": "point_mass"}}
    hopper = {"name": "hopper", "path": "/dev/null", "environment": {"name": "hopper"}}
    tasks = Tasks(Run.model_validate(values(tasks=[point, hopper], evaluation={"steps": 20})))
    low, high = tasks.reference(0)
    assert 0 < low < high < 20
    assert tasks.reference(1) is None
    whole = Tasks(Run.model_validate(values(tasks=[point, hopper], evaluation={"steps": 1000})))
    assert [whole.reference(place) for place in (0, 1)] == [
        REFERENCE["point_mass"],
        REFERENCE["hopper"],
    ]
