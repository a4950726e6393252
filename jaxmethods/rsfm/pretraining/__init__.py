"""Masked autoencoders and contrasts: what encoders learn from, without labels."""

from __future__ import annotations

from jaxmethods.rsfm.pretraining import (
    checkpoints,
    learners,
    mae,
    masking,
    method,
    satmae,
    scale_mae,
    targets,
    views,
)

__all__ = [
    "checkpoints",
    "learners",
    "mae",
    "masking",
    "method",
    "satmae",
    "scale_mae",
    "targets",
    "views",
]
