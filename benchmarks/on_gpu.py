"""Everything that waits for an accelerator, in one call: `bash benchmarks/on_gpu.sh`.

The rows that matter most come first and each is written when it is measured, so that a call that is
cut off keeps what it has. Rows are those of the other modules at an accelerator's sizes; a method
adds its own to `PLAN`. What doesn't fit the device's memory, or fails, is a line in `failures`.

    python -m benchmarks.on_gpu [--minutes 8] [--json FILE] [--only NAME ...] [--tiny]
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import (
    bilevel,
    commformer,
    decoder,
    environments,
    interpret,
    kid,
    lsm,
    merging,
    novo,
    obd,
    rsfm,
    vqcd,
)
from benchmarks import merging_inputs as inputs
from benchmarks.__main__ import describe
from benchmarks.harness import Row, Settings, available_bytes, prepare_jax, time_in_turns
from jaxmethods import envs
from jaxmethods.files import write_atomically
from jaxmethods.merging.adaptive import merged_modules
from jaxmethods.models.clip import vit
from jaxmethods.obd.config import OBDConfig
from jaxmethods.records.provenance import describe_environment


class Sizes(NamedTuple):
    """How large everything is: an accelerator's, or a rehearsal's."""

    environments: tuple[int, ...] = (4096, 65_536, 256, 16, 1)
    loop: tuple[tuple[int, int], ...] = ((2048, 32), (20, 200))
    """(environments, steps of a roll-out)"""
    seeds: int = 64
    distillation: OBDConfig = OBDConfig()
    sets: tuple[int, ...] = (1, 64, 16, 4)
    images: tuple[int, ...] = (16, 128, 1024, 1)
    """Each with merged weights of its own."""
    tower: inputs.Size = inputs.Size()
    model: Any = decoder.LLAMA_7B
    decoding: decoder.Sizes = decoder.Sizes(new=128, prefill=2048)
    scoring: novo.Sizes = novo.Sizes(
        questions=64, batch_tokens=16_384, naive=64, one=8, torch_one=4, torch_batched=8
    )
    planners: tuple[int, ...] = (64, 32)
    """Widths of VQ-CD's U-Net."""
    episodes: tuple[int, ...] = (30, 1, 1024)
    """Plans at once."""
    distilled: kid.Sizes = kid.GPU
    spoken: lsm.Sizes = lsm.GPU
    sensed: rsfm.Sizes = rsfm.GPU
    diagnosed: interpret.Language = interpret.DECODER
    inner: bilevel.Sizes = bilevel.Sizes()
    inner_steps: int = 100
    dtype: Any = jnp.bfloat16


TINY = Sizes(
    environments=(2,),
    loop=((4, 5),),
    seeds=1,
    distillation=OBDConfig(n_syn=8, batch=16, inner_steps=3),
    sets=(2,),
    images=(2,),
    tower=inputs.Size(hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                      num_attention_heads=2, image_size=16, patch_size=8, projection_dim=8),
    model=decoder.LLAMA.model_copy(update={
        "vocab_size": 64, "width": 16, "mlp_width": 24, "layers": 1, "heads": 2, "kv_heads": 2,
        "head_dim": 8, "rotary_dim": 8}),
    decoding=decoder.Sizes(prompt=4, new=4, prefill=8, batches=(1,)),
    scoring=novo.Sizes(questions=4, batch_tokens=512, naive=2, one=2, torch_one=1, torch_batched=2),
    planners=(8,),
    episodes=(2,),
    distilled=kid.Sizes(kid.small(16, 1, 32), kid.small(16, 1, 32), 2, 8, 4),
    spoken=lsm.TRIAL,
    sensed=rsfm.Sizes(models=(("tiny", rsfm.TINY.model_copy(update={
        "encoder": rsfm.TINY.encoder.model_copy(update={"width": 48, "depth": 1, "image_size": 16}),
        "decoder_depth": 1}), 2),)),
    diagnosed=interpret.Language(decoder.LLAMA.model_copy(update={
        "vocab_size": 64, "width": 16, "mlp_width": 24, "layers": 1, "heads": 2, "kv_heads": 2,
        "head_dim": 8, "rotary_dim": 8}), sequences=2, tokens=8, spectrum=4, top=6),
    inner=bilevel.Sizes(width=8, hidden=1, pairs=8, judged=16),
    inner_steps=24,
    dtype=jnp.float32,
)  # fmt: skip
TASKS = 8


