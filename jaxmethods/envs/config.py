"""The config of an environment: its name, and the arguments of its constructor as fields."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from pydantic import ConfigDict, Field, create_model, model_validator
from pydantic.fields import FieldInfo

from jaxmethods import envs
from jaxmethods.config import Config
from jaxmethods.envs import ENVIRONMENTS, TeamEnvironment

if TYPE_CHECKING:
    Name: TypeAlias = str
else:
    Name = Literal[tuple(ENVIRONMENTS)]


class EnvironmentConfig(Config):
    """Which environment; every further field is an argument of its constructor."""

    model_config = ConfigDict(extra="allow")

    name: Name

    @classmethod
    def fields_with(cls, values: Mapping[str, Any]) -> Mapping[str, FieldInfo]:
        """The name, and the arguments of the environment that is named."""
        known = arguments_of(values.get("name"))
        return cls.model_fields | (known.model_fields if known else {})

    @model_validator(mode="before")
    @classmethod
    def _arguments_fit(cls, values: Any) -> Any:
        known = arguments_of(values.get("name")) if isinstance(values, Mapping) else None
        if known is None:
            return values  # refused because of its name
        given = {name: value for name, value in values.items() if name != "name"}
        return {"name": values["name"]} | known.model_validate(given).model_dump(exclude_unset=True)

    def make(self) -> TeamEnvironment:
        """Builds the environment. Raises `ValueError` for a value that it refuses."""
        try:
            return envs.make(self.name, **(self.model_extra or {}))
        except ValueError as error:
            raise ValueError(f"environment: {error}") from error


def arguments_of(name: object) -> type[Config] | None:
    """A config of an environment's arguments, as far as YAML can say them; None: no such name."""
    return _arguments_of(name) if isinstance(name, str) and name in ENVIRONMENTS else None


@cache
def _arguments_of(name: str) -> type[Config]:
    environment = ENVIRONMENTS[name]
    about = _described(environment.__init__.__doc__ or "")
    presets: Any = Literal[tuple(environment.presets)]
    preset = Field(None, description="A published version; other arguments override it.")
    fields: dict[str, Any] = {"preset": (presets | None, preset)} if environment.presets else {}
    for argument in inspect.signature(environment.__init__, eval_str=True).parameters.values():
        if argument.name != "self" and _is_plain(argument.annotation):
            described = Field(argument.default, description=about.get(argument.name))
            fields[argument.name] = (argument.annotation, described)
    return create_model(f"{environment.__name__}Arguments", __base__=Config, **fields)


def _is_plain(annotation: Any) -> bool:
    """Whether YAML can say values of a type."""
    members = get_args(annotation) or (annotation,)
    return all(member in (int, float, bool, str, type(None)) for member in members)


def _described(docstring: str) -> dict[str, str]:
    """Argument -> its description in a docstring's `Args`."""
    _, _, arguments = inspect.cleandoc(docstring).partition("Args:\n")
    arguments = arguments.partition("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", arguments, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}
