"""Hugging Face model folders: `config.json` and safetensors, in and out, for any model family.

A family says once which tensors a checkpoint has and which leaves of our parameter tree they hold,
as a table of `Tensor`s (`tensors`); reading and writing both follow that table (`parameters`).
"""

from __future__ import annotations

from jaxmethods.models.hub.folders import INDEX as INDEX
from jaxmethods.models.hub.folders import Folder as Folder
from jaxmethods.models.hub.folders import HubError as HubError
from jaxmethods.models.hub.folders import Stored as Stored
from jaxmethods.models.hub.folders import companions, open_file, open_folder, weight_files
from jaxmethods.models.hub.parameters import common_type, read_params, write_folder
from jaxmethods.models.hub.tensors import Tensor as Tensor
from jaxmethods.models.hub.tensors import linear, whole

__all__ = [
    "common_type",
    "companions",
    "linear",
    "open_file",
    "open_folder",
    "read_params",
    "weight_files",
    "whole",
    "write_folder",
]
