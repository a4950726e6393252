"""Hugging Face model folders: `config.json` and safetensors, in and out, for any model family."""

from __future__ import annotations

from jaxmethods.models.hub.folders import (
    INDEX,
    Folder,
    HubError,
    Stored,
    Tensor,
    common_type,
    companions,
    linear,
    open_file,
    open_folder,
    path_of,
    read_params,
    weight_files,
    whole,
    write_folder,
)

__all__ = [
    "INDEX",
    "Folder",
    "HubError",
    "Stored",
    "Tensor",
    "common_type",
    "companions",
    "linear",
    "open_file",
    "open_folder",
    "path_of",
    "read_params",
    "weight_files",
    "whole",
    "write_folder",
]
