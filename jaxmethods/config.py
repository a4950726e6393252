"""Run configurations: frozen pydantic models, read from YAML, changed on the command line.

A config is hashable, so it can be a static argument of a jitted function, and it
forbids unknown fields, so a misspelt one is an error and not a silent default.
Every problem is reported as one line that names the field, what came and what
was expected.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jaxmethods.errors import UserError


class Config(BaseModel):
    """Base of every config: frozen (hence hashable) and closed to unknown fields."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        coerce_numbers_to_str=True,
    )


class OnResume(enum.Enum):
    """What a field may do where a run is resumed: `steps: Annotated[int, OnResume.GROW]`.

    A field without a mark makes a run another run: with another value its results are others, and
    a resume is refused. The mark of a field that holds a config counts for all in it.
    """

    CHANGE = "change"
    """How a run is watched, or laid out over devices and processes: its results stay what they
    are."""
    GROW = "grow"
    """How long a stage trains: a finished run goes on. Schedules that end with the stage are
    those of the longer run from there on; without them the run is, bit for bit, the longer one."""


class LoopConfig(Config):
    """How often the training loop looks up from its work, in calls of `Method.step`."""

    log_every: Annotated[int, Field(ge=1)] = 5
    """Steps run on the device between two fetches of metrics: one chunk."""
    evaluate_every: Annotated[int, Field(ge=1)] = 20
    checkpoint_every: Annotated[int, Field(ge=1)] = 20
    writers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Metric writers besides `metrics.jsonl`; each is an extra to install."""


class MeshConfig(Config):
    """How the devices are laid out; see `training.sharding`."""

    data: Annotated[int, Field(ge=-1)] = 1
    """Devices along which environments, seeds and batches are split; -1: all that are left."""
    fsdp: Annotated[int, Field(ge=1)] = 1
    tensor: Annotated[int, Field(ge=1)] = 1


class RunConfig(Config):
    """What the config of every trained method holds."""

    method: str
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    seeds: Annotated[int, Field(ge=1)] = 1
    """Train seeds `seed` to `seed + seeds - 1` in one vmapped program."""
    training: Annotated[LoopConfig, OnResume.CHANGE] = LoopConfig()
    mesh: Annotated[MeshConfig, OnResume.CHANGE] = MeshConfig()


class ConfigError(UserError):
    """A config that cannot be used; its message is one line per problem."""


ConfigT = TypeVar("ConfigT", bound=Config)


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping. Raises `ConfigError` when there is none to read."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"config {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config {path}: is not a text file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise ConfigError(f"config {path}: not valid YAML{where}: {problem}") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"config {path}: expected a mapping of fields, got {type(content).__name__}"
        )
    return content


def on_resume(config: BaseModel) -> dict[str, OnResume]:
    """The marks of a config's fields, by their dotted path."""
    marks: dict[str, OnResume] = {}
    for name, field in type(config).model_fields.items():
        mark = next((m for m in field.metadata if isinstance(m, OnResume)), None)
        value = getattr(config, name)
        if mark is not None:
            marks[name] = mark
        elif isinstance(value, BaseModel):
            marks |= {f"{name}.{path}": below for path, below in on_resume(value).items()}
    return marks


def validate(model: type[ConfigT], values: Mapping[str, Any], source: str) -> ConfigT:
    """Builds `model` from `values`; `source` (a path, "command line") opens every error line."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise refusal(error, model, source) from error


def refusal(error: ValidationError, model: type[BaseModel], source: str) -> ConfigError:
    """What pydantic found wrong with a `model`, one line a problem."""
    lines = [_describe(model, dict(problem)) for problem in error.errors()]
    return ConfigError("\n".join(f"config {source}: {line}" for line in lines))


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Turns `--ppo.clip 0.1 --seed=3` into `{"ppo": {"clip": 0.1}, "seed": 3}`.

    Values are read as YAML, as in a config file.
    """
    values: dict[str, Any] = {}
    pending = list(arguments)
    while pending:
        argument = pending.pop(0)
        if not argument.startswith("--") or argument == "--":
            raise ConfigError(f"command line: expected --field value, got {argument!r}")
        field, equals, value = argument[2:].partition("=")
        if not equals:
            if not pending:
                raise ConfigError(f"command line: --{field} needs a value")
            value = pending.pop(0)
        *path, name = field.replace("-", "_").split(".")
        owner = values
        for part in path:
            owner = owner.setdefault(part, {})
        try:
            owner[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"command line: --{field}: cannot read {value!r}") from error
    return values


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `base` with `changes` laid over it, nested mappings merged."""
    merged = dict(base)
    for name, value in changes.items():
        below = merged.get(name)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = merge(below, value)
        merged[name] = value
    return merged


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Returns " (did you mean 'x'?)" for the closest candidate, or the list of all of them."""
    candidates = sorted(candidates)
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (known: {', '.join(candidates)})" if candidates else ""


def _describe(model: type[BaseModel], problem: Mapping[str, Any]) -> str:
    location = [str(part) for part in problem["loc"]]
    field = ".".join(location) or "config"
    if problem["type"] == "extra_forbidden":
        owner = _model_at(model, location[:-1])
        hint = nearest(location[-1], owner.model_fields) if owner else ""
        return f"{field}: unknown field{hint}"
    if problem["type"] == "missing":
        return f"{field}: is required"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if problem["type"] == "value_error":
        return f"{field}: {message}"
    return f"{field}: {message}, got {problem['input']!r}"


def _model_at(model: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    """Follows field names from `model` to the nested model they lead to."""
    for name in path:
        field = model.model_fields.get(name)
        if field is None or not isinstance(field.annotation, type):
            return None
        if not issubclass(field.annotation, BaseModel):
            return None
        model = field.annotation
    return model
