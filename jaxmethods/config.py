"""Run configurations: frozen pydantic models, read from YAML, changed on the command line.

A config is hashable, so it can be a static argument of a jitted function, and it
forbids unknown fields, so a misspelled one is an error and not a silent default.
Every problem is reported as one line that names the field, what came and what
was expected.

YAML is UTF-8, whatever the locale. Integers and text are read as in YAML 1.2: `010` is ten (1.1
took it for eight), `12:30` and `2026-01-02` are text. A field that is there twice is an error.
"""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from yaml.composer import ComposerError
from yaml.events import AliasEvent

from jaxmethods.errors import UserError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]
# Other numbers are pydantic's: PositiveInt, NonNegativeFloat, ...


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

    log_every: PositiveInt = 5
    """Steps run on the device between two fetches of metrics: one chunk."""
    evaluate_every: PositiveInt = 20
    checkpoint_every: PositiveInt = 20
    writers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Metric writers besides `metrics.jsonl`; each is an extra to install."""


class MeshConfig(Config):
    """How the devices are laid out; see `devices.sharding`."""

    data: Annotated[int, Field(ge=-1)] = 1
    """Devices along which environments, seeds and batches are split; -1: all that are left."""
    fsdp: PositiveInt = 1
    tensor: PositiveInt = 1


class RunConfig(Config):
    """What the config of everything that is run holds."""

    method: str
    """What is run; `jaxmethods methods` lists them."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Everything that is random follows from it."""


class TrainingRunConfig(RunConfig):
    """What the config of everything that trains holds besides."""

    seeds: PositiveInt = 1
    """Train seeds `seed` to `seed + seeds - 1` in one vmapped program."""
    training: Annotated[LoopConfig, OnResume.CHANGE] = LoopConfig()
    mesh: Annotated[MeshConfig, OnResume.CHANGE] = MeshConfig()


def seeds_of(config: RunConfig) -> int:
    """How many seeds a run has; 1 where nothing trains."""
    return getattr(config, "seeds", 1)


def loop_of(config: RunConfig) -> LoopConfig:
    """How a run is watched; the default where nothing trains."""
    return getattr(config, "training", LoopConfig())


def mesh_of(config: RunConfig) -> MeshConfig:
    """How a run's devices are laid out; one device where the config doesn't say."""
    return getattr(config, "mesh", MeshConfig())


class ConfigError(UserError):
    """A config that cannot be used; its message is one line per problem."""


ConfigT = TypeVar("ConfigT", bound=Config)


MOST_BYTES, MOST_VALUES, MOST_LINES, MOST_CHARACTERS = 1_000_000, 1_000_000, 20, 200
"""Of a config file, of what it stands for (with aliases), of an error, and of a value in it."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, without its surprises."""

    def __init__(self, stream: str):
        super().__init__(stream)
        self.values = 0
        self.values_of: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Counts values as often as aliases repeat them: a few lines can stand for billions."""
        mark, alias, before = self.peek_event().start_mark, self.check_event(AliasEvent), 0
        if not alias:
            self.values += 1
            before = self.values - 1
        node = super().compose_node(parent, index)
        if not alias:
            self.values_of[id(node)] = self.values - before
        elif id(node) in self.values_of:
            self.values += self.values_of[id(node)]
        else:
            raise ComposerError(None, None, "an alias stands for what it is part of", mark)
        if self.values > MOST_VALUES:
            raise ComposerError(None, None, f"stands for more than {MOST_VALUES:,} values", mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        known = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in known:
                problem = f"field {_shortened(key.value)} is there twice"
                raise ComposerError(None, None, problem, key.start_mark)
            known.add((key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key))
        return node


_RESOLVED_AFRESH = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _RESOLVED_AFRESH]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def _load(text: str) -> Any:
    """The content of YAML text. Raises `yaml.YAMLError`."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise
    except RecursionError as error:
        raise yaml.MarkedYAMLError(problem="is nested too deeply") from error
    except Exception as error:  # explicit tags (!!int, !!timestamp) raise of everything
        raise yaml.MarkedYAMLError(problem=f"a value that its tag doesn't fit ({error})") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping. Raises `ConfigError` when there is none to read."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ConfigError(f"config {path}: expected at most {MOST_BYTES:,} bytes, got {size:,}")
        content = _load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config {path}: is not a text file in UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", "cannot be parsed")
        raise ConfigError(
            f"config {path}: not valid YAML{where}: {str(problem)[:MOST_CHARACTERS]}"
        ) from error
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
    """What pydantic found wrong with a `model`, one line a problem, `MOST_LINES` at most."""
    problems = error.errors(include_url=False)
    lines = [_describe(model, dict(problem)) for problem in problems[:MOST_LINES]]
    if len(problems) > MOST_LINES:
        lines.append(f"and {len(problems) - MOST_LINES:,} problems more")
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
            if not isinstance(owner, dict):
                raise ConfigError(f"command line: --{field}: {part} has a value already")
        try:
            owner[name] = _load(value)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"command line: --{field}: cannot read {_shortened(value)}"
            ) from error
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
    location = [str(part)[:MOST_CHARACTERS] for part in problem["loc"]]
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
    return f"{field}: {message}, got {_shortened(problem['input'])}"


def _shortened(value: Any) -> str:
    """What came, on one line that can be read."""
    text = repr(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."


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
