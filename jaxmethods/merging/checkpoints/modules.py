"""Modules behind a transformer that have weights of their own: what sentence-transformers adds.

A folder's `modules.json` names subfolders, `2_Dense` say, whose weights are a part of the model and
no older form of it. They are copied from the base, and must be the same in the experts: merged
features would otherwise go through a map that was trained for others.
"""

from __future__ import annotations

import json
from pathlib import Path

from jaxmethods.files import sha256
from jaxmethods.merging.checkpoints.compatibility import MergeError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def module_folders(path: Path) -> list[str]:
    """Names of the subfolders that `modules.json` names; none where there is no such file."""
    try:
        listed = json.loads((path / "modules.json").read_bytes())
        names = {str(one["path"]) for one in listed}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    inside = {name for name in names if name and Path(name).name == name}
    return sorted(name for name in inside if (path / name).is_dir())


def check_modules(base: Path, expert: Path) -> None:
    """Refuses experts whose modules have other weights than the base's.

    Args:
        base, expert: folders of checkpoints; where the expert has no `modules.json`, nothing is
            known of it.

    Raises:
        MergeError: names the folder.
    """
    if not (expert / "modules.json").is_file():
        return
    for name in module_folders(base):
        for file in WEIGHTS:
            ours, theirs = base / name / file, expert / name / file
            if ours.is_file() and not (theirs.is_file() and sha256(ours) == sha256(theirs)):
                raise MergeError(
                    f"expert {expert}: {name}/{file}: expected the base's weights, since modules "
                    "behind the transformer are copied and not merged"
                )
