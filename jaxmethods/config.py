"""Run configurations: frozen pydantic models, read from YAML, changed on the command line.

A config is hashable, so it can be a static argument of a jitted function, and it
forbids unknown fields, so a misspelled one is an error and not a silent default.
Every problem is reported as one line that names the field, what came and what
was expected.

YAML is UTF-8, whatever the locale, and read by `yaml_text`; `fields` puts into words what each
field takes, for errors and for help.
"""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from jaxmethods import yaml_text
from jaxmethods.errors import UserError
from jaxmethods.fields import Place, follow, words
from jaxmethods.yaml_text import MOST_CHARACTERS, shortened

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]
SEEDS = 2**31
"""Random keys are made of 32 bits, signed where x64 is off."""
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
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

    @classmethod
    def fields_with(cls, values: Mapping[str, Any]) -> Mapping[str, FieldInfo]:
        """The fields that there are where `values` are given; one can decide about others."""
        del values
        return cls.model_fields


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

    data: PositiveInt | Literal[-1] = 1
    """Devices along which environments, seeds and batches are split; -1: all that are left."""
    fsdp: PositiveInt = 1
    """Devices along which parameters are split, and gathered where they are used."""
    tensor: PositiveInt = 1
    """Devices along which single products are split."""


class RunConfig(Config):
    """What the config of everything that is run holds."""

    method: str
    """What is run; `jaxmethods methods` lists them."""
    seed: Seed = 0
    """Everything that is random follows from it."""


class TrainingRunConfig(RunConfig):
    """What the config of everything that trains holds besides."""

    seeds: PositiveInt = 1
    """Train seeds `seed` to `seed + seeds - 1` in one vmapped program."""
    training: Annotated[LoopConfig, OnResume.CHANGE] = LoopConfig()
    monitor: Annotated[int, Field(ge=0)] = 0
    """Steps between two looks of the training monitor at sharpness, gradient noise and distance
    from the start, each of the cost of a few steps; 0: none. Training is the same with it."""
    mesh: Annotated[MeshConfig, OnResume.CHANGE] = MeshConfig()

    @model_validator(mode="after")
    def _last_seed_fits(self) -> Self:
        last = self.seed + self.seeds - 1
        if last >= SEEDS:
            raise ValueError(f"seeds: expected a last seed below 2^31, got {last}")
        return self


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


MOST_BYTES, MOST_LINES = 1_000_000, 20
"""The largest config file, and the longest error."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping. Raises `ConfigError` when there is none to read."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ConfigError(f"config {path}: expected at most {MOST_BYTES:,} bytes, got {size:,}")
        content = yaml_text.load(path.read_text(encoding="utf-8"))
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
            f"config {path}: expected a mapping of fields, got {_kind(content)}; write one "
            "`field: value` a line, the first of them `method: NAME`"
        )
    return content


def _kind(content: Any) -> str:
    names = {list: "a list", type(None): "nothing", str: "text"}
    return names.get(type(content), type(content).__name__)


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
        raise refusal(error, model, values, source) from error


def refusal(
    error: ValidationError, model: type[BaseModel], values: Mapping[str, Any], source: str
) -> ConfigError:
    """What pydantic found wrong with the values of a `model`, one line a problem.

    There are `MOST_LINES` at most, and one for a field, whatever it is a union of.

    Args:
        error: what pydantic raised.
        model: the config's class.
        values: what was parsed.
        source: where they come from, for the message.

    Returns:
        An error to be raised.
    """
    problems = error.errors(include_url=False)
    lines: dict[str, str] = {}
    for problem in problems[:MOST_LINES]:
        field, line = _describe(model, values, dict(problem))
        lines.setdefault(field, line)
    found = [f"{field}: {line}" for field, line in lines.items()]
    if len(problems) > MOST_LINES:
        found.append(f"and {len(problems) - MOST_LINES:,} problems more")
    return ConfigError("\n".join(f"config {source}: {line}" for line in found))


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Turns `--ppo.clip 0.1 --seed=3` into `{"ppo": {"clip": 0.1}, "seed": 3}`.

    Values are read as YAML, as in a config file. Of a field that is given twice the last value
    counts, so that a script can lay a user's arguments over its own.
    """
    values: dict[str, Any] = {}
    pending = list(arguments)
    while pending:
        argument = pending.pop(0)
        if not argument.startswith("--") or argument == "--":
            if re.fullmatch(r"-[a-zA-Z][\w.-]*|-?[\w.-]+=.*", argument):
                hint = f"; write --{argument.lstrip('-')}"
            else:
                hint = ' (a value with spaces, as lists have, is one word: --field "[a, b]")'
            raise ConfigError(f"command line: expected --field value, got {argument!r}{hint}")
        field, equals, value = argument[2:].partition("=")
        if not equals:
            if not pending or re.match("--[a-zA-Z]", pending[0]):
                raise ConfigError(f"command line: --{field} needs a value; write {_switch(field)}")
            value = pending.pop(0)
        *path, name = field.replace("-", "_").split(".")
        owner = values
        for part in path:
            owner = owner.setdefault(part, {})
            if not isinstance(owner, dict):
                raise ConfigError(f"command line: --{field}: {part} has a value already")
        if isinstance(owner.get(name), dict):
            given = ", ".join(owner[name])
            raise ConfigError(
                f"command line: --{field}: would replace its field {given}, given before; write "
                f"--{field} first"
            )
        try:
            owner[name] = yaml_text.load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"command line: --{field}: cannot read {shortened(value)}") from error
    return values


