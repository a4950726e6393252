"""A decoder is asked for numbers of places."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.data.tokenizer import byte_tokenizer
from jaxmethods.errors import UserError
from jaxmethods.models import decoder
from jaxmethods.rsfm.location import geollm
from tests.programs import weights

TOWNS = ("Paris", "Orsay", "Berlin")
COORDINATES = np.array([[48.86, 2.35], [48.70, 2.19], [52.52, 13.40]])
CONFIG = decoder.DecoderConfig(
    family="llama",
    vocab_size=259,
    width=8,
    mlp_width=8,
    layers=1,
    heads=2,
    kv_heads=2,
    head_dim=4,
    rotary_dim=4,
    max_positions=128,
)


def test_what_lies_around_has_distance_and_direction():
    near = geollm.surroundings(COORDINATES, TOWNS, 2)
    assert [own.name for own in near[0]] == ["Orsay", "Berlin"]
    assert [own.direction for own in near[0]] == ["South-West", "North-East"]
    assert near[0][0].kilometers == pytest.approx(21.3, abs=0.5)
    assert (near[1][0].name, near[1][0].direction) == ("Paris", "North-East")


def test_a_prompt_names_the_place_and_its_surroundings():
    near = geollm.surroundings(COORDINATES, TOWNS, 1)[0]
    text = geollm.prompt(COORDINATES[0], "Paris, FR", near, "Rain")
    assert text == (
        "Coordinates: (48.86, 2.35)\n"
        'Address: "Paris, FR"\n'
        'Nearby Places:\n"\n21 km South-West: Orsay\n"\n'
        "Rain (On a Scale from 0.0 to 9.9):"
    )
    bare = geollm.prompt(COORDINATES[0], "", (), "Rain")
    assert bare.splitlines() == ["Coordinates: (48.86, 2.35)", text.splitlines()[-1]]


def test_numbers_are_scaled_by_those_to_learn_from():
    own = geollm.to_scale(np.array([-5.0, 10.0, 30.0]), np.array([0.0, 20.0]))
    np.testing.assert_allclose(own, [0, 4.95, 9.9])


def test_the_expectation_is_over_the_answers_a_decoder_finds_likely():
    params = weights(decoder.init_params, CONFIG, scale=0.5)
    prompts = ["Rain in Paris:", "Rain in the desert:"]
    answers = ("1.0", "3.0")
    found = geollm.expected_answers(params, CONFIG, byte_tokenizer, prompts, answers, batch=4)

    def likelihood(prompt, answer):
        ids = jnp.asarray(byte_tokenizer([f"{prompt} {answer}."])[0])
        logits = jax.nn.log_softmax(decoder.forward(params, CONFIG, ids[None]).logits[0])
        start = len(byte_tokenizer([f"{prompt} "])[0])
        return sum(float(logits[place - 1, ids[place]]) for place in range(start, len(ids)))

    scores = np.array([[likelihood(own, answer) for answer in answers] for own in prompts])
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(found, shares @ [1.0, 3.0], rtol=1e-4)
    with pytest.raises(UserError, match=r"place 0: .* more than the model's 128"):
        geollm.expected_answers(params, CONFIG, byte_tokenizer, ["x" * 200], answers)
