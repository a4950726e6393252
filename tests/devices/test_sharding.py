"""Where leaves live, and that it doesn't matter for the results."""

from __future__ import annotations

import pytest

from jaxmethods.config import ConfigError, MeshConfig
from jaxmethods.devices.sharding import make_mesh


def test_more_devices_than_there_are_is_an_error_that_says_so():
    with pytest.raises(ConfigError, match="1 x 64 x 64 needs more than the"):
        make_mesh(MeshConfig(fsdp=64, tensor=64))
