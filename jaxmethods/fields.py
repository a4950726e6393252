"""The fields of a config: which there are, what each takes in words, and a value that it takes.

Help and errors are written from this, so that both say what the config itself accepts.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, cast, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

REQUIRED: Any = PydanticUndefined
"""In the place of a value that has to be given."""


class Field(NamedTuple):
    """A field, or a section of fields."""

    path: str
    """`graph.sparsity`; an element of a list is `rules[]`."""
    words: str
    """What it takes."""
    value: Any
    """With the values that were given: plain values, `REQUIRED` where one is missing."""
    default: Any
    """Plain values, or `REQUIRED`."""
    about: str
    section: bool
    """Whether fields of its own follow."""
    example: Any
    """Plain values that it takes."""


def fields(model: type[BaseModel], values: Mapping[str, Any]) -> Iterator[Field]:
    """All fields of a config, plain ones first, those of a section behind it.

    Args:
        model: the config's class.
        values: what a file and the command line give; whether it fits is not asked.
    """
    yield from _fields(model, values, None, "")


def _fields(
    model: type[BaseModel], values: Any, defaults: BaseModel | None, prefix: str
) -> Iterator[Field]:
    values = values if isinstance(values, Mapping) else {}
    found = fields_of(model, values)
    for name in sorted(found, key=lambda name: section_of(found[name].annotation)[0] is not None):
        field = found[name]
        default = field.get_default() if defaults is None else getattr(defaults, name, REQUIRED)
        default = REQUIRED if default is Ellipsis else default
        annotation, metadata = field.annotation, field.metadata
        below, listed = section_of(annotation)
        path = f"{prefix}{name}"
        yield Field(
            path,
            words(annotation, metadata),
            values.get(name, plain(default)),
            plain(default),
            " ".join((field.description or (below.__doc__ if below else "") or "").split()),
            below is not None,
            example(annotation, metadata),
        )
        if below is not None and listed:
            yield from _fields(below, {}, None, f"{path}[].")
        elif below is not None:
            own = default if isinstance(default, BaseModel) else None
            yield from _fields(below, values.get(name), own, f"{path}.")


def fields_of(model: type[BaseModel], values: Mapping[str, Any]) -> Mapping[str, FieldInfo]:
    """The fields that a model has where it is given `values` (`Config.fields_with`)."""
    with_values = getattr(model, "fields_with", None)
    return with_values(values) if with_values else model.model_fields


class Place(NamedTuple):
    """Where a location within a config leads to."""

    depth: int
    """How many parts of the location were followed: a union's member has no place of its own."""
    annotation: Any
    metadata: Sequence[Any]
    below: Mapping[str, FieldInfo]
    """Fields of the section that is there, or that the place's last name isn't one of."""

    @property
    def section(self) -> tuple[type[BaseModel] | None, bool]:
        """See `section_of`."""
        return section_of(self.annotation)

    @property
    def choices(self) -> list[str]:
        """The names that may stand there, where there are choices."""
        members = _members(_unwrapped(self.annotation, ())[0])[0]
        choices = [get_args(m) for m in members if get_origin(m) is Literal]
        return [choice for some in choices for choice in some if isinstance(choice, str)]


def follow(
    model: type[BaseModel], values: Mapping[str, Any], location: Sequence[str | int]
) -> Place:
    """Follows a location, as pydantic's errors have it, from a config downwards."""
    annotation: Any = model
    metadata: Sequence[Any] = []
    value: Any = values
    for depth, part in enumerate([*location, None]):
        section, listed = section_of(annotation)
        given = value if isinstance(value, Mapping) else {}
        below = fields_of(section, given) if section and not listed else {}
        elements = get_args(_unwrapped(annotation, ())[0])
        if isinstance(part, int) and get_origin(_unwrapped(annotation, ())[0]) is tuple:
            annotation = elements[0 if elements[-1] is Ellipsis else part]
            metadata, value = [], value[part] if isinstance(value, list | tuple) else None
        elif isinstance(part, str) and part in below:
            annotation, metadata = below[part].annotation, below[part].metadata
            value = given.get(part)
        else:
            return Place(depth, annotation, metadata, below)
    raise AssertionError("the last part is None, which leads nowhere")