def _switch(field: str) -> str:
    """How a field without a value is written, also one that is given as other programs do it."""
    *path, name = field.split(".")
    stripped = re.sub("^no[-_]", "", name)
    dotted = ".".join([*path, stripped])
    return f"--{dotted} false" if stripped != name else f"--{dotted} VALUE, maybe true or false"


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


def _describe(
    model: type[BaseModel], values: Mapping[str, Any], problem: Mapping[str, Any]
) -> tuple[str, str]:
    """The field that a problem is about, and what is wrong with it."""
    place = follow(model, values, problem["loc"])
    path = [str(part)[:MOST_CHARACTERS] for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        return ".".join(path), f"unknown field{nearest(path[-1], place.below)}"
    if problem["type"] == "missing":
        return ".".join(path), f"is required; it is {words(place.annotation, place.metadata)}"
    path = path[: place.depth]
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        # What a config says of several of its fields begins with one of them.
        named = re.match(r"(\w+)[\w., ]*: ", message)
        section = place.section[0]
        if named and named[1] in {*place.below, *(section.model_fields if section else ())}:
            return ".".join([*path, named[0].removesuffix(": ")]), message[named.end() :]
        return ".".join(path) or "config", message[0].lower() + message[1:]
    got, field = problem["input"], ".".join(path) or "config"
    return field, f"{_expected(place, problem)}, got {shortened(got)}{_advice(field, place, got)}"


def _expected(place: Place, problem: Mapping[str, Any]) -> str:
    if problem["type"] == "finite_number":
        return "expected a finite number"
    return f"expected {words(place.annotation, place.metadata)}"


def _advice(field: str, place: Place, got: Any) -> str:
    """What to write instead, where that can be guessed."""
    expected, (section, listed) = words(place.annotation, place.metadata), place.section
    name = field.rpartition(".")[2]
    if section is not None and not listed and not isinstance(got, Mapping):
        needed = [n for n, f in section.model_fields.items() if f.is_required()]
        first = (needed or list(section.model_fields))[0]
        value = f"{first}: {yaml_text.dump(got)}" if isinstance(got, str) else f"{first}: ..."
        return f"; write {name}: {{{'' if got is True and not needed else value}}}"
    if section is None and isinstance(got, Mapping) and len(got) == 1:
        (value,) = got.values()
        return f"; write {name}: {yaml_text.dump(value)}" if isinstance(value, str) else ""
    if "a list" in expected and isinstance(got, str):
        elements = re.split(r"[,\s]+", got.strip())
        return f"; write {name}: {yaml_text.dump(elements)}"
    if isinstance(got, str) and "an integer" in expected:
        with suppress(ValueError, OverflowError):
            if float(got).is_integer():
                return f"; write {int(float(got))}"
    if isinstance(got, str) and place.choices:
        close = nearest(got, place.choices)
        return close if "did you mean" in close else ""
    return ""
