"""`jaxmethods run | evaluate | report | compare | methods | configs | doctor`: the command line.

    jaxmethods run CONFIG [--out DIR] [--resume] [--quiet] [--distributed] [--FIELD VALUE ...]
    jaxmethods run CONFIG --help
    jaxmethods evaluate RUN_DIR [--checkpoint best|latest|STEP] [--seed N] [--json FILE]
    jaxmethods report RUN_DIR
    jaxmethods compare RUN_DIR [RUN_DIR ...] [--json FILE] [--page FILE]
    jaxmethods methods [NAME]
    jaxmethods configs [copy NAME [--to FILE]]
    jaxmethods doctor
    jaxmethods --version

CONFIG is a YAML file, or the name of one of the packaged configs that `jaxmethods configs` lists.
Exit codes: 0 done, 1 the run diverged, 2 wrong input (one line says what), 130 and 143
stopped by Ctrl-C or SIGTERM (saved).
"""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from jaxmethods import __version__
from jaxmethods.config import (
    SEEDS,
    ConfigError,
    RunConfig,
    merge,
    nearest,
    parse_overrides,
    read_yaml,
    seeds_of,
)
from jaxmethods.errors import UserError
from jaxmethods.installation.command_words import check_words

if TYPE_CHECKING:  # jax is imported by the commands that need it
    from jaxmethods.records.run_folder import RunFolder
    from jaxmethods.stages import Recipe

COMMANDS = ("run", "evaluate", "report", "compare", "methods", "configs", "doctor")
OPTIONS = "[--out DIR] [--resume] [--quiet] [--distributed] [--FIELD VALUE ...]"
FRESH_SEED = 1_000_000
"""The seed of an evaluation that is asked for; no run's own evaluation has it."""


@dataclass
class Run:
    """Run what CONFIG describes; any of its fields can be set as --FIELD VALUE."""

    config: tyro.conf.Positional[Path]
    """A YAML file, or a name that `jaxmethods configs` lists; `jaxmethods run CONFIG --help` lists
    its fields."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Run folder (default: runs/NAME-seedN, after the config file's name)."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the run in the folder (start one if there is none)."""
    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print errors only."""
    distributed: tyro.conf.FlagCreatePairsOff[bool] = False
    """This is one process of several that run together; start all of them with the same
    command. JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID say which one it is; on Slurm, Open MPI and Cloud TPU they are found out."""


@dataclass
class Evaluate:
    """Evaluate a run's checkpoint anew, with randomness that the run has not seen."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    checkpoint: str = "latest"
    """`best`, `latest` or a step of the last stage that trains."""
    seed: int = FRESH_SEED
    """Seed of the evaluation."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the numbers there as well."""


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
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the numbers there as well."""
    page: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write a page with the curves of all runs over each other."""


@dataclass
class Methods:
    """List what can be run, or what a config with `method: NAME` may hold."""

    name: tyro.conf.Positional[str | None] = None
    """A method's name: its fields are listed."""


