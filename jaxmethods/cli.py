"""`jaxmethods train | evaluate | report`: the command line.

    jaxmethods train CONFIG.yaml [--out DIR] [--resume] [--quiet] [--FIELD VALUE ...]
    jaxmethods evaluate RUN_DIR [--checkpoint best|latest|STEP]
    jaxmethods report RUN_DIR
    jaxmethods methods

Exit codes: 0 done, 1 the run diverged, 2 wrong input (one line says what), 130 and 143
stopped by Ctrl-C or SIGTERM (saved).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from jaxmethods.config import ConfigError, RunConfig, merge, parse_overrides, read_yaml
from jaxmethods.errors import UserError


@dataclass
class Train:
    """Train what CONFIG describes; any of its fields can be set as --FIELD VALUE."""

    config: tyro.conf.Positional[Path]
    """A YAML file; `jaxmethods train CONFIG --help` lists its fields."""
    out: Path | None = None
    """Run folder (default: runs/NAME-seedN, after the config file's name)."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the run in the folder (start one if there is none)."""
    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print errors only."""


@dataclass
class Evaluate:
    """Evaluate a checkpoint of a run on fresh randomness."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    checkpoint: str = "latest"
    """`best`, `latest` or a step."""
    seed: int = 1_000_000
    """Seed of the evaluation."""


@dataclass
class Report:
    """Rebuild a run's report.html from what is in its folder."""

    run: tyro.conf.Positional[Path]
    """Run folder."""


@dataclass
class Methods:
    """List the methods that can be trained."""


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Methods, tyro.conf.subcommand("methods")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax talks to programmers there
    if _asks_for_fields(arguments):
        return _show_fields(Path(arguments[1]))
    command, unknown = tyro.cli(
        Command,  # type: ignore[arg-type]
        args=arguments,
        prog="jaxmethods",
        description="Methods of ten papers as pure JAX functions.",
        return_unknown_args=True,
    )
    try:
        if isinstance(command, Train):
            return _train(command, unknown)
        if unknown:
            raise ConfigError(f"command line: unknown argument {unknown[0]!r}")
        if isinstance(command, Evaluate):
            return _evaluate(command)
        return _report(command) if isinstance(command, Report) else _methods()
    except UserError as error:
        print(f"jaxmethods: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("jaxmethods: interrupted; what was saved before is whole", file=sys.stderr)
        return 130


def _train(command: Train, overrides: Sequence[str]) -> int:
    from jaxmethods.training import loop, registry, report
    from jaxmethods.training.progress import Progress
    from jaxmethods.training.run_folder import RunFolder

    values = merge(read_yaml(command.config), parse_overrides(overrides))
    config, stages = registry.parse(values, str(command.config))
    folder = RunFolder(command.out or _default_folder(command.config, config))
    try:
        finished = loop.train(stages, config, folder, command.resume, Progress(quiet=command.quiet))
    except (loop.Interrupted, loop.DivergedError):
        report.write_report(folder)
        raise
    loop.draw_figures(stages, finished, folder.figures)
    report.write_report(folder)
    if not command.quiet:
        Console(soft_wrap=True).print(f"report: {folder.report}", highlight=False)
    return 0


def _evaluate(command: Evaluate) -> int:
    from jaxmethods.training import loop, registry
    from jaxmethods.training.run_folder import RunFolder

    folder = RunFolder(command.run)
    values = folder.read_config()
    config, stages = registry.parse(values, str(folder.config))
    table = Table("stage", "step", "metric", "mean over seeds", box=None, header_style="bold")
    for stage, step, metrics in loop.evaluate(
        stages, config, folder, command.checkpoint, command.seed
    ):
        for name, value in metrics.items():
            table.add_row(stage, str(step), name, f"{float(value.mean()):.4g}")
    Console().print(table)
    return 0


def _report(command: Report) -> int:
    from jaxmethods.training import report
    from jaxmethods.training.run_folder import RunFolder

    folder = RunFolder(command.run)
    folder.read_config()
    report.write_report(folder)
    Console(soft_wrap=True).print(f"report: {folder.report}", highlight=False)
    return 0


def _methods() -> int:
    from jaxmethods.training.registry import METHODS

    for name in sorted(METHODS):
        print(name)
    return 0


def _default_folder(config_file: Path, config: RunConfig) -> Path:
    seeds = f"seed{config.seed}" if config.seeds == 1 else f"{config.seeds}seeds-from{config.seed}"
    return Path("runs") / f"{config_file.stem}-{seeds}"


def _asks_for_fields(arguments: Sequence[str]) -> bool:
    helps = {"-h", "--help"} & set(arguments)
    return bool(helps) and arguments[:1] == ["train"] and arguments[1:2] not in ([], ["--help"])


def _show_fields(config_file: Path) -> int:
    """Prints the fields of a config file's method with the file's values as defaults."""
    from jaxmethods.training import registry

    try:
        config, _ = registry.parse(read_yaml(config_file), str(config_file))
    except UserError as error:
        print(f"jaxmethods: {error}", file=sys.stderr)
        return error.code
    tyro.cli(type(config), default=config, args=["--help"], prog=f"jaxmethods train {config_file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
