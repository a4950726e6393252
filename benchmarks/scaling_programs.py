"""The sharded steps of the recipes as shapes alone: nothing is allocated and nothing is run.

A `Program` says for a number of devices which mesh a user would take, and makes the method with the
shapes of its data. What grows with the devices is said in `grows`: images, rows, environments or
tasks of each device are the same for any number, except where a recipe's size is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import optax

from benchmarks import kid as distilled
from benchmarks import merging_inputs as inputs
from benchmarks import rsfm as sensed
from benchmarks.commformer import UPDATES
from jaxmethods import envs
from jaxmethods.commformer import method as commformer
from jaxmethods.commformer import reference as reference_preset
from jaxmethods.commformer.recipes.train import RULES as TEAM_RULES
from jaxmethods.config import MeshConfig
from jaxmethods.devices.sharding import make_mesh, shardings
from jaxmethods.kid.loss import Batch
from jaxmethods.kid.method import Data, distiller
from jaxmethods.kid.model import of_decoder
from jaxmethods.kid.recipes.learning import BATCH_RULES
from jaxmethods.layout import Layout, seed_axes
from jaxmethods.merging.adaptive import adaptation, wemoe
from jaxmethods.merging.config import WEMoEConfig
from jaxmethods.method import Method
from jaxmethods.models import decoder
from jaxmethods.models.clip import vit
from jaxmethods.models.decoder.network import RULES as DECODER_RULES
from jaxmethods.rsfm.config import OptimizerConfig, PretrainConfig
from jaxmethods.rsfm.pretraining.method import pretrainer
from jaxmethods.rsfm.pretraining.views import Pixels
from jaxmethods.rsfm.recipes.objectives import LAYOUT as SENSED_LAYOUT
from jaxmethods.training.loop import abstract_state, compile_chunk
from jaxmethods.vqcd import AlignmentConfig
from jaxmethods.vqcd.recipes.spaces import TOGETHER_LAYOUT
from jaxmethods.vqcd.spaces.aligner import AlignmentRows, aligner, parallel

Made = tuple[Method, Any]
"""A method, and the shapes of its batch."""


class Program(NamedTuple):
    """A recipe's step for any number of devices."""

    title: str
    make: Callable[[int], Made]
    """Number of devices -> method and batch."""
    layout: Layout
    grows: str
    """What of each device stays as it is; empty where the whole is given."""
    mesh: Callable[[int], MeshConfig] = lambda devices: MeshConfig(data=devices)


def compiled(program: Program, devices: int) -> Any:
    """The program that a run with one seed would run a step of, for so many devices.

    Args:
        program: which.
        devices: how many; there must be as many, virtual ones will do.

    Returns:
        What `jax.jit(...).lower(...).compile()` returns.
    """
    method, batch = program.make(devices)
    mesh = make_mesh(program.mesh(devices))
    layout = program.layout
    axes = seed_axes(batch, layout.per_seed)
    batch = _placed(batch, shardings(batch, layout.batch, 1, mesh, axes))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    # Some functions have another form for a CPU, which is not what this is about.
    with mock.patch("jax.default_backend", return_value="tpu"):
        state = abstract_state(
            method, keys, batch, lambda tree: shardings(tree, layout.state, 1, mesh), axes
        )
        return compile_chunk(method, state, batch, 1, axes).run


def _placed(tree: Any, places: Any) -> Any:
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        tree,
        places,
    )


def shape(*sizes: int, dtype: Any = jnp.float32) -> Any:
    """An array that isn't there."""
    return jax.ShapeDtypeStruct(sizes, dtype)


def team(environments: int = 128, rollout: int = 32, size: str = "reference") -> Program:
    """CommFormer's loop: roll-out, ten epochs of PPO, graph."""

    def make(devices: int) -> Made:
        network, graph, ppo = reference_preset()
        own = ppo.model_copy(update={"environments": environments * devices, "rollout": rollout})
        env: Any = envs.make("predator_prey", preset=size)
        return commformer.trainer(env, network, graph, own, UPDATES), None

    grows = f"{environments} environments, {rollout} steps"
    return Program("CommFormer loop", make, Layout(state=TEAM_RULES), grows)


