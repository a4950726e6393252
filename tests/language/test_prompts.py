"""Texts of questions."""

from __future__ import annotations

import pytest

from jaxmethods.config import ConfigError
from jaxmethods.data.mcq import Question
from jaxmethods.language.prompts import PromptSpec, clean_choice, common_prefix, render


def test_texts_are_built_from_their_fields():
    question = Question("id", "{context}?", ("yes", " no. "), 0, context="It rains")
    spec = PromptSpec("<{instruction}|{question}>", "Say", "{context} / {question}", "A: {choice}")
    assert render(spec, question) == [
        "<Say|It rains / {context}?> A: yes.",
        "<Say|It rains / {context}?> A:  no.",
    ]
    assert clean_choice(" Yes! ") == "Yes!."
    with pytest.raises(ConfigError, match=r"prompt\.choice"):
        render(spec._replace(choice_format="{question}"), question)


def test_the_common_prefix_ends_where_any_row_differs():
    assert common_prefix([[1, 2, 3], [1, 2], [1, 2, 4]]) == 2
    assert common_prefix([[1], [2]]) == 0
