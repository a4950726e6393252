"""From Python: runs, what they leave, what was trained, and pages of help that can be read."""

from __future__ import annotations

import importlib
import os
import pydoc
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmethods
from jaxmethods.records.run_folder import RunFolderError

ROOT = Path(__file__).parents[1]
TEAM = {
    "method": "commformer",
    "environment": {"name": "predator_prey", "n_predators": 2, "dim": 3, "vision": 1},
    "environment_steps": 80,
    "seed": 4,
    "seeds": 2,
    "network": {"embed": 8},
    "ppo": {"environments": 8, "rollout": 5},
    "evaluation": {"episodes": 16, "max_steps": 10},
}


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    folder = tmp_path_factory.mktemp("team") / "run"
    jaxmethods.run(TEAM, folder)
    return jaxmethods.load_run(folder)


@pytest.mark.slow
def test_a_team_is_called_with_an_observation(team):
    policies = [team.ready(), team.ready(4), team.ready(5)]
    env = team.config.environment.make()
    _, timestep = env.reset(jax.random.key(0))
    actions = [np.asarray(policy(timestep.observation)) for policy in policies]
    assert actions[0].shape == (2,)
    np.testing.assert_array_equal(actions[0], actions[1])
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), timestep.observation)
    np.testing.assert_array_equal(policies[2](two), np.stack([actions[2], actions[2]]))
    assert "actions [N]" in (policies[0].__doc__ or "")


@pytest.mark.slow
def test_ready_is_for_seeds_of_the_run_and_finished_ones(team):
    with pytest.raises(ValueError, match="seed: expected 4 to 5, got 6"):
        team.ready(6)
    unfinished = jaxmethods.LoadedRun(team.folder, team.config, team.recipe, {}, {})
    with pytest.raises(RunFolderError, match="stage train is not at its end yet"):
        unfinished.ready()
    nothing = team.recipe._replace(ready=None)
    other = jaxmethods.LoadedRun(team.folder, team.config, nothing, team.results, {})
    with pytest.raises(ValueError, match=r"there is nothing to call; see run\.results, with train"):
        other.ready()


@pytest.mark.slow
def test_a_distilled_set_is_called_as_the_student_that_it_trains(tmp_path):
    config = {
        "method": "obd",
        "data": {"generate": "pendulum", "episodes": 1},
        "distillation": {
            "objective": "dbc",
            "n_syn": 5,
            "batch": 16,
            "inner_steps": 3,
            "student": {"hidden": 8, "n_layers": 3},
        },
        "outer_steps": 2,
        "evaluation": {"random_selection": False},
    }
    policy = jaxmethods.run(config, tmp_path / "run").ready()
    observations = jnp.ones((7, 3))
    actions = policy(observations)
    assert actions.shape == (7, 1)
    assert np.all(np.abs(actions) <= 1)
    np.testing.assert_array_equal(
        jaxmethods.load_run(tmp_path / "run").ready()(observations), actions
    )


@pytest.mark.slow
def test_a_learner_of_misconceptions_is_called_with_tokens(tmp_path):
    learner = {"layers": 1, "width": 8, "mlp_width": 8, "heads": 2, "kv_heads": 1, "batch": 2}
    world = {"entities": 8, "relations": 2, "values": 4}
    config = {"method": "misconceptions", "world": world, "learner": learner | {"steps": 2}}
    run = jaxmethods.run(config, tmp_path / "run", selection={"samples": 4})
    logits = run.ready()(jnp.zeros((3, 5), int))
    assert logits.shape[:2] == (3, 5)
    assert np.all(np.isfinite(logits))


def test_packages_are_there_after_the_import_of_one():
    code = "import jaxmethods; print(jaxmethods.commformer.clean, jaxmethods.run, dir(jaxmethods))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    assert "commformer" in found.stdout


PACKAGES = [*jaxmethods.PACKAGES, "models.clip", "models.decoder", "models.hub"]


@pytest.mark.parametrize("name", PACKAGES)
def test_help_of_a_package_is_a_page(name):
    package = importlib.import_module(f"jaxmethods.{name}")
    page = pydoc.render_doc(package, renderer=pydoc.plaintext).splitlines()
    assert len(page) < 600  # what functions say, and no fields of classes
    for function in getattr(package, "__all__", ()):
        assert any(re.search(rf"\b{function}\b", line) for line in page)


@pytest.mark.slow
def test_the_example_runs_outside_of_the_checkout(tmp_path):
    example = tmp_path / "use_a_run.py"
    example.write_text((ROOT / "docs" / "examples" / "use_a_run.py").read_text())
    found = subprocess.run(
        [sys.executable, str(example), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert found.returncode == 0, found.stderr
    assert re.search(r"success rate \[[\d.]+\]\nafter ten moves (True|False)", found.stdout)


@pytest.mark.slow
def test_compiled_functions_keep_their_types(tmp_path):
    pyright = shutil.which("pyright", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if pyright is None:
        pytest.skip("pyright is not installed")
    (tmp_path / "types.py").write_text(
        "from jaxmethods import merging\nreveal_type(merging.ties)\nreveal_type(merging.pcb)\n"
    )
    found = subprocess.run(
        [pyright, "--pythonpath", sys.executable, str(tmp_path / "types.py")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert found.stdout.count("(base: ") == 2, found.stdout