def language(
    objective: str,
    sizes: distilled.Sizes = distilled.GPU,
    rows: int = 4,
    split: str = "data",
    title: str = "",
) -> Program:
    """A decoder's update by fine-tuning or KID; rows are split over `data`, weights over `fsdp`."""
    config = distilled.COMPARED[objective]

    def make(devices: int) -> Made:
        number = rows * devices if split == "data" else rows
        # It counts tokens of all devices, and after each chunk the head's gradient is added up.
        loss = config.loss.model_copy(
            update={"logit_chunk": config.loss.logit_chunk * number // rows}
        )
        taught = config.loss.divergence.name != "none"
        method = distiller(
            of_decoder(sizes.student, dtype=jnp.float32),
            of_decoder(sizes.teacher, dtype=jnp.float32) if taught else None,
            optax.adamw(distilled.LEARNING_RATE),
            loss,
            rows=number,
            init=lambda key: decoder.init_params(key, sizes.student),
            source=config.source,
        )
        own = jax.eval_shape(lambda: distilled.random_examples(sizes._replace(batch=number)))
        teacher = jax.eval_shape(lambda: decoder.init_params(jax.random.key(0), sizes.teacher))
        slots = shape(number, dtype=jnp.int32)
        return method, Data(Batch(*own), teacher if taught else None, slots=slots)

    by_data = split == "data"
    return Program(
        title,
        make,
        Layout(state=DECODER_RULES, batch=BATCH_RULES),
        f"{rows} rows" if by_data else "",
        lambda devices: MeshConfig(data=devices) if by_data else MeshConfig(fsdp=devices),
    )


def pretraining(config: Any = sensed.LARGE, images: int = 64) -> Program:
    """A masked autoencoder's update, ViT-L/16 on 224 pixels."""

    def make(devices: int) -> Made:
        number, own = images * devices, config.encoder
        training = PretrainConfig(
            steps=1000, batch=number, optimizer=OptimizerConfig(), crop=1.0, mirror=False
        )
        pixels = shape(number, own.image_size, own.image_size, own.channels)
        ends = shape(own.channels), shape(own.channels)
        return pretrainer(config, training), Pixels(
            pixels, *ends, slots=shape(number, dtype=jnp.int32)
        )

    return Program("MAE pretraining", make, SENSED_LAYOUT, f"{images} images")


def adaptation_of_routers(size: inputs.Size, tasks: int = 8, images: int = 16) -> Program:
    """WEMoE's test-time step: every task's images through every expert, sizes of the paper."""

    def make(devices: int) -> Made:
        del devices
        config = WEMoEConfig.model_validate(
            {"routing": "batch", "batch_size": images, "schedule": "constant"}
        )
        vision = vit.VisionConfig(**asdict(size))
        base = jax.eval_shape(lambda: vit.init(jax.random.key(0), vision))
        stack = jax.tree.map(lambda leaf: shape(tasks, *leaf.shape), base)
        batch = wemoe.Batch(
            jax.eval_shape(lambda base, stack: wemoe.upcycle(base, stack, config), base, stack),
            adaptation.Unlabeled(
                shape(tasks, images, size.image_size, size.image_size, 3),
                shape(tasks, dtype=jnp.int32),
            ),
            adaptation.Heads(
                shape(tasks, 100, size.projection_dim), shape(tasks, 100, dtype=jnp.bool_)
            ),
            shape(size.projection_dim, size.hidden_size),
            shape(),
        )
        return wemoe.adapter(vision, config), batch

    def mesh(devices: int) -> MeshConfig:
        data = min(devices, tasks)
        return MeshConfig(data=data, fsdp=devices // data)

    return Program("WEMoE adaptation", make, Layout(batch=wemoe.RULES), "", mesh)


def tasks_side_by_side(tasks: int = 4, rows: int = 10_000, columns: int = 39) -> Program:
    """VQ-CD's alignment modules, one of every task."""

    def make(devices: int) -> Made:
        number = tasks * devices
        counts = (shape(number, dtype=jnp.int32) for _ in range(3))
        batch = {"states": AlignmentRows(shape(number, rows, columns), *counts)}
        one = parallel(aligner(AlignmentConfig()))
        method = Method(
            lambda key, batch: {"states": one.init(key, batch["states"])},
            lambda state, batch: _of_side(one.step(state["states"], batch["states"])),
        )
        return method, batch

    return Program("VQ-CD parallel tasks", make, TOGETHER_LAYOUT, f"{tasks} tasks")


def _of_side(found: tuple[Any, Any]) -> tuple[Any, Any]:
    return {"states": found[0]}, found[1]


def programs() -> dict[str, Program]:
    """What the page shows; sizes are those of an accelerator."""
    return {
        "commformer": team(),
        "decoder": language("sft", title="decoder 0.46 B"),
        "decoder_fsdp": language("sft", rows=4, split="fsdp", title="decoder, weights over fsdp"),
        "kid": language("kid", title="KID, 0.46 B from 1.8 B"),
        "mae": pretraining(),
        "wemoe": adaptation_of_routers(inputs.Size()),
        "vqcd": tasks_side_by_side(),
    }
