"""What follows from where a place is: regressions on coordinates, and a language model asked."""

from __future__ import annotations

from jaxmethods.rsfm.location import geollm, regression

__all__ = ["geollm", "regression"]
