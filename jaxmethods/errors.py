"""Errors whose message is meant for the person at the keyboard: one line, no traceback."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


class UserError(Exception):
    """Something the user can mend; the command line prints the message and exits with `code`."""

    code = 2


class DataError(UserError):
    """A data file that cannot be used; the message says why."""


class MissingExtraError(UserError):
    """An optional dependency that is not installed."""


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).split("\n")[0][:300]


def import_extra(module: str, extra: str) -> ModuleType:
    """Imports an optional dependency.

    Raises:
        MissingExtraError: it is not installed, with the command that installs it, or it is
            installed and cannot be imported here, with its own reason.
    """
    install = f"pip install 'jaxmethods[{extra}]'"
    try:
        return importlib.import_module(module)
    except ImportError as error:
        # Where a test or a person blocks a module, the error has its name but no path either.
        missing = error.name in (None, module, module.split(".")[0])
        if missing and not _is_installed(module):
            message = f"{module} is not installed; install it with: {install}"
        else:
            why = first_line(error)
            message = f"{module} cannot be imported ({why}); mend it, or try: {install}"
        raise MissingExtraError(message) from error
    except Exception as error:  # an extension module whose libraries are missing raises many kinds
        raise MissingExtraError(
            f"{module} cannot be imported ({type(error).__name__}: {first_line(error)})"
        ) from error


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module.split(".")[0]) is not None
    except (ImportError, ValueError):  # blocked: sys.modules holds None
        return False
