"""The last student as a model that can be diagnosed: prompts, and the gold queries behind them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxmethods.kid.config import DataConfig
from jaxmethods.kid.loss import Batch
from jaxmethods.kid.recipes.material import Texts, batch_of, encode_prompts, shortened
from jaxmethods.kid.recipes.models import Model
from jaxmethods.models import decoder
from jaxmethods.stages import Diagnosable

ROWS = 64
"""Questions of either split."""
IGNORED = -1


def diagnosable(model: Model, params: Any, texts: Texts, data: DataConfig) -> Diagnosable:
    """A student on its training questions and on those of the first judged split.

    Args:
        model: its sizes.
        params: the whole model's.
        texts: questions as texts and arrays.
        data: how long prompts and queries may be.

    Returns:
        Inputs are tokens of prompt and query [N, T] with their mask, outputs logits of the next
        token [N, T, V]; targets are those of the query.
    """
    config = model.config

    def apply(params: Any, inputs: dict[str, jax.Array]) -> jax.Array:
        return decoder.forward(params, config, inputs["ids"], mask=inputs["mask"]).logits

    asked = next(iter(texts.judged.values())).examples[:ROWS]
    prompts = encode_prompts(texts.tokenizer, texts.questions.prompts(asked))
    prompts = [shortened(ids, data) for ids in prompts]
    queries = texts.tokenizer.encode([example.query for example in asked])
    answers = [[*ids, texts.tokenizer.end] for ids in queries]
    held = batch_of(prompts, answers, max(map(len, prompts)), data.max_output)
    own = jax.tree.map(lambda leaf: leaf[:ROWS], texts.train)
    title = "a text-to-SQL student"
    return Diagnosable(title, apply, params, "cross_entropy", _examples(own), _examples(held))


def _examples(batch: Batch) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs and targets; the token behind the last one is not needed."""
    ids = np.concatenate([batch.prompts, batch.responses], axis=1)
    mask = np.concatenate([batch.prompt_mask, batch.response_mask], axis=1)
    counted = np.concatenate([np.zeros_like(batch.prompt_mask), batch.response_mask], axis=1)
    targets = np.where(counted[:, 1:], ids[:, 1:], IGNORED).astype(np.int32)
    return {"ids": ids[:, :-1], "mask": mask[:, :-1]}, targets
