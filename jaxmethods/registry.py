"""What `method:` of a config can be, and where its recipe comes from."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from jaxmethods.config import ConfigError, RunConfig, nearest, refusal, validate
from jaxmethods.stages import Recipe, check_recipe


class Entry(NamedTuple):
    """One line of the registry."""

    module: str
    """Has `Run`, a `RunConfig`, and `recipe(run) -> Recipe`."""
    summary: str
    """What it does, for `jaxmethods methods`."""


METHODS = {
    "commformer": Entry(
        "jaxmethods.commformer.recipes.train",
        "Train a team that learns whom to listen to.",
    ),
    "interpret": Entry(
        "jaxmethods.diagnosis.recipe",
        "Report on a model or a finished run: curvature, noise, kernels, calibration, privacy.",
    ),
    "interpret_digits": Entry(
        "jaxmethods.interpret.recipes.digits",
        "Train a network on digits, watched by a monitor, and report on it.",
    ),
    "interpret_grokking": Entry(
        "jaxmethods.interpret.recipes.grokking",
        "Train a network to add modulo a prime, and draw which measure moves first.",
    ),
    "kid": Entry(
        "jaxmethods.kid.recipes.distill",
        "Distill a text-to-SQL model by any of a dozen objectives, and execute its answers.",
    ),
    "lsm": Entry(
        "jaxmethods.lsm.recipes.speech_text",
        "Tune speech-text models on what a language model wrote, and measure their bias.",
    ),
    "lsm_recordings": Entry(
        "jaxmethods.lsm.recipes.recordings.recipe",
        "Tune speech-text models of your own recordings, Whisper and language model.",
    ),
    "merge": Entry(
        "jaxmethods.merging.recipes.merge",
        "Merge checkpoints into a new model folder.",
    ),
    "merging": Entry(
        "jaxmethods.merging.recipes.comparison",
        "Train experts on image tasks, merge them every way, compare.",
    ),
    "misconceptions": Entry(
        "jaxmethods.novo.recipes.misconceptions",
        "Train a decoder on facts and myths, and read it by norm voting.",
    ),
    "novo": Entry(
        "jaxmethods.novo.recipes.questions",
        "Answer multiple-choice questions by attention-head norms.",
    ),
    "obd": Entry(
        "jaxmethods.obd.recipes.distill",
        "Distill an offline dataset of behavior into a few hundred pairs.",
    ),
    "obd_tables": Entry(
        "jaxmethods.obd.recipes.tables",
        "Score other students of a distilled set: architectures, optimizers.",
    ),
    "rsfm": Entry(
        "jaxmethods.rsfm.recipes.compare",
        "Pretrain an encoder of satellite images and compare it with what is simpler.",
    ),
    "speech_probe": Entry(
        "jaxmethods.lsm.recipes.probe.recipe",
        "Read labels from a Whisper's frozen frames: linear probes, left-out speakers, answers.",
    ),
    "transcribe": Entry(
        "jaxmethods.lsm.recipes.transcribe",
        "Write recordings down with a Whisper.",
    ),
    "vqcd": Entry(
        "jaxmethods.vqcd.recipes.continual",
        "Learn a sequence of offline tasks of different sizes and forget none.",
    ),
}


class Registered(NamedTuple):
    """A method, imported."""

    config: type[RunConfig]
    recipe: Callable[[Any], Recipe]


def find(name: object, source: str) -> Registered:
    """Looks a method up; `ConfigError` names the nearest one."""
    if name is None:
        raise ConfigError(f"config {source}: method: is required{nearest('', METHODS)}")
    _check_text(name, source)
    if name not in METHODS:
        raise ConfigError(
            f"config {source}: method: unknown method {name!r:.200}{nearest(str(name), METHODS)}"
        )
    module = importlib.import_module(METHODS[str(name)].module)
    return Registered(module.Run, module.recipe)


def _check_text(name: object, source: str) -> None:
    if name is not None and not isinstance(name, str):
        raise ConfigError(
            f"config {source}: method: expected the name of a method, got {name!r:.200}"
        )


def parse_config(values: Mapping[str, Any], source: str) -> RunConfig:
    """Validates a config; no file that it names is opened."""
    return validate(find(values.get("method"), source).config, values, source)


def parse(values: Mapping[str, Any], source: str) -> tuple[RunConfig, Recipe]:
    """Validates a config and builds its recipe: files that it names are read, extras imported, and
    what can be refused is refused; nothing is trained."""
    config = parse_config(values, source)
    try:
        recipe = find(config.method, source).recipe(config)
        every = getattr(config, "monitor", 0)
        if every:
            from jaxmethods.interpret.recipes.watched import watched_recipe  # a second to import

            recipe = watched_recipe(recipe, every)
        check_recipe(recipe)
    except ValidationError as error:  # of a config that the method made of this one
        raise refusal(error, type(config), values, source) from error
    except ValueError as error:
        raise ConfigError(f"config {source}: {error}") from error
    return config, recipe
