"""`jaxmethods doctor`: versions, devices, extras and a short compile check, as lines of text."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from jaxmethods import __version__
from jaxmethods.errors import UserError, first_line
from jaxmethods.installation.packaged_configs import packaged

CORE = ("jax", "jaxlib", "flax", "optax", "chex", "orbax-checkpoint", "jumanji", "numpy")
FOR_DEVELOPERS = ("bench", "docs", "lint", "test")
"""Extras that no run needs; they are listed last."""
NVIDIA = Path("/proc/driver/nvidia/version")


class Diagnosis(NamedTuple):
    """What the command prints, and whether runs can work here."""

    lines: list[str]
    healthy: bool


def examine() -> Diagnosis:
    """Looks at this installation; compiles and runs one small program."""
    lines = [
        f"jaxmethods {__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}",
        ", ".join(f"{name} {_version(name) or 'MISSING'}" for name in CORE),
    ]
    missing = [name for name in CORE if _version(name) is None]
    if missing:
        lines.append(f"install what is missing: pip install {' '.join(missing)}")
    worked, found = _compile_check()
    lines += found
    try:
        lines.append(f"packaged configs: {len(packaged())} (jaxmethods configs)")
    except UserError as error:
        lines.append(str(error))
        missing.append("configs")
    return Diagnosis([*lines, "extras:", *_extras()], worked and not missing)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _compile_check() -> tuple[bool, list[str]]:
    """Whether a program compiles and is right, and lines on devices and time."""
    try:
        import jax
        import jax.numpy as jnp

        devices = jax.devices()
        start = time.perf_counter()
        product = jax.jit(lambda x: jnp.sum(x @ x.T))(jnp.ones((64, 64), jnp.float32))
        right = float(product) == 64.0**3
    except Exception as error:  # a broken driver raises whatever its library raises
        platforms = os.environ.get("JAX_PLATFORMS")
        hint = f"; JAX_PLATFORMS is {platforms!r}, unset it to try others" if platforms else ""
        return False, [f"compile check: FAILED ({first_line(error)}){hint}"]
    taken = f"{time.perf_counter() - start:.2f} s, compilation included"
    lines = [
        f"devices: {len(devices)} x {devices[0].device_kind} ({jax.default_backend()})",
        f"compile check: {'right' if right else 'WRONG RESULT'}, {taken}",
    ]
    if jax.default_backend() == "cpu" and NVIDIA.exists():
        lines.append(
            "an NVIDIA driver is here and jax does not use it: pip install 'jaxmethods[cuda12]'"
        )
    return right, lines


def _extras() -> Iterator[str]:
    """A line for each extra: what is there, or what is missing and how it is installed."""
    try:
        names = metadata.metadata("jaxmethods").get_all("Provides-Extra") or []
        required = [Requirement(line) for line in metadata.requires("jaxmethods") or []]
    except metadata.PackageNotFoundError:
        yield "  not known: jaxmethods runs from a folder and was not installed by pip"
        return
    width = max(map(len, names))
    for name in sorted(names, key=lambda name: (name in FOR_DEVELOPERS, name)):
        needed = [need for need in required if _asked_by(need, name)]
        missing = sorted({fault for need in needed for fault in _missing(need)})
        if missing:
            install = f"pip install 'jaxmethods[{name}]'"
            yield f"  {name:<{width}}  missing {', '.join(missing)}: {install}"
        else:
            there = ", ".join(f"{need.name} {_version(need.name)}" for need in needed)
            yield f"  {name:<{width}}  {there}"


def _asked_by(need: Requirement, extra: str) -> bool:
    """Whether a requirement is an extra's, and not one of the package itself."""
    if need.marker is None or need.marker.evaluate({"extra": ""}):
        return False
    return need.marker.evaluate({"extra": extra})


def _missing(need: Requirement) -> Iterator[str]:
    """What of a requirement, and of the extras that it names, is not installed or too old."""
    version = _version(need.name)
    if version is None:
        yield need.name
        return
    if not need.specifier.contains(version, prereleases=True):
        yield f"{need.name} {need.specifier} (found {version})"
    for extra in need.extras:
        for line in metadata.requires(need.name) or []:
            below = Requirement(line)
            if _asked_by(below, extra):
                yield from _missing(below)
