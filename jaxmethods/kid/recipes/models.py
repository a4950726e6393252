"""The models of a run: decoders of given sizes or of folders, their tokenizer, and the way back."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.config import ConfigError
from jaxmethods.data.bpe import END
from jaxmethods.data.tokenizer import Tokenizer, folder_tokenizer
from jaxmethods.kid.config import DistillRun, FitConfig, LoraConfig, ModelConfig
from jaxmethods.kid.model import LanguageModel, of_decoder
from jaxmethods.language.vocabularies import common_vocabulary
from jaxmethods.models import decoder
from jaxmethods.models.decoder import lora
from jaxmethods.models.hub import open_folder

USUAL_DEVIATION = 0.02
KERNEL_AXES = 3
"""Kernels with a leading axis of layers have as many; scales and biases fewer."""


class Model(NamedTuple):
    """A decoder and what of it is trained."""

    settings: ModelConfig
    config: decoder.DecoderConfig
    language: LanguageModel
    adapters: LoraConfig | None
    frozen: bool
    """Whether weights stay as they are, beside adapters or altogether."""

    def read(self) -> Any:
        """Parameters of the folder, in the type of the computation where they are frozen; None for
        a new model."""
        if self.settings.path is None:
            return None
        return _read(self.settings.path, self.settings.dtype if self.frozen else "float32")

    def init(self, key: jax.Array, data: Any) -> Any:
        """What is trained, at first."""
        if self.adapters is not None:
            return lora.init(key, self.config, self.adapters.rank, self.adapters.targets)
        if data.base is not None:
            return data.base
        return initial(key, self.config)

    def assemble(self, trained: Any, data: Any) -> Any:
        """The whole model, as it is trained."""
        if self.adapters is None:
            return trained
        return lora.attach(data.base, trained, self.adapters.alpha / self.adapters.rank)

    def finished(self, trained: Any, data: Any) -> Any:
        """The whole model, as it is used and saved."""
        if self.adapters is None:
            return trained
        return lora.merge(data.base, trained, self.adapters.alpha / self.adapters.rank)


@lru_cache(maxsize=2)
def _read(path: Path, dtype: str) -> Any:
    """The weights of a folder, which several stages ask for."""
    return decoder.load(path, dtype=jnp.dtype(dtype))[1]


def initial(key: jax.Array, config: decoder.DecoderConfig) -> Any:
    """Parameters of a new model: kernels from N(0, 1 / width).

    The usual 0.02 is that of models with widths of thousands; a small one learns to copy names and
    numbers of a question in two thirds of the steps with its own.
    """
    params = decoder.init_params(key, config)
    scale = 1 / (USUAL_DEVIATION * config.width**0.5)

    def scaled(leaf: jax.Array) -> jax.Array:
        return leaf * scale if leaf.ndim == KERNEL_AXES else leaf

    return params | {"layers": jax.tree.map(scaled, params["layers"])}


class Models:
    """Student and teacher of one vocabulary."""

    def __init__(self, run: DistillRun):
        """Reads configs and tokenizers of folders, no weights.

        Raises:
            HubError, TokenizerError, MissingExtraError: a folder can't be used.
            VocabularyError: tokenizers that differ.
            ConfigError: more tokens than a model has positions; adapters of a new model.
        """
        self.run = run
        own, other = run.student, run.teacher
        paths = [path for path in (own.path, other.path) if path is not None]
        tokenizers = {path: folder_tokenizer(path) for path in paths}
        self.tokenizer: Tokenizer | None = tokenizers[paths[0]] if paths else None
        configs = {path: decoder.read_config(open_folder(path)) for path in paths}
        size = max([c.vocab_size for c in configs.values()], default=run.data.vocabulary)
        student, teacher = (_config(one, configs, size, run) for one in (own, other))
        self.vocabulary = min(student.vocab_size, teacher.vocab_size)
        if len(paths) == 2:
            tokens = [tokenizers[path].tokens for path in paths]
            self.vocabulary = common_vocabulary(student.vocab_size, teacher.vocab_size, *tokens)
        elif self.tokenizer is not None:
            largest = max(self.tokenizer.tokens.values())
            if largest >= self.vocabulary:
                raise ConfigError(
                    f"model {paths[0]}: its tokenizer uses ids up to {largest}, but it has "
                    f"{self.vocabulary} tokens"
                )
        self.student = self._model(own, student, run.lora, "lora")
        still = run.teacher.fit.steps == 0
        self.teacher = self._model(other, teacher, run.teacher.lora, "teacher.lora", still)

    def _model(
        self,
        settings: ModelConfig,
        config: decoder.DecoderConfig,
        adapters: LoraConfig | None,
        name: str,
        still: bool = False,
    ) -> Model:
        if adapters is not None and settings.path is None:
            raise ConfigError(f"{name}: expected null for a new model, whose weights say nothing")
        if adapters is not None:
            key = jax.random.key(0)
            jax.eval_shape(lambda: lora.init(key, config, adapters.rank, adapters.targets))
        language = of_decoder(
            config,
            dtype=jnp.dtype(settings.dtype),
            remat=settings.remat,
            vocabulary=self.vocabulary,
            end=END if self.tokenizer is None else self.tokenizer.ends,
        )
        return Model(settings, config, language, adapters, still or adapters is not None)


def _config(
    settings: ModelConfig, configs: dict[Path, Any], vocabulary: int, run: DistillRun
) -> decoder.DecoderConfig:
    needed = run.data.max_input + run.data.max_output
    if settings.path is not None:
        config = configs[settings.path]
        if needed > config.max_positions:
            raise ConfigError(
                f"data.max_input, data.max_output: {needed} tokens are more than the "
                f"{config.max_positions} positions of {settings.path}"
            )
        return config
    if settings.width % (2 * settings.heads) or settings.heads % settings.kv_heads:
        raise ValueError(
            f"heads, kv_heads: expected heads that divide a width of {settings.width} into even "
            f"parts, and kv_heads that divide them, got {settings.heads} and {settings.kv_heads}"
        )
    return decoder.DecoderConfig.llama(
        vocabulary, settings, needed, settings.kv_heads, settings.tied
    )


def optimizer_of(fit: FitConfig, steps: int) -> optax.GradientTransformation:
    """AdamW: a linear warm-up, a cosine to zero, gradients clipped."""
    warmup = min(steps - 1, round(fit.warmup * steps))
    schedule = optax.warmup_cosine_decay_schedule(0.0, fit.learning_rate, warmup, steps)
    if warmup == 0:
        schedule = optax.cosine_decay_schedule(fit.learning_rate, steps)
    return optax.chain(
        optax.clip_by_global_norm(fit.clip),
        optax.adamw(schedule, b2=fit.beta2, weight_decay=fit.weight_decay),
    )
