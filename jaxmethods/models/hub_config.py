"""Reading a Hugging Face `config.json` field by field; what is wrong is one line that names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxmethods.models.hub import HubError

ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
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
        if value not in ACTIVATIONS:
            raise self.error(name, f"one of {', '.join(ACTIVATIONS)}", value)
        return ACTIVATIONS[value]

    def rope(self) -> dict[str, Any]:
        """Base and scaling, in the layout of transformers 4 or 5."""
        nested = self.get("rope_parameters", {})
        scaling = nested or self.get("rope_scaling", {})
        theta = nested.get(
            "rope_theta", self.get("rope_theta", self.get("rotary_emb_base", 10_000.0))
        )
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if not isinstance(theta, int | float) or not isinstance(kind, str):
            raise self.error("rope_parameters", "rope_theta and rope_type", nested)
        values: dict[str, Any] = {"rope_theta": theta}
        if kind == "default":
            return values
        if kind not in ("linear", "dynamic", "llama3"):
            raise self.error("rope_scaling", "rope_type default, linear, dynamic or llama3", kind)
        names = {
            "factor": "factor",
            "low_freq_factor": "low_frequency_factor",
            "high_freq_factor": "high_frequency_factor",
            "original_max_position_embeddings": "original_max_positions",
        }
        settings = {ours: scaling[name] for name, ours in names.items() if scaling.get(name)}
        return values | {"rope_scaling": {"kind": kind, **settings}}

    def error(self, name: str, expected: str, got: Any) -> HubError:
        return HubError(f"model config {self.source}: {name}: expected {expected}, got {got!r}")
