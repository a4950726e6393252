"""`jaxmethods train | evaluate | merge | report | compare`: the command line.

    jaxmethods train CONFIG.yaml [--out DIR] [--resume] [--quiet] [--distributed]
                     [--FIELD VALUE ...]
    jaxmethods evaluate RUN_DIR [--checkpoint best|latest|STEP]
    jaxmethods evaluate CONFIG.yaml [--out DIR] [--resume] [--quiet] [--FIELD VALUE ...]
    jaxmethods merge CONFIG.yaml OUT_DIR [--quiet] [--FIELD VALUE ...]
    jaxmethods report RUN_DIR
    jaxmethods compare RUN_DIR [RUN_DIR ...]
    jaxmethods methods

Exit codes: 0 done, 1 the run diverged, 2 wrong input (one line says what), 130 and 143
stopped by Ctrl-C or SIGTERM (saved).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table

from jaxmethods.config import ConfigError, RunConfig, merge, parse_overrides, read_yaml
from jaxmethods.errors import UserError

if TYPE_CHECKING:  # jax is imported by the commands that need it
    from jaxmethods.method import Stage
    from jaxmethods.training.run_folder import RunFolder


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
    distributed: tyro.conf.FlagCreatePairsOff[bool] = False
    """This is one process of several that train together; start all of them with the same
    command. JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID say which one it is; on Slurm, Open MPI and Cloud TPU they are found out."""


@dataclass
class Evaluate:
    """Evaluate a checkpoint of a run on fresh randomness, or what a CONFIG describes: a method
    with nothing to train, any of whose fields can be set as --FIELD VALUE."""

    run: tyro.conf.Positional[Path]
    """Run folder, or a YAML file."""
    checkpoint: str = "latest"
    """`best`, `latest` or a step (run folder only)."""
    seed: int | None = None
    """Seed of the evaluation (default: 1000000, or the config's)."""
    out: Path | None = None
    """Where results go (CONFIG only; default: runs/NAME-seedN, after the config file's name)."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the evaluation in the folder (CONFIG only)."""
    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print errors only (CONFIG only)."""


@dataclass
class Merge:
    """Merge checkpoints into a new model folder; CONFIG's fields can be set as --FIELD VALUE."""

    config: tyro.conf.Positional[Path]
    """A YAML file; `jaxmethods merge CONFIG --help` lists its fields."""
    out: tyro.conf.Positional[Path]
    """New model folder."""
    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print errors only."""


@dataclass
class Report:
    """Rebuild a run's report.html from what is in its folder."""

    run: tyro.conf.Positional[Path]
    """Run folder."""


@dataclass
class Compare:
    """Print the last evaluations of several runs as a Markdown table: mean ± standard error."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""


@dataclass
class Methods:
    """List the methods that can be trained."""


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Methods, tyro.conf.subcommand("methods")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax talks to programmers there
    if _asks_for_fields(arguments):
        return _show_fields(arguments[0], Path(arguments[1]))
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
        if isinstance(command, Evaluate) and command.run.is_file():
            return _evaluate_config(command, unknown)
        if isinstance(command, Merge):
            return _merge(command, unknown)
        if unknown:
            raise ConfigError(f"command line: unknown argument {unknown[0]!r}")
        if isinstance(command, Evaluate):
            return _evaluate(command)
        if isinstance(command, Compare):
            return _compare(command)
        return _report(command) if isinstance(command, Report) else _methods()
    except UserError as error:
        print(f"jaxmethods: {error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:
        # Whoever read our output has left (`| head`); flushing at exit would say so again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # whatever file it was: the system's words, not our traceback
        if error.strerror is None:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"jaxmethods: {where}{error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxmethods: interrupted; what was saved before is whole", file=sys.stderr)
        return 130


def _train(command: Train, overrides: Sequence[str]) -> int:
    from jaxmethods.training import distributed

    if command.distributed:
        distributed.initialize()
    with distributed.nothing_waits_for_the_fallen():
        return _train_here(command, overrides)


def _train_here(command: Train, overrides: Sequence[str]) -> int:
    from jaxmethods.training import distributed, loop, registry
    from jaxmethods.training.progress import Progress
    from jaxmethods.training.run_folder import RunFolder

    def parse() -> tuple[RunConfig, list[Stage]]:
        values = merge(read_yaml(command.config), parse_overrides(overrides))
        return registry.parse(values, str(command.config))

    config, stages = distributed.together(parse)
    folder = RunFolder(command.out or _default_folder(command.config, config))
    quiet = command.quiet or not distributed.is_writer()
    try:
        finished = loop.train(stages, config, folder, command.resume, Progress(quiet=quiet))
    except (loop.Interrupted, loop.DivergedError, loop.StageError):
        _report_as_well(folder)
        raise
    try:
        loop.export_results(stages, finished, folder.path)
        loop.draw_figures(stages, finished, folder.figures)
    except UserError:
        _report_as_well(folder)
        raise
    _write_report(folder, quiet)
    return 0


def _report_as_well(folder: RunFolder) -> None:
    """A report beside an error, which is what counts: where it cannot be written, a line more."""
    try:
        if folder.holds_run():
            _write_report(folder, quiet=True)
    except UserError as error:
        print(f"jaxmethods: {error}", file=sys.stderr)


def _evaluate(command: Evaluate) -> int:
    from jaxmethods.training import loop, registry
    from jaxmethods.training.run_folder import RunFolder

    folder = RunFolder(command.run)
    values = folder.read_config()
    config, stages = registry.parse(values, str(folder.config))
    table = Table("stage", "step", "metric", "mean over seeds", box=None, header_style="bold")
    for stage, step, metrics in loop.evaluate(
        stages,
        config,
        folder,
        command.checkpoint,
        1_000_000 if command.seed is None else command.seed,
    ):
        for name, value in metrics.items():
            table.add_row(stage, str(step), name, f"{float(value.mean()):.4g}")
    Console().print(table)
    return 0


def _evaluate_config(command: Evaluate, overrides: Sequence[str]) -> int:
    from jaxmethods.training import registry
    from jaxmethods.training.evaluation import run_evaluation
    from jaxmethods.training.run_folder import RunFolder
    from jaxmethods.training.sharding import make_mesh

    values = merge(read_yaml(command.run), parse_overrides(overrides))
    if command.seed is not None:
        values["seed"] = command.seed
    config, prepare = registry.find_evaluation(values, str(command.run))
    mesh = make_mesh(config.mesh)
    work = prepare(config, mesh if mesh.size > 1 else None)
    folder = RunFolder(command.out or Path("runs") / f"{command.run.stem}-seed{config.seed}")
    evaluated = run_evaluation(work, config, folder, command.resume, command.quiet)
    if not command.quiet:
        table = Table("metric", "value", box=None, header_style="bold")
        for name, value in evaluated.metrics.items():
            table.add_row(name, f"{value:.4g}")
        Console().print(table)
        Console(soft_wrap=True).print(f"report: {folder.report}", highlight=False)
    return 0


def _merge(command: Merge, overrides: Sequence[str]) -> int:
    from jaxmethods.config import validate
    from jaxmethods.merging.merge_config import MergeConfig
    from jaxmethods.merging.streaming import merge_checkpoints
    from jaxmethods.training.progress import ByteProgress

    values = merge(read_yaml(command.config), parse_overrides(overrides))
    config = validate(MergeConfig, values, str(command.config))
    with ByteProgress(config.method, command.quiet) as progress:
        summary = merge_checkpoints(config, command.out, progress.advance)
    if not command.quiet:
        print(
            f"{command.out}: {summary.merged} tensors merged, {summary.copied} copied; "
            f"{summary.read / 1e9:.2f} GB read, {summary.written / 1e9:.2f} GB written in "
            f"{summary.seconds:.1f} s, at most {_peak_memory() / 1e9:.2f} GB of memory"
        )
    return 0


def _peak_memory() -> int:
    """Bytes that this process has had resident at most."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _report(command: Report) -> int:
    from jaxmethods.training.run_folder import RunFolder

    folder = RunFolder(command.run)
    folder.read_config()
    _write_report(folder, quiet=False)
    return 0


def _write_report(folder: RunFolder, quiet: bool) -> None:
    from jaxmethods.training import distributed, report

    def write() -> None:
        if distributed.is_writer():
            report.write_report(folder)

    distributed.together(write)  # nobody leaves while the writer is at work
    if not quiet:
        Console(soft_wrap=True).print(f"report: {folder.report}", highlight=False)


def _compare(command: Compare) -> int:
    from jaxmethods.training.compare import compare
    from jaxmethods.training.run_folder import RunFolder

    if not command.runs:
        raise ConfigError("command line: compare needs at least one run folder")
    print(compare([RunFolder(path) for path in command.runs]))
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
    has_fields = arguments[:1] in (["train"], ["merge"])
    return bool(helps) and has_fields and arguments[1:2] not in ([], ["--help"])


def _show_fields(command: str, config_file: Path) -> int:
    """Prints the fields of a config file's method with the file's values as defaults."""
    from jaxmethods.config import validate
    from jaxmethods.merging.merge_config import MergeConfig
    from jaxmethods.training import registry

    try:
        values = read_yaml(config_file)
        if command == "merge":
            config = validate(MergeConfig, values, str(config_file))
        else:
            config = registry.parse_config(values, str(config_file))
    except UserError as error:
        print(f"jaxmethods: {error}", file=sys.stderr)
        return error.code
    prog = f"jaxmethods {command} {config_file}"
    tyro.cli(type(config), default=config, args=["--help"], prog=prog)
    return 0


if __name__ == "__main__":
    sys.exit(main())