def section_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The config that a field holds, and whether it is a list of them; None: a plain value."""
    annotation, _ = _unwrapped(annotation, ())
    members, _ = _members(annotation)
    for member in members:
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member, False
        if get_origin(member) is tuple:
            return section_of(get_args(member)[0])[0], True
    return None, False


def plain(value: Any) -> Any:
    """A value as YAML has it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a type takes: `a number > 0 and <= 1`, `one of learned, full, or null`."""
    annotation, metadata = _unwrapped(annotation, metadata)
    members, optional = _members(annotation)
    if len(members) > 1 or optional:
        kinds = " or ".join(words(member, metadata) for member in members)
        return f"{kinds}, or null" if optional else kinds
    if get_origin(annotation) is Literal:
        names = [str(choice) for choice in get_args(annotation)]
        return names[0] if len(names) == 1 else f"one of {', '.join(names)}"
    if get_origin(annotation) is tuple:
        return _list_in_words(annotation, metadata)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a mapping of its fields"
    names = {bool: "true or false", str: "text", Path: "a path"}
    if annotation in (int, float):
        return _number_in_words(annotation, metadata)
    return names.get(annotation, "a value")


def example(annotation: Any, metadata: Sequence[Any] = ()) -> Any:
    """A plain value that a type takes, as small as can be."""
    annotation, metadata = _unwrapped(annotation, metadata)
    annotation = _members(annotation)[0][0]
    annotation, metadata = _unwrapped(annotation, metadata)
    if get_origin(annotation) is Literal:
        return get_args(annotation)[0]
    if get_origin(annotation) is tuple:
        elements = get_args(annotation)
        if elements[-1] is not Ellipsis:
            return [example(element) for element in elements]
        least = max([1, *(m.min_length for m in metadata if isinstance(m, MinLen))])
        return [example(elements[0])] * least
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        required = {n: f for n, f in annotation.model_fields.items() if f.is_required()}
        return {name: example(f.annotation, f.metadata) for name, f in required.items()}
    if annotation in (int, float):
        return _number(annotation, metadata)
    return {bool: True, Path: "a/path"}.get(annotation, "text")


def _unwrapped(annotation: Any, metadata: Sequence[Any]) -> tuple[Any, list[Any]]:
    """The type without `Annotated`, and what was annotated."""
    found = list(metadata)
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        for one in more:
            found += one.metadata if isinstance(one, FieldInfo) else [one]
    return annotation, found


def _members(annotation: Any) -> tuple[list[Any], bool]:
    """The members of a union without None, and whether None was one of them."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return [annotation], False
    members = [member for member in get_args(annotation) if member is not type(None)]
    return members, len(members) < len(get_args(annotation))


def _list_in_words(annotation: Any, metadata: Sequence[Any]) -> str:
    elements = get_args(annotation)
    if elements[-1] is not Ellipsis:
        return f"a list of {len(elements)}: {', '.join(map(words, elements))}"
    least = [m.min_length for m in metadata if isinstance(m, MinLen)]
    count = f" of at least {least[0]}" if least else ""
    return f"a list{count}, each {words(elements[0])}"


class _Bounds(NamedTuple):
    low: float
    low_included: bool
    high: float
    high_included: bool


def _bounds(kind: type, metadata: Sequence[Any]) -> _Bounds:
    low, low_in, high, high_in = -math.inf, True, math.inf, True
    for one in metadata:
        if isinstance(one, Ge | Gt):
            low_in = isinstance(one, Ge)
            low = cast(float, one.ge if isinstance(one, Ge) else one.gt)
        if isinstance(one, Le | Lt):
            high_in = isinstance(one, Le)
            high = cast(float, one.le if isinstance(one, Le) else one.lt)
    if kind is int:  # the whole numbers next to bounds that are left out
        return _Bounds(low + (not low_in), True, high - (not high_in), True)
    return _Bounds(low, low_in, high, high_in)


def _number_in_words(kind: type, metadata: Sequence[Any]) -> str:
    low, low_in, high, high_in = _bounds(kind, metadata)
    name = "an integer" if kind is int else "a number"
    if math.isfinite(low) and math.isfinite(high) and low_in and high_in:
        return f"{name} from {_shown(low)} to {_shown(high)}"
    least = f"{'>=' if low_in else '>'} {_shown(low)}" if math.isfinite(low) else ""
    most = f"{'<=' if high_in else '<'} {_shown(high)}" if math.isfinite(high) else ""
    bounds = " and ".join(bound for bound in (least, most) if bound)
    return f"{name} {bounds}" if bounds else name


def _shown(bound: float) -> str:
    return str(int(bound)) if float(bound).is_integer() else f"{bound:g}"


def _number(kind: type, metadata: Sequence[Any]) -> float:
    low, low_in, high, _ = _bounds(kind, metadata)
    if low == -math.inf:
        return kind(min(1, high))
    if low_in:
        return kind(low)
    return (low + high) / 2 if math.isfinite(high) else low + 1.0