def simulators(settings: Settings, sizes: Sizes) -> Iterator[Row]:
    """Roll-outs of one environment at all sizes, of the others at the first."""
    first, *_ = sizes.environments
    names = [n for n in envs.ENVIRONMENTS if n not in environments.NEEDS]
    for name in names if sizes is not TINY else names[:1]:
        env = envs.make(name, preset=environments.PRESETS.get(name))
        for number in sizes.environments if name == names[0] else (first,):
            yield environments.measure(name, env, number, settings)


def training(settings: Settings, sizes: Sizes) -> Iterator[Row]:
    """CommFormer's whole loop, and many seeds of it."""
    for number, rollout in sizes.loop:
        yield commformer.loop("loop_many", "reference", settings, number, rollout)
    yield commformer.seeds(settings, sizes.seeds)


def distillation(settings: Settings, sizes: Sizes) -> Iterator[Row]:
    """OBD's outer step for 1 to 64 sets in one program."""
    source = obd.random_source(rows=200_000 if sizes is not TINY else 64)
    for number in sizes.sets:
        work = obd.step_work(sizes.distillation, source, number)
        (timing,) = time_in_turns([work], settings)
        yield Row(
            name="obd/sets",
            sizes={"sets": number, **obd.sizes_of(sizes.distillation)},
            work=60 * number,
            unit="outer steps/min",
            ours=timing,
        )


def planning(settings: Settings, sizes: Sizes) -> Iterator[Row]:
    """VQ-CD's updates and plans."""
    for dim in sizes.planners:
        yield from vqcd.training(settings, dim)
        for episodes in sizes.episodes:
            yield from vqcd.plans(settings, dim, episodes)


def language_model(settings: Settings, sizes: Sizes) -> Iterator[Row]:
    """Decoding and prefill of a model of 7 billion random weights."""
    yield from decoder.family(settings, sizes.model, sizes.decoding, sizes.dtype)


def text_to_sql(settings: Settings, sizes: Sizes) -> Iterator[Row]:
    """A step of fine-tuning, plain distillation, KID and on-policy distillation."""
    yield from kid.steps(settings, sizes.distilled, ("sft", "rkd", "kid", "gkd"))


def speech(settings: Settings, sizes: Sizes) -> Iterator[Row]:
    """Features, a large encoder, and decoding of 7 billion behind speech."""
    yield lsm.features(settings, sizes.spoken)
    yield lsm.listening(settings, sizes.spoken)
    yield from lsm.decoding(settings, sizes.spoken)


def remote_sensing(settings: Settings, sizes: Sizes) -> Iterator[Row]:
    """Features and pretraining of Ti/8 and L/16."""
    yield from rsfm.models(settings, sizes.sensed)


def diagnostics(settings: Settings, sizes: Sizes) -> Iterator[Row]:
    """Spectrum and largest eigenvalues of a decoder of 110 million parameters."""
    yield from interpret.language(settings, sizes.diagnosed)


def hypergradients(settings: Settings, sizes: Sizes) -> Iterator[Row]:
    """Every mode of `bilevel.solve`."""
    yield from bilevel.modes(settings, sizes.inner, sizes.inner_steps)


def routed_towers(settings: Settings, sizes: Sizes) -> Iterator[Row]:
    """WEMoE's features, and one adaptation step, where every image has weights of its own."""
    for images in sizes.images:
        for make in (merging.tower_work, merging.adapt_work):
            work = make("sample", sizes.tower, TASKS, images)
            (timing,) = time_in_turns([work], settings)
            yield Row(
                name=f"merging/{make.__name__.removesuffix('_work')}_sample",
                sizes={"batch": images, "experts": TASKS},
                work=images,
                unit="images/s",
                ours=timing,
            )


