"""What every folder that is written for others has to stand."""

from __future__ import annotations

from pathlib import Path


def check_others_can_read(folder: Path) -> None:
    """Asserts that a folder is 0755 and each file in it 0644."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in (folder, *folder.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path
