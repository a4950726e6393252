"""Which methods the command line can train, and where their stages come from."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxmethods.config import ConfigError, RunConfig, nearest, validate
from jaxmethods.method import Stage

METHODS = {
    "commformer": "jaxmethods.commformer.run",
    "misconceptions": "jaxmethods.novo.run",
}
"""Method name -> module with `Run` (a `RunConfig`) and `stages(run) -> list[Stage]`."""


class Registered(NamedTuple):
    """A trainable method."""

    config: type[RunConfig]
    stages: Callable[[Any], list[Stage]]


def find(name: object, source: str) -> Registered:
    """Looks a method up; `ConfigError` names the nearest one."""
    if name is None:
        raise ConfigError(f"config {source}: method: is required{nearest('', METHODS)}")
    if name not in METHODS:
        raise ConfigError(
            f"config {source}: method: unknown method {name!r}{nearest(str(name), METHODS)}"
        )
    module = importlib.import_module(METHODS[str(name)])
    return Registered(module.Run, module.stages)


def parse(values: Mapping[str, Any], source: str) -> tuple[RunConfig, list[Stage]]:
    """Validates a config and builds its stages; nothing is compiled."""
    registered = find(values.get("method"), source)
    config = validate(registered.config, values, source)
    try:
        return config, registered.stages(config)
    except ValueError as error:
        raise ConfigError(f"config {source}: {error}") from error
