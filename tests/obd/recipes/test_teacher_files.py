"""Teachers from files: npz and CORL checkpoints; others are refused, and no code is run."""

from __future__ import annotations

import sys

import jax
import numpy as np
import pytest

from jaxmethods.errors import DataError
from jaxmethods.obd.recipes import teacher_files as teachers
from jaxmethods.obd.types import Source
from jaxmethods.offline_rl.types import Norm
from tests.obd import small

NORM = Norm(np.linspace(-1, 1, small.S, dtype=np.float32), np.full(small.S, 2.0, np.float32))


def test_a_teacher_survives_its_file(tmp_path):
    before = small.teacher(NORM)
    teachers.save_teacher(tmp_path / "teacher.npz", before)
    after = teachers.load_teacher(tmp_path / "teacher.npz")
    jax.tree.map(np.testing.assert_array_equal, after, before)


def npz_with(path, **changes):
    teachers.save_teacher(path, small.teacher(NORM))
    with np.load(path) as file:
        arrays = dict(file)
    arrays = {k: v for k, v in (arrays | changes).items() if v is not None}
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"obs_mean": None}, "obs_mean: missing"),
        ({"obs_std": np.zeros(small.S)}, "obs_std: expected finite numbers above 0"),
        ({"obs_std": np.ones(2)}, r"obs_std: expected shape \(5,\), got \(2,\)"),
        ({"actor_w1": np.ones((3, 3))}, r"actor_w1: expected shape \(8, outputs\), got \(3, 3\)"),
        ({"actor_b0": None}, r"actor_b0: expected shape \(8,\), got \(0,\)"),
        ({"q1_w0": np.full((7, 8), np.nan)}, "q1_w0: expected finite numbers"),
        ({"q1_w0": None}, "q1_w0: missing, but q1_b0 is there"),
        ({"q1_w1": None}, "q1_w1: missing, but q1_b1 is there"),
        ({"obs_mean": np.array(["a"] * small.S)}, "obs_mean: expected numbers, got <U1"),
        ({"actor_log_std_offset": np.nan}, "actor_log_std_offset: expected one finite number, got"),
        ({"actor_log_std_offset": np.ones(2)}, "actor_log_std_offset: expected one finite number"),
        ({"q2_w0": np.ones((6, 8))}, r"q2_w0: expected shape \(7, outputs\)"),
    ],
)
def test_networks_that_do_not_fit_are_refused(tmp_path, changes, reason):
    path = npz_with(tmp_path / "teacher.npz", **changes)
    with pytest.raises(DataError, match=reason):
        teachers.load_teacher(path)


def test_a_teacher_of_another_environment_is_refused():
    source = small.source()
    data = source.data._replace(states=source.data.states[:, :3])
    wrong = Source(data, source.norm, source.teacher)
    with pytest.raises(DataError, match="expected 3 state and 2 action dimensions"):
        teachers.check_teacher(wrong)


def corl_checkpoint(path, extra=None):
    """A file like those of CORL's Cal-QL, with modules pickled as classes of `__main__`."""
    torch = pytest.importorskip("torch")
    expected = small.teacher(NORM)

    def linear(layers, prefix):
        state = {}
        for place, (weights, biases) in enumerate(layers):
            state[f"{prefix}{2 * place}.weight"] = torch.tensor(np.asarray(weights).T.copy())
            state[f"{prefix}{2 * place}.bias"] = torch.tensor(np.asarray(biases))
        return state

    class Scalar(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.constant = torch.nn.Parameter(torch.tensor(0.5))

    Scalar.__module__, Scalar.__qualname__ = "__main__", "Scalar"
    main = sys.modules["__main__"]
    main.Scalar = Scalar
    try:
        actor = linear(expected.policy.layers, "base_network.")
        actor["log_std_multiplier.constant"] = torch.tensor(float(expected.policy.log_std_mult))
        actor["log_std_offset.constant"] = torch.tensor(float(expected.policy.log_std_off))
        saved = {
            "actor": actor,
            "critic1": linear(expected.q1, "network."),
            "critic2": linear(expected.q2, "network."),
            "sac_log_alpha": Scalar(),
            "total_it": 1_000_000,
        }
        torch.save(saved | (extra or {}), path)
    finally:
        del main.Scalar
    return expected


def test_a_corl_checkpoint_is_the_teacher_it_was_made_of(tmp_path):
    expected = corl_checkpoint(tmp_path / "checkpoint.pt")
    found = teachers.load_corl_calql(tmp_path / "checkpoint.pt", NORM.mean, NORM.std - 1e-3)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6), found, expected)


class Trap:
    """Fails the test when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("code of a checkpoint was run",))


def test_a_checkpoint_with_code_is_refused(tmp_path):
    corl_checkpoint(tmp_path / "checkpoint.pt", extra={"critic1_target": Trap()})
    with pytest.raises(DataError, match="cannot be read as tensors"):
        teachers.load_corl_calql(tmp_path / "checkpoint.pt", NORM.mean, NORM.std)


def test_other_files_and_statistics_are_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    expected = corl_checkpoint(path)
    del expected
    with pytest.raises(DataError, match=r"actor_w0: expected shape \(3, outputs\)"):
        teachers.load_corl_calql(path, np.zeros(3), np.ones(3))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot be read as tensors"):
        teachers.load_corl_calql(path, NORM.mean, NORM.std)
