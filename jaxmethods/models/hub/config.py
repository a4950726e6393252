"""Reading a Hugging Face `config.json` field by field; what is wrong is one line that names it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jaxmethods.models.hub.folders import HubError

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
}
"""Hugging Face's names of activations, and ours."""


class Fields:
    """The fields of a `config.json`; what is missing or not supported is a `HubError`."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values, self.source = values, source

    def get(self, name: str, default: Any = None) -> Any:
        """A field that may be missing or null."""
        value = self.values.get(name)
        return default if value is None else value

    def size(self, name: str, default: int | None = None) -> int:
        """A positive integer."""
        value = self.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(name, "a positive integer", value)
        return value

    def require(self, name: str, expected: Any, default: Any) -> None:
        """A setting of which we implement one value."""
        if self.get(name, default) != expected:
            raise self.error(name, repr(expected), self.values.get(name))

    def activation(self, name: str, default: str) -> str:
        value = self.get(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise self.error(name, f"one of {', '.join(ACTIVATIONS)}", value)
        return ACTIVATIONS[value]

    def flag(self, name: str, default: bool) -> bool:
        """True or false, and nothing that only looks like it."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "true or false", value)
        return value

    def number(self, name: str, default: float) -> float:
        """A finite number."""
        return self._number(name, self.get(name, default))

    def refuse(self, name: str) -> None:
        """A setting that must be missing, null or empty."""
        if self.values.get(name):
            raise self.error(name, "nothing (it is not supported)", self.values[name])

    def rope_parameters(self) -> dict[str, Any]:
        """The dictionary that counts: `rope_scaling`, unless empty, before `rope_parameters`.

        Transformers takes one of them whole, so that a base in the other one is not read.
        """
        name = "rope_scaling" if self.values.get("rope_scaling") else "rope_parameters"
        chosen = self.get(name, {})
        if not isinstance(chosen, dict):
            raise self.error(name, "an object", chosen)
        nested = sorted(key for key, value in chosen.items() if isinstance(value, dict))
        if nested:
            raise self.error(name, "one setting for all layers", f"one for {', '.join(nested)}")
        return chosen

    def rope(self, max_positions: int, theta_name: str = "rope_theta") -> dict[str, Any]:
        """Base and scaling, in the layout of transformers 4 or 5.

        Args:
            max_positions: what stands for an original length that isn't given.
            theta_name: the field of the base outside of the dictionary.
        """
        scaling = self.rope_parameters()
        theta = self._number("rope_theta", scaling.get("rope_theta", self.get(theta_name, 10_000)))
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind not in ("default", "linear", "dynamic", "llama3"):
            raise self.error("rope_scaling", "rope_type default, linear, dynamic or llama3", kind)
        values: dict[str, Any] = {"rope_theta": theta}
        if kind == "default":
            return values

        def setting(name: str) -> float:
            return self._number(f"rope_scaling.{name}", scaling.get(name))

        settings: dict[str, Any] = {"kind": kind, "factor": setting("factor")}
        if kind == "llama3":
            low, high = setting("low_freq_factor"), setting("high_freq_factor")
            if high <= low:
                raise self.error(
                    "rope_scaling.high_freq_factor", f"more than low_freq_factor ({low})", high
                )
            settings |= {"low_frequency_factor": low, "high_frequency_factor": high}
            # A field beside the dictionary is stronger than one inside.
            original = "original_max_position_embeddings"
            inside = Fields({original: scaling.get(original)}, self.source)
            settings["original_max_positions"] = self.size(
                original, inside.size(original, max_positions)
            )
        return values | {"rope_scaling": settings}

    def _number(self, name: str, value: Any) -> float:
        # False for NaN as well.
        finite = isinstance(value, int | float) and abs(value) < math.inf
        if not finite or isinstance(value, bool):
            raise self.error(name, "a number", value)
        return value

    def error(self, name: str, expected: str, got: Any) -> HubError:
        return HubError(f"model config {self.source}: {name}: expected {expected}, got {got!r}")
