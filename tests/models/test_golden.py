"""Tiny checkpoints of every family give the numbers of the reference implementations.

Every folder with a `config.json` and stored outputs is checked, whatever its name and sizes; the
meaning of the arrays and the tolerances: tests/golden/README.md.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.models import decoder
from jaxmethods.models.decoder.generation import generate
from tests.golden_files import FOLDER, read

FOLDERS = sorted(file.parent for file in (FOLDER / "kid").glob("*/io.npz"))
NORMS = sorted((FOLDER / "novo").glob("*_norms.npz"))
assert FOLDERS
assert NORMS


@functools.cache
def load(folder):
    return decoder.load(folder)


@functools.cache
def run(folder):
    config, params = load(folder)
    golden = read(folder / "io.npz")
    forward = jax.jit(
        lambda ids, mask: decoder.forward(params, config, ids, mask=mask, taps=decoder.TAPS)
    )
    padded = {
        side: forward(golden[f"{side}_input_ids"], golden[f"{side}_attention_mask"])
        for side in ("right", "left")
    }
    return golden, padded


def real(golden, side):
    return golden[f"{side}_attention_mask"].astype(bool)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_logits_under_padding_on_either_side(folder):
    golden, outputs = run(folder)
    for side in ("right", "left"):
        tokens = real(golden, side)
        assert np.isfinite(outputs[side].logits).all()
        assert_close(outputs[side].logits[tokens], golden[f"{side}_logits"][tokens])


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_is_read_inside(folder):
    golden, outputs = run(folder)
    tokens, inside = real(golden, "right"), outputs["right"]
    for ours, theirs in [
        (inside.hidden, "hidden_states"),
        (inside.head_outputs, "head_outputs"),
        (inside.mlp_outputs, "mlp_outputs"),
    ]:
        assert_close(ours[:, tokens], golden[f"right_{theirs}"][:, tokens])
    expected = np.linalg.norm(golden["right_head_outputs"], axis=-1)
    assert_close(inside.head_norms[:, tokens], expected[:, tokens])


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_soft_prompts_stand_before_the_embeddings(folder):
    (config, params), (golden, _) = load(folder), run(folder)
    tokens = params["embed"]["tokens"][golden["soft_prompt_input_ids"]]
    embeds = jnp.concatenate([golden["soft_prompt"][None], tokens], axis=1)
    outputs = jax.jit(lambda x: decoder.forward(params, config, inputs_embeds=x))(embeds)
    assert_close(outputs.logits, golden["soft_prompt_logits"])


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_greedy_generation(folder):
    (config, params), (golden, outputs) = load(folder), run(folder)
    expected = golden["greedy_new_tokens"]
    continued = jax.jit(
        lambda ids, mask: generate(
            params, config, ids, mask=mask, new_tokens=expected.shape[1], end=2, pad=0
        )
    )(golden["left_input_ids"], golden["left_attention_mask"])
    np.testing.assert_array_equal(continued.tokens, expected)
    assert_close(outputs["left"].logits[:, -1], golden["greedy_first_scores"])


@pytest.mark.parametrize("file", NORMS, ids=lambda file: file.stem)
def test_head_norms_and_likelihoods(file):
    golden = read(file)
    config, params = load(file.parent / file.stem.removesuffix("_norms"))
    ids, lengths = golden["input_ids"], golden["lengths"]
    outputs = jax.jit(lambda ids: decoder.forward(params, config, ids, taps=("head_norms",)))(ids)
    tokens = np.arange(ids.shape[1]) < lengths[:, None]
    norms = np.moveaxis(outputs.head_norms, 0, 2)  # [B, T, L, H]
    np.testing.assert_allclose(
        norms[tokens], golden["head_norms_all"][tokens], rtol=2e-5, atol=1e-5
    )
    rows = np.arange(len(ids))
    np.testing.assert_allclose(
        norms[rows, lengths - 1], golden["head_norms_last"], rtol=2e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        outputs.logits[rows, lengths - 1], golden["logits_last"], rtol=0, atol=2e-4
    )
    scores = jax.nn.log_softmax(outputs.logits[:, :-1])
    scores = np.take_along_axis(np.asarray(scores), ids[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(
        np.where(tokens[:, 1:], scores, 0), golden["token_logprobs"], rtol=0, atol=2e-4
    )
