"""What a command line lacks, said in one line before its parser looks at it."""

from __future__ import annotations

from collections.abc import Sequence

from jaxmethods.config import ConfigError, nearest
from jaxmethods.installation.packaged_configs import packaged

NEEDS = {
    "run": "a config: jaxmethods run demo, or jaxmethods run FILE.yaml; see jaxmethods configs",
    "evaluate": "the folder of a run: jaxmethods evaluate runs/demo-seed0",
    "report": "the folder of a run: jaxmethods report runs/demo-seed0",
    "compare": "at least one run folder: jaxmethods compare runs/first runs/second",
}
"""What a command that stands alone lacks."""
VALUES = {
    "--out": "a folder",
    "--json": "a file",
    "--to": "a file",
    "--checkpoint": "best, latest or a step",
}
"""Options that come with a value, and which."""
INSTEAD = {"version": "--version", "-v": "--version", "-V": "--version", "help": "--help"}


def check_words(arguments: Sequence[str], commands: Sequence[str]) -> None:
    """Raises `ConfigError` for a first word that is no command, or a command without its object."""
    if not arguments:
        return
    given = arguments[0]
    if len(arguments) == 1 and given in NEEDS:
        raise ConfigError(f"command line: {given} needs {NEEDS[given]}")
    if arguments[-1] in VALUES:
        raise ConfigError(f"command line: {arguments[-1]} needs a value, {VALUES[arguments[-1]]}")
    if given == "run" and arguments[1].startswith("-") and not _is_option(arguments[1]):
        raise ConfigError(f"command line: run needs its config before {arguments[1]}")
    if given in commands or given in ("-h", "--help", "--version"):
        return
    hint = nearest(given, (*commands, "--help", "--version"))
    if given in INSTEAD:
        hint = f"; write jaxmethods {INSTEAD[given]}"
    elif given.endswith((".yaml", ".yml")) or _is_packaged(given):
        hint = f"; write jaxmethods run {given}"
    raise ConfigError(f"command line: unknown command {given!r}{hint}")


def _is_option(word: str) -> bool:
    """Whether a word is an option of `run` itself, which may stand before the config."""
    options = ("-h", "--help", "--out", "--resume", "--quiet", "--distributed")
    return word.partition("=")[0] in options


def _is_packaged(name: str) -> bool:
    return any(name in (full, full.partition("/")[2]) for full in packaged())
