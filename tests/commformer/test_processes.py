"""One training run of a team in two processes."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from jaxmethods.records.run_folder import RunFolder
from tests.commformer.small import SMALL
from tests.devices.test_processes import ends, start_two
from tests.training import distributed_toy
from tests.training.test_loop import rows_without_times


@pytest.mark.slow
def test_two_processes_stopped_and_resumed_give_the_team_of_one(tmp_path):
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(SMALL))
    two, one = tmp_path / "two", tmp_path / "one"
    stopped = ends(start_two(config, two, second={distributed_toy.STOP_AT: "2"}))
    assert [code for code, _, _ in stopped] == [143, 143], stopped
    resumed = ends(start_two(config, two, "--resume"))
    assert [code for code, _, _ in resumed] == [0, 0], resumed
    assert distributed_toy.main(["run", str(config), "--out", str(one), "--quiet"]) == 0
    for left, right in zip(*(rows_without_times(RunFolder(p)) for p in (two, one)), strict=True):
        assert left.keys() == right.keys()
        for name in left.keys() - {"stage"}:
            np.testing.assert_allclose(left[name], right[name], rtol=1e-3, atol=1e-4, err_msg=name)
