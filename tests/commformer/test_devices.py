"""One training run of a team: on eight devices, in two processes, or on one device."""

from __future__ import annotations

import numpy as np
import yaml

from jaxmethods.training.run_folder import RunFolder
from tests.on_eight_devices import assert_passes_on_eight_devices
from tests.training import distributed_toy
from tests.training.test_distributed import ends, start_two
from tests.training.test_loop import rows_without_times

SMALL = {
    "method": "commformer",
    "environment": {"name": "predator_prey", "n_predators": 3, "dim": 3},
    "environment_steps": 4 * 8 * 8,
    "network": {"embed": 8},
    "graph": {"warmup_updates": 1},
    "ppo": {"environments": 8, "rollout": 8, "minibatches": 1},
    "evaluation": {"episodes": 16},
    "training": {"log_every": 2, "evaluate_every": 4, "checkpoint_every": 2},
}
"""Four updates, one with a raw graph and three with a sampled one, each with an upper epoch."""


def test_eight_devices_give_the_team_of_one():
    assert_passes_on_eight_devices("tests/commformer/eight_devices.py")


def test_two_processes_stopped_and_resumed_give_the_team_of_one(tmp_path):
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(SMALL))
    two, one = tmp_path / "two", tmp_path / "one"
    stopped = ends(start_two(config, two, second={distributed_toy.STOP_AT: "2"}))
    assert [code for code, _, _ in stopped] == [143, 143], stopped
    resumed = ends(start_two(config, two, "--resume"))
    assert [code for code, _, _ in resumed] == [0, 0], resumed
    assert distributed_toy.main(["train", str(config), "--out", str(one), "--quiet"]) == 0
    for left, right in zip(*(rows_without_times(RunFolder(p)) for p in (two, one)), strict=True):
        assert left.keys() == right.keys()
        for name in left.keys() - {"stage"}:
            np.testing.assert_allclose(left[name], right[name], rtol=1e-3, atol=1e-4, err_msg=name)
