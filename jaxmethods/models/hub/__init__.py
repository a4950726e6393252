"""Hugging Face model folders: `config.json` and safetensors, in and out, for any model family."""

from __future__ import annotations

from jaxmethods.models.hub.folders import INDEX as INDEX
from jaxmethods.models.hub.folders import Folder as Folder
from jaxmethods.models.hub.folders import HubError as HubError
from jaxmethods.models.hub.folders import Stored as Stored
from jaxmethods.models.hub.folders import Tensor as Tensor
from jaxmethods.models.hub.folders import (
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
