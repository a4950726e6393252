"""Where and with what a run or a benchmark was made."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

PACKAGES = ("jaxmethods", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "jumanji", "numpy")


def describe_environment() -> dict[str, Any]:
    """Versions, devices and date of this process, for the record."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    devices = [device.device_kind for device in jax.devices()]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "devices": f"{len(devices)} x {devices[0]} ({jax.default_backend()})",
        **packages,
    }
