"""What is timed beside PyTorch is the same work."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import rsfm as bench
from benchmarks.harness import Settings
from jaxmethods.models.geovit import checkpoint, encode
from jaxmethods.models.geovit.config import EncoderConfig
from jaxmethods.rsfm.config import MAEConfig
from jaxmethods.rsfm.pretraining import satmae

pytestmark = pytest.mark.slow  # of benchmarks, not of the library

SMALL = MAEConfig(
    encoder=EncoderConfig(width=16, depth=2, heads=2, patch=4, image_size=16, positions="learned"),
    decoder_width=16,
    decoder_depth=1,
    decoder_heads=2,
)
GROUPS = SMALL.model_copy(
    update={
        "encoder": EncoderConfig(
            width=16,
            depth=1,
            heads=2,
            patch=4,
            image_size=8,
            channels=3,
            embedding="grouped",
            positions="group",
            groups=((2, 0), (1,)),
            channel_width=8,
        ),
        "decoder_channel_width": 8,
    }
)
SIZES = bench.Sizes((("small", SMALL, 4),), "float32", (40, 8), 6, 2, 10)


def test_every_row_has_a_neighbor_in_pytorch():
    pytest.importorskip("torch")
    settings = Settings(3, 0.1, 1)
    rows = [bench.sweep(settings, SIZES), bench.nearest(settings, SIZES)]
    rows += bench.models(settings, SIZES)
    assert all(row.torch for row in rows)
    assert [row.work for row in rows] == [48, 6, 4, 4]


def test_pytorchs_encoder_is_ours():
    torch = pytest.importorskip("torch")
    from benchmarks import torch_rsfm

    torch.manual_seed(0)
    model = torch_rsfm.Autoencoder(SMALL)
    names = {"embed": "patch_embed.proj", "cls": "cls_token", "positions": "pos_embed"}
    own = {}
    for name, value in model.state_dict().items():
        first, *rest = name.split(".")
        new = ".".join([names.get(first, first), *rest])
        for part in ("qkv", "proj"):
            new = new.replace(f".{part}.", f".attn.{part}.") if "blocks" in new else new
        for part in ("fc1", "fc2"):
            new = new.replace(f".{part}.", f".mlp.{part}.")
        if not name.startswith(("narrow", "decoder", "last", "pred", "mask")):
            own[new] = value.numpy()
    loaded = checkpoint.load(own, heads=2)
    images = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = model.features(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    ours = jax.jit(lambda x: encode(loaded.params, loaded.config, x).cls)(jnp.asarray(images))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_pytorchs_groups_are_compared_with_their_own_bands():
    torch = pytest.importorskip("torch")
    from benchmarks import torch_rsfm

    model = torch_rsfm.GroupAutoencoder(GROUPS)
    images = np.random.default_rng(1).standard_normal((2, 8, 8, 3)).astype(np.float32)
    target = model.standard(torch.tensor(images).permute(0, 3, 1, 2))
    tokens = torch.zeros(2, 8, 16)
    with torch.no_grad():
        for pred in model.pred:
            pred.bias.zero_()
        theirs = model.errors(tokens, target).numpy()
    pred = jnp.zeros((2, 3, 4, 16))
    for place in range(8):
        hidden = jnp.zeros((2, 8)).at[:, place].set(1)
        own = satmae.loss(GROUPS, jnp.asarray(images), pred, hidden)
        np.testing.assert_allclose(own, theirs[:, place].mean(), rtol=1e-5)
