"""Where and with what a run or a benchmark was made."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
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
    commit = _git_commit()
    devices = [device.device_kind for device in jax.devices()]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "devices": f"{len(devices)} x {devices[0]} ({jax.default_backend()})",
        **packages,
        **({"git_commit": commit} if commit else {}),
        "command": _command(),
    }


def _processor() -> str:
    """The processor's name, as Linux has it; otherwise as Python guesses it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _command() -> str:
    """What was called, without the folder where it is installed."""
    program, *arguments = sys.argv
    name = Path(program).name
    if name == "__main__.py":
        return shlex.join(["python", "-m", Path(program).parent.name, *arguments])
    return shlex.join([name, *arguments])


def _git_commit() -> str | None:
    """The checkout's commit, with "+" where files were changed; None outside of a checkout."""
    here = Path(__file__).parent

    def ask(*words: str) -> str:
        asked = subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True, timeout=10
        )
        return asked.stdout.strip()

    try:
        if Path(ask("rev-parse", "--show-toplevel")) != here.parents[1]:
            return None  # installed inside of somebody else's repository
        return ask("rev-parse", "HEAD") + ("+" if ask("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
