"""Errors whose message is meant for the person at the keyboard: one line, no traceback."""

from __future__ import annotations

import importlib
from types import ModuleType


class UserError(Exception):
    """Something the user can mend; the command line prints the message and exits with `code`."""

    code = 2


class MissingExtraError(UserError):
    """An optional dependency that is not installed."""


def import_extra(module: str, extra: str) -> ModuleType:
    """Imports an optional dependency; `MissingExtraError` names the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} is not installed; install it with: pip install 'jaxmethods[{extra}]'"
        ) from error
