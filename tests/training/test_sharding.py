"""Where leaves live, and that it doesn't matter for the results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxmethods.config import ConfigError, MeshConfig
from jaxmethods.training.sharding import make_mesh

ROOT = Path(__file__).parents[2]


def test_more_devices_than_there_are_is_an_error_that_says_so():
    with pytest.raises(ConfigError, match="1 x 64 x 64 needs more than the"):
        make_mesh(MeshConfig(fsdp=64, tensor=64))


def test_one_result_on_any_mesh_of_eight_devices():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "tests/training/eight_devices.py"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert tests.returncode == 0, tests.stdout[-5000:]
