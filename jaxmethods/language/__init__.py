"""What methods on language models share: learning to predict tokens, divergences, and prompts.

    from jaxmethods import language
    data = language.Tokens(ids, mask)  # [n, T] rows, and which of their tokens are predicted
    method = language.next_token_learner(config, optax.adamw(1e-4), language.random_rows(32))
    state = method.init(key, data)
    state, metrics = method.step(state, data)

`divergences` compares the logits of a student with a teacher's; `prompts` makes the texts of
multiple-choice questions and their tokens.
"""

from jaxmethods.language import divergences, next_token, prompts
from jaxmethods.language.next_token import LearnerState as LearnerState
from jaxmethods.language.next_token import Tokens as Tokens
from jaxmethods.language.next_token import next_token_learner, next_token_loss, random_rows
from jaxmethods.language.prompts import PromptSpec as PromptSpec
from jaxmethods.language.prompts import clean_choice, render

__all__ = [
    "clean_choice",
    "divergences",
    "next_token",
    "next_token_learner",
    "next_token_loss",
    "prompts",
    "random_rows",
    "render",
]
