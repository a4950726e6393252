"""Likelihoods where the shared instruction ends at a candidate, or within what is scored."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxmethods.models import decoder
from jaxmethods.novo.score import score
from tests.models.decoder.decoders import LLAMA, random_params

ALIKE = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 11]]


@pytest.mark.parametrize(
    ("sequences", "prompt_lengths"),
    [
        ([ALIKE], None),  # one question: all that its candidates share is the instruction
        ([ALIKE, [[5, 6, 7, 8, 12], [5, 6, 7, 8, 13, 4]]], [2, 2]),  # scored from inside of it
    ],
)
def test_a_likelihood_is_the_sum_over_all_tokens_after_the_prompt(sequences, prompt_lengths):
    params = random_params(LLAMA)
    scores = score(params, LLAMA, sequences, prompt_lengths=prompt_lengths, likelihood=True)
    longest = max(len(one) for question in sequences for one in question)

    @jax.jit
    def log_probabilities(params, ids):
        return jax.nn.log_softmax(decoder.forward(params, LLAMA, ids).logits[0])

    for place, question in enumerate(sequences):
        start = 4 if prompt_lengths is None else prompt_lengths[place]
        for number, sequence in enumerate(question):
            padded = np.zeros((1, longest), np.int32)  # What comes later is not seen.
            padded[0, : len(sequence)] = sequence
            log_p = log_probabilities(params, padded)
            expected = sum(log_p[t - 1, sequence[t]] for t in range(start, len(sequence)))
            np.testing.assert_allclose(scores.likelihood[place, number], expected, atol=2e-4)
            assert scores.lengths[place, number] == len(sequence) - start