@dataclass
class Configs:
    """List the packaged configs, or write one as a file: `jaxmethods configs copy NAME`."""

    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """Nothing, or `copy NAME`."""
    to: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Where a copy is written (default: the working folder, under the config's own name)."""


@dataclass
class Doctor:
    """Say what is installed, which devices there are, which extras are missing, and compile."""


Command = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Methods, tyro.conf.subcommand("methods")]
    | Annotated[Configs, tyro.conf.subcommand("configs")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax talks to programmers there
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # "±" where a terminal has no such character
            stream.reconfigure(errors="replace")
    try:
        return _main(arguments)
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


def _main(arguments: Sequence[str]) -> int:
    if list(arguments) == ["--version"]:
        print(f"jaxmethods {__version__}")
        return 0
    check_words(arguments, COMMANDS)
    if _asks_for_fields(arguments):
        return _show_run(arguments)
    command, unknown = tyro.cli(
        Command,  # type: ignore[arg-type]
        args=arguments or ["--help"],
        prog="jaxmethods",
        description="Methods of ten papers as pure JAX functions.",
        return_unknown_args=True,
    )
    if isinstance(command, Run):
        return _run(command, unknown)
    if unknown:
        raise ConfigError(f"command line: unknown argument {unknown[0]!r}")
    if isinstance(command, Evaluate):
        return _evaluate(command)
    if isinstance(command, Compare):
        return _compare(command)
    if isinstance(command, Configs):
        return _configs(command)
    if isinstance(command, Doctor):
        return _doctor()
    return _report(command) if isinstance(command, Report) else _methods(command)


def _check_folder(path: Path) -> None:
    """Raises `ConfigError` for a file where a run's folder is expected."""
    if path.is_file():
        raise ConfigError(
            f"{path}: expected the folder of a run, got a file; a config is run by "
            f"jaxmethods run {path}"
        )
    runs = sorted(path.glob("*/config.yaml")) if not (path / "config.yaml").is_file() else []
    if runs:
        raise ConfigError(
            f"{path}: not a run folder, but it holds {len(runs)}, for instance {runs[0].parent}"
        )


def _read(command: Run, overrides: Sequence[str]) -> dict[str, Any]:
    """The config file with the command line laid over it."""
    from jaxmethods import registry
    from jaxmethods.installation.packaged_configs import resolve

    file = command.config
    if file.is_dir():
        again = f"jaxmethods run {file / 'config.yaml'} --out {file} --resume"
        hint = f"; to go on with its run: {again}" if (file / "config.yaml").is_file() else ""
        raise ConfigError(f"config {file}: expected a YAML file, got a folder{hint}")
    given = parse_overrides(overrides)
    values = merge(read_yaml(resolve(file)), given)
    known = registry.find(values.get("method"), str(file)).config.model_fields
    for name in given.keys() - known.keys():
        close = nearest(name, ("out", "resume", "quiet", "distributed"))
        if "did you mean" in close:
            raise ConfigError(f"command line: --{name} is neither option nor field{close}")
    return values


def _run(command: Run, overrides: Sequence[str]) -> int:
    from jaxmethods.devices import processes as distributed

    if command.distributed:
        distributed.initialize()
    with distributed.exit_alone_on_errors():
        return _run_here(command, overrides)


def _run_here(command: Run, overrides: Sequence[str]) -> int:
    from jaxmethods import registry
    from jaxmethods.devices import processes as distributed
    from jaxmethods.records.progress import Progress
    from jaxmethods.records.run_folder import RunFolder
    from jaxmethods.reports.console import show_result
    from jaxmethods.training import runner
    from jaxmethods.training.stopping import Interrupted

    def parse() -> tuple[RunConfig, Recipe]:
        return registry.parse(_read(command, overrides), str(command.config))

    config, recipe = distributed.together(parse)
    folder = RunFolder(command.out or _default_folder(command.config, config))
    quiet = command.quiet or not distributed.is_writer()
    stages = [stage.name for stage in recipe.stages]
    progress = Progress(quiet=quiet, headline=recipe.headline, stages=stages)
    try:
        runner.run(recipe, config, folder, command.resume, progress)
    except (Interrupted, runner.DivergedError, runner.StageError):
        _report_as_well(folder, recipe.headline)
        raise
    runner.write_results(folder, recipe.headline)
    if not quiet:
        show_result(folder, recipe.headline)
    return 0


def _report_as_well(folder: RunFolder, headline: Sequence[str]) -> None:
    """A report beside an error, which is what counts: where it cannot be written, a line more."""
    from jaxmethods.training import runner

    try:
        if folder.holds_run():
            runner.write_results(folder, headline)
    except UserError as error:
        print(f"jaxmethods: {error}", file=sys.stderr)


def _evaluate(command: Evaluate) -> int:
    import numpy as np

    from jaxmethods import registry
    from jaxmethods.records.provenance import describe_environment
    from jaxmethods.records.run_folder import RunFolder
    from jaxmethods.reports import result
    from jaxmethods.reports.console import show_fresh
    from jaxmethods.training import runner

    if not 0 <= command.seed < SEEDS:
        raise ConfigError(
            f"command line: --seed: expected an integer from 0 to {SEEDS - 1}, got {command.seed}"
        )
    _check_folder(command.run)
    folder = RunFolder(command.run)
    config, recipe = registry.parse(folder.read_config(), str(folder.config))
    start = time.perf_counter()
    judged = {}
    for stage, step, metrics in runner.evaluate(
        recipe, config, folder, command.checkpoint, command.seed
    ):
        values = {name: np.asarray(metric, float).reshape(-1) for name, metric in metrics.items()}
        judged[stage] = result.Judged(step, round(time.perf_counter() - start, 3), values)
    if judged:
        show_fresh(judged, recipe.headline)
        seeds = f", {seeds_of(config)} seeds" if seeds_of(config) > 1 else ""
        how = f"measured anew with evaluation seed {command.seed}{seeds}"
    else:
        how = "nothing was measured anew: no stage that trains is judged, or it has not begun"
    print(f"{how}; the run's own are in report")
    if command.json:
        asked = {"run": folder.path, "checkpoint": command.checkpoint, "seed": command.seed}
        content = result.describe(folder, recipe.headline, judged, describe_environment())
        fresh = {"fresh": {name: str(value) for name, value in asked.items()}}
        result.write_json(command.json, fresh | content)
    return 0


def _report(command: Report) -> int:
    from jaxmethods.records.run_folder import RunFolder
    from jaxmethods.reports import result
    from jaxmethods.training import runner

    _check_folder(command.run)
    folder = RunFolder(command.run)
    folder.read_config()
    runner.write_results(folder, result.read_headline(folder))
    Console(soft_wrap=True).print(f"report: {folder.report}", highlight=False)
    return 0


def _compare(command: Compare) -> int:
    from jaxmethods.records.run_folder import RunFolder
    from jaxmethods.reports.compare import compare, results, write_page
    from jaxmethods.reports.result import write_json

    if not command.runs:
        raise ConfigError("command line: compare needs at least one run folder")
    for path in command.runs:
        _check_folder(path)
    folders = [RunFolder(path) for path in command.runs]
    print(compare(folders))
    if command.json:
        write_json(command.json, {"runs": results(folders)})
    if command.page:
        write_page(folders, command.page)
    return 0


def _methods(command: Methods) -> int:
    from jaxmethods.registry import METHODS

    if command.name is not None:
        return _show_fields({"method": command.name}, "CONFIG.yaml")
    width = max(map(len, METHODS))
    for name, entry in sorted(METHODS.items()):
        print(f"{name:<{width}}  {entry.summary}")
    print("\njaxmethods methods NAME lists the fields of its configs; jaxmethods configs has some")
    return 0


def _configs(command: Configs) -> int:
    from jaxmethods.installation import packaged_configs

    if not command.words:
        known = packaged_configs.packaged()
        width = max(map(len, known))
        for name, file in known.items():
            print(f"{name:<{width}}  {packaged_configs.summary(file)}")
        print("\njaxmethods run NAME runs one, jaxmethods configs copy NAME writes it as a file")
        return 0
    if command.words[0] != "copy" or len(command.words) != 2:
        given = " ".join(command.words)
        raise ConfigError(f"command line: expected configs copy NAME, got configs {given}")
    print(f"written: {packaged_configs.copy(command.words[1], command.to)}")
    return 0


def _doctor() -> int:
    from jaxmethods.installation.doctor import examine

    diagnosis = examine()
    print("\n".join(diagnosis.lines))
    return 0 if diagnosis.healthy else 1


def _default_folder(config_file: Path, config: RunConfig) -> Path:
    count = seeds_of(config)
    seeds = f"seed{config.seed}" if count == 1 else f"{count}seeds-from{config.seed}"
    return Path("runs") / f"{config_file.stem}-{seeds}"


def _asks_for_fields(arguments: Sequence[str]) -> bool:
    helps = {"-h", "--help"} & set(arguments)
    return bool(helps) and arguments[:1] == ["run"] and not arguments[1].startswith("-")


def _show_run(arguments: Sequence[str]) -> int:
    """Prints the options of `run`, and the fields of a config with the values that it gives."""
    asked = [one for one in arguments[1:] if one not in ("-h", "--help")]
    command, overrides = tyro.cli(Run, args=asked, return_unknown_args=True)
    return _show_fields(_read(command, overrides), str(command.config))


def _show_fields(values: Mapping[str, Any], file: str) -> int:
    from jaxmethods import registry
    from jaxmethods.field_help import show_fields

    method = values.get("method")
    model = registry.find(method, file).config
    print(f"usage: jaxmethods run {file} {OPTIONS}\n\n{registry.METHODS[str(method)].summary}\n")
    show_fields(model, values)
    return 0


if __name__ == "__main__":
    sys.exit(main())