def kernel(settings: Settings, sizes: Sizes) -> Iterator[Row]:
    """One merged MLP: the Pallas kernel beside XLA's programs of the same numbers."""
    width, inner = sizes.tower.hidden_size, sizes.tower.intermediate_size
    shape = {"tasks": TASKS, "width": width, "inner": inner}
    base, tau = (merging.nested(tree) for tree in inputs.layer(**shape))
    for images in sizes.images:
        h, c = inputs.tokens(images, **shape)

        def run(base: Any, tau: Any, h: jax.Array, c: jax.Array, name: Any) -> jax.Array:
            return merged_modules.merged_mlp(vit.activation("quick_gelu"), base, tau, h, c, name)

        names = ("fused", "blocks", "merge", "expertwise")
        works = [prepare_jax(partial(run, name=name), base, tau, h, c) for name in names]
        expected = works[1].call()
        for name, work, timing in zip(names, works, time_in_turns(works, settings), strict=True):
            off = jnp.max(jnp.abs(work.call() - expected)) / jnp.max(jnp.abs(expected))
            yield Row(
                name="merging/kernel",
                sizes={"batch": images, "strategy": name},
                work=images,
                unit="images/s",
                ours=timing,
                note=f"off from blocks by {float(off):.1e} of the largest entry",
            )


def voting(settings: Settings, sizes: Sizes) -> Iterator[Row]:
    """NoVo's scores of candidates, by every way there is."""
    yield from novo.ways(settings, sizes.model, sizes.scoring, sizes.dtype)


PLAN: dict[str, Callable[[Settings, Sizes], Iterator[Row]]] = {
    "simulators": simulators,
    "training": training,
    "distillation": distillation,
    "routed_towers": routed_towers,
    "planning": planning,
    "text_to_sql": text_to_sql,
    "speech": speech,
    "remote_sensing": remote_sensing,
    "kernel": kernel,
    "diagnostics": diagnostics,
    "hypergradients": hypergradients,
    "language_model": language_model,
    "voting": voting,
}
"""The most important first."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.on_gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="no row begins after this")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/DEVICE.json")
    parser.add_argument("--only", nargs="+", choices=PLAN, default=list(PLAN))
    parser.add_argument("--tiny", action="store_true", help="a rehearsal with tiny sizes")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    sizes = TINY if options.tiny else Sizes()
    settings = Settings(repeats=2, seconds=0.01) if options.tiny else Settings(5, 4.0)
    content: dict[str, Any] = {"environment": environment(), "rows": [], "failures": {}}
    file = options.json or Path(__file__).parent / "results" / f"{device_name()}.json"
    for name in options.only:
        try:
            for row in PLAN[name](settings, sizes):
                content["rows"].append(row.as_json())
                write_atomically(file, json.dumps(content, indent=1) + "\n")
                print(describe(content["rows"][-1]), flush=True)
                if time.monotonic() - start > 60 * options.minutes:
                    print(f"stopped in {name}: {options.minutes:g} minutes are over")
                    return 0
        except Exception as error:  # the other rows are still worth having
            content["failures"][name] = (
                f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
            )
            write_atomically(file, json.dumps(content, indent=1) + "\n")
            print(f"{name}: {content['failures'][name]}", flush=True)
        jax.clear_caches()
    return 1 if content["failures"] else 0


def environment() -> dict[str, Any]:
    """Device, driver, memory and versions."""
    found = describe_environment() | {"memory": f"{available_bytes() / 1e9:.0f} GB"}
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        asked = subprocess.run(query, capture_output=True, text=True, check=False)
        found["driver"] = asked.stdout.strip().replace("\n", "; ")
    return found


def device_name() -> str:
    """The device's kind as a file's name: nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", jax.devices()[0].device_kind.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
