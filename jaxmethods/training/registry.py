"""Which methods the command line can train, and where their stages come from."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from jaxmethods.config import ConfigError, RunConfig, nearest, refusal, validate
from jaxmethods.method import Stage, Work

METHODS = {
    "commformer": "jaxmethods.commformer.run",
    "merging": "jaxmethods.merging.run",
    "misconceptions": "jaxmethods.novo.run",
    "obd": "jaxmethods.obd.run",
}
"""Method name -> module with `Run` (a `RunConfig`) and `stages(run) -> list[Stage]`."""

EVALUATIONS = {"novo": "jaxmethods.novo.evaluate"}
"""Method with nothing to train -> module with `Evaluation` (a `Config`) and `prepare`."""


class Registered(NamedTuple):
    """A trainable method."""

    config: type[RunConfig]
    stages: Callable[[Any], list[Stage]]


def find(name: object, source: str) -> Registered:
    """Looks a method up; `ConfigError` names the nearest one."""
    if name is None:
        raise ConfigError(f"config {source}: method: is required{nearest('', METHODS)}")
    _check_text(name, source)
    if name not in METHODS:
        raise ConfigError(
            f"config {source}: method: unknown method {name!r:.200}{nearest(str(name), METHODS)}"
        )
    module = importlib.import_module(METHODS[str(name)])
    return Registered(module.Run, module.stages)


def _check_text(name: object, source: str) -> None:
    if name is not None and not isinstance(name, str):
        raise ConfigError(
            f"config {source}: method: expected the name of a method, got {name!r:.200}"
        )


def parse_config(values: Mapping[str, Any], source: str) -> RunConfig:
    """Validates a config; no file that it names is opened."""
    return validate(find(values.get("method"), source).config, values, source)


def find_evaluation(values: Mapping[str, Any], source: str) -> tuple[Any, Callable[..., Work]]:
    """Validates the config of a method with nothing to train, and says what does its work."""
    name = values.get("method")
    _check_text(name, source)
    if name not in EVALUATIONS:
        kind = "is trained, not evaluated from a config" if name in METHODS else "unknown method"
        hint = nearest(str(name), EVALUATIONS)
        raise ConfigError(f"config {source}: method: {kind}: {name!r}{hint}")
    module = importlib.import_module(EVALUATIONS[str(name)])
    return validate(module.Evaluation, values, source), module.prepare


def parse(values: Mapping[str, Any], source: str) -> tuple[RunConfig, list[Stage]]:
    """Validates a config and builds its stages: files that it names are read, extras imported, and
    what can be refused is refused; nothing is trained."""
    config = parse_config(values, source)
    try:
        return config, find(config.method, source).stages(config)
    except ValidationError as error:  # of a config that the method made of this one
        raise refusal(error, type(config), source) from error
    except ValueError as error:
        raise ConfigError(f"config {source}: {error}") from error
