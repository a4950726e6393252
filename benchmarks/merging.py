"""Model merging at the size of ViT-B/32 with eight experts, beside PyTorch in a process of its own.

One routed MLP, the whole routed tower, adaptation steps, both surgeries and static merges; then
where each way of merging an MLP wins. "torch" is the way of the published code (weights merged in a
loop over samples and experts); notes compare with the vectorized way (`torch_merging`). Both sides
draw the same weights, and rows exist only where their numbers agree.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import merging_inputs as inputs
from benchmarks.harness import Row, Settings, Timing, Work, prepare_jax, reference, time_in_turns
from jaxmethods import merging
from jaxmethods.merging.adaptive import adaptation, merged_modules, surgery, wemoe
from jaxmethods.merging.adaptive.routers import Router
from jaxmethods.merging.config import SurgeryConfig, WEMoEConfig
from jaxmethods.models.clip import vit

TASKS, BATCH = 8, 16
SIZE = inputs.Size()
LAYER = {"tasks": TASKS, "width": SIZE.hidden_size, "inner": SIZE.intermediate_size}
RANK = 16
ROUNDS = 5
"""Measured at least, however long they take."""


def rows(settings: Settings) -> Iterator[Row]:
    # The seconds of PyTorch's process are not those of this one.
    settings = replace(settings, processor=False)
    for routing in ("sample", "batch"):
        for backward in (False, True):
            yield layer(settings, routing, backward)
    yield from static(settings)
    yield surgery_loop(settings)
    yield deep_surgery(settings)
    for routing in ("sample", "batch"):
        yield tower(settings, routing)
    for routing in ("batch", "sample"):
        yield adapt(settings, routing)
    yield from strategies(settings)


def layer(settings: Settings, routing: str, backward: bool) -> Row:
    """One routed MLP without its router; with `backward` the gradients in h and c too."""
    base, tau = (nested(tree) for tree in inputs.layer(**LAYER))
    h, c = inputs.tokens(BATCH, **LAYER)
    c = c[:1] if routing == "batch" else c

    def run(base: Any, tau: Any, h: jax.Array, c: jax.Array) -> Any:
        activation = vit.activation("quick_gelu")
        mlp = partial(merged_modules.merged_mlp, activation, base, tau)
        if not backward:
            return mlp(h, c)
        return jax.grad(lambda h, c: jnp.sum(jnp.square(mlp(h, c))), (1, 0))(h, c)

    def read(out: Any) -> Any:
        return jnp.ravel(out[0] if backward else out)[:5]

    what = "gradient" if backward else "forward"
    return compare(
        settings,
        Row(f"merging/layer_{routing}_{what}", sizes(), BATCH, "images/s", Timing(0, 0, 0)),
        prepare_jax(run, base, tau, h, c),
        read,
        "layer",
        {"routing": routing, "backward": backward, "batch": BATCH, **LAYER},
    )


def tower(settings: Settings, routing: str) -> Row:
    """Features of a batch of images from the whole routed tower."""
    work = tower_work(routing, SIZE, TASKS, BATCH)
    return compare(
        settings,
        Row(f"merging/tower_{routing}", sizes(), BATCH, "images/s", Timing(0, 0, 0)),
        work,
        lambda out: jnp.ravel(out)[:5],
        "forward",
        {"routing": routing, "batch": BATCH, "tasks": TASKS, **asdict(SIZE)},
    )


def tower_work(routing: str, size: inputs.Size, tasks: int, images: int) -> Work:
    """Features of some images, compiled."""
    model, router, config, vision = upcycled(routing, size, tasks, images)

    def run(model: Any, router: Any, projection: jax.Array, pixels: jax.Array) -> jax.Array:
        groups = 1 if routing == "batch" else None
        out = wemoe.forward(
            model, router, vision, config, pixels, groups=groups, projection=projection
        )
        return out.vision.features

    return prepare_jax(run, model, router, inputs.projection(size), inputs.pixels(size, images))


def adapt(settings: Settings, routing: str) -> Row:
    """One adaptation step on one task's batch: entropy, the routers' gradient, Adam."""
    # The loop over samples keeps all merged weights, 19 GB, or computes each of them twice.
    ways = ("vectorized",) if routing == "sample" else ("loop", "vectorized")
    return compare(
        settings,
        Row(f"merging/adapt_{routing}", sizes(), BATCH, "images/s", Timing(0, 0, 0)),
        adapt_work(routing, SIZE, TASKS, BATCH),
        lambda out: out[1]["loss"][None],
        "adaptation",
        {"routing": routing, "batch": BATCH, "tasks": TASKS, **asdict(SIZE)},
        ways,
    )


def adapt_work(routing: str, size: inputs.Size, tasks: int, images: int) -> Work:
    """An adaptation step on some images of one task, compiled."""
    model, router, config, vision = upcycled(routing, size, tasks, images)
    method = wemoe.adapter(vision, config)
    batch = wemoe.Batch(
        model,
        adaptation.unlabeled([jnp.asarray(inputs.pixels(size, images))]),
        adaptation.stack_heads([jnp.asarray(inputs.head(size))]),
        jnp.asarray(inputs.projection(size)),
        jnp.log(100.0),
    )
    state = jax.jit(method.init)(jax.random.key(0), batch)._replace(routers=router)
    return prepare_jax(method.step, state, batch, donate=(0,))


def upcycled(
    routing: str, size: inputs.Size, tasks: int, images: int
) -> tuple[wemoe.Upcycled, Any, WEMoEConfig, vit.VisionConfig]:
    """A routed tower, its routers, and their configs."""
    merged, base, tau = (nested(tree) for tree in inputs.upcycled(size, tasks))
    router = {"mlp": Router(**jax.tree.map(jnp.asarray, inputs.routers(size, tasks)))}
    model = wemoe.Upcycled(merged, {"mlp": base}, {"mlp": tau})
    config = WEMoEConfig.model_validate(
        {"routing": routing, "batch_size": images, "schedule": "constant"}
    )
    return model, router, config, vit.VisionConfig(**asdict(size))


def deep_surgery(settings: Settings) -> Row:
    """One step of SurgeryV2 on one task's batch; expert features were computed once, before."""
    vision = vit.VisionConfig(**asdict(SIZE))
    base, stack = inputs.towers(SIZE, TASKS)
    expert = nested({key: value[0] for key, value in stack.items()})
    merged = nested(
        {k: w + np.float32(0.3) * (stack[k].sum(0) - TASKS * w) for k, w in base.items()}
    )
    del base, stack
    projection = jnp.asarray(inputs.projection(SIZE))

    def encode(model: Any, pixels: Any, correct: Any, corrections: Any) -> tuple:
        out = vit.forward(
            model["tower"],
            vision,
            pixels,
            projection=model["projection"],
            hooks=vit.Hooks(after=correct),
            per_layer=corrections,
            taps=("token_means",),
        )
        return out.features, out.encoded.token_means

    pixels = jnp.asarray(inputs.pixels(SIZE, BATCH))
    of_expert = {"tower": expert, "projection": projection}
    features, means = jax.jit(lambda model, x: encode(model, x, None, None))(of_expert, pixels)
    del expert, of_expert
    batch = surgery.Batch(
        adaptation.unlabeled([pixels]),
        surgery.Targets(features[None], means.swapaxes(0, 1)[None]),
        {"tower": merged, "projection": projection},
    )
    method = surgery.aligner(SurgeryConfig(deep=True, rank=RANK, batch_size=BATCH), encode)
    modules = surgery.Modules(*(jnp.asarray(x)[None] for x in inputs.corrections(SIZE, RANK)))
    state = jax.jit(method.init)(jax.random.key(0), batch)._replace(modules=modules)
    return compare(
        settings,
        Row("merging/surgery_v2", sizes(rank=RANK), BATCH, "images/s", Timing(0, 0, 0)),
        prepare_jax(method.step, state, batch, donate=(0,)),
        lambda out: out[1]["loss"][None],
        "surgery_v2",
        {"batch": BATCH, "tasks": TASKS, "rank": RANK, **asdict(SIZE)},
    )


def surgery_loop(settings: Settings, steps: int = 1000) -> Row:
    """Training of Surgery, all tasks at once, on cached features; PyTorch: one task's steps."""
    row = Row(
        "merging/surgery_loop",
        sizes(rank=RANK, steps=steps),
        TASKS * steps,
        "task steps/s",
        Timing(0, 0, 0),
    )
    arguments = {"batch": BATCH, "rank": RANK, **asdict(SIZE)}
    small = surgery_scan(1, BATCH, 50)
    with Torch(settings) as torch:
        if torch.exists:
            found = small.call()[1]["loss"][-1:]
            torch.build(
                "surgery_loop", {"way": "vectorized", "steps": 50, "count": BATCH, **arguments}
            )
            agree(row.name, found, torch.numbers, 1e-2)
    work = surgery_scan(TASKS, 2000, steps)
    with Torch(settings) as torch, Torch(settings) as cached:
        works = [work]
        if torch.exists:
            once = torch.build(
                "surgery_loop", {"way": "loop", "steps": 1, "count": 2000, **arguments}
            )
            many = cached.build(
                "surgery_loop", {"way": "vectorized", "steps": 100, "count": 2000, **arguments}
            )
            works += [once, many]
        ours, *others = time_in_turns(works, at_least(settings))
        if not others:
            return replace(row, ours=ours)
        # Per task step times the steps of all tasks.
        loop, vectorized = scaled(others[0], TASKS * steps), scaled(others[1], TASKS * steps / 100)
    return replace(
        row,
        ours=ours,
        torch=replace(vectorized, peak_bytes=cached.peak_bytes),
        reference=reference(row.name),
        note=f"{loop.median / ours.median:,.0f}x PyTorch that encodes at every step, as published",
    )


def surgery_scan(tasks: int, count: int, steps: int) -> Work:
    """So many steps on cached features [tasks, count, P]."""
    features, targets = (jnp.asarray(x) for x in inputs.cached(SIZE, tasks, count))
    method = surgery.aligner(SurgeryConfig(rank=RANK, batch_size=BATCH))
    batch = surgery.Batch(adaptation.unlabeled(list(features)), surgery.Targets(targets))
    down, up, _, _ = (jnp.asarray(x) for x in inputs.corrections(SIZE, RANK))
    modules = surgery.Modules(jnp.stack([down] * tasks), jnp.stack([up] * tasks))
    state = jax.jit(method.init)(jax.random.key(0), batch)._replace(modules=modules)

    def run(state: Any, batch: Any) -> Any:
        return jax.lax.scan(lambda s, _: method.step(s, batch), state, length=steps)

    return prepare_jax(run, state, batch)


def static(settings: Settings) -> Iterator[Row]:
    """Merges of eight towers: bytes read and written once, against those of copying one tower.

    TIES must read everything several times, to find its thresholds, to vote and to merge.
    """
    base, stack = (nested(tree) for tree in inputs.towers(SIZE, TASKS))
    leaf_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(base))
    source = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(base)])
    target = np.empty_like(source)
    ways: dict[str, tuple[Callable, tuple, int]] = {
        "average": (merging.average, (stack,), TASKS + 1),
        "task_arithmetic": (merging.task_arithmetic, (base, stack), TASKS + 2),
        "ties": (merging.ties, (base, stack), TASKS + 2),
    }
    for method, (merge, arguments, trees) in ways.items():
        row = compare(
            settings,
            Row(f"merging/{method}", sizes(), trees * leaf_bytes / 1e9, "GB/s", Timing(0, 0, 0)),
            prepare_jax(merge, *arguments),
            lambda out: [np.ravel(flat(out)[name])[0] for name in list(inputs.shapes(SIZE))[:5]],
            "static",
            {"method": method, "tasks": TASKS, **asdict(SIZE)},
            ways=("loop",) if method == "ties" else ("loop", "vectorized"),
            extra=Work(lambda: np.copyto(target, source)),
        )
        yield row


def strategies(settings: Settings) -> Iterator[Row]:
    """One routed MLP, forward, by every strategy and batch size."""
    base, tau = (nested(tree) for tree in inputs.layer(**LAYER))
    for batch in (1, 2, 4, 16, 64):
        for length in (1, 50):
            h, c = inputs.tokens(batch, **LAYER, length=length)
            works = []
            names = ("merge", "blocks", "expertwise", "once")

            def run(base: Any, tau: Any, h: jax.Array, c: jax.Array, name: str) -> jax.Array:
                activation = vit.activation("quick_gelu")
                if name == "once":
                    return merged_modules.merged_mlp(activation, base, tau, h, c[:1], "merge")
                return merged_modules.merged_mlp(activation, base, tau, h, c, name)  # pyright: ignore

            for name in names:
                works.append(prepare_jax(partial(run, name=name), base, tau, h, c))
            for name, timing in zip(names, time_in_turns(works, settings), strict=True):
                yield Row(
                    "merging/strategies",
                    sizes(batch=batch, tokens=length, strategy=name),
                    batch,
                    "images/s",
                    timing,
                )


def compare(
    settings: Settings,
    row: Row,
    work: Work,
    read: Callable[[Any], Any],
    build: str,
    arguments: Mapping[str, Any],
    ways: tuple[str, ...] = ("loop", "vectorized"),
    extra: Work | None = None,
) -> Row:
    """The row with times of ours and PyTorch's, in turns; numbers must agree.

    `extra` is measured in turns too: a copy, of whose rate the note tells ours is a share.
    """
    found = np.asarray(read(work.call()))
    timings: dict[str, Timing] = {}
    for way in ways:
        with Torch(settings) as torch:
            works = [work] + ([extra] if extra else [])
            if torch.exists:
                works.append(torch.build(build, {**arguments, "way": way}))
                agree(f"{row.name}, {way}", found, torch.numbers)
            measured = time_in_turns(works, at_least(settings))
        timings["ours"] = timings.get("ours", measured[0])
        if extra:
            timings["copy"] = measured[1]
        if torch.exists:
            timings[way] = replace(measured[-1], peak_bytes=torch.peak_bytes)
    ours, notes = timings["ours"], []
    if "copy" in timings:
        size = 2 * row.work / (TASKS + 1 + (row.name != "merging/average"))
        copied = size / timings["copy"].median
        share = row.work / ours.median / copied
        notes.append(f"{100 * share:.0f} % of the rate of copying, {copied:.1f} GB/s")
    if "loop" in timings and "vectorized" in timings:
        notes.append(f"{timings['vectorized'].median / ours.median:.1f}x vectorized PyTorch")
    other = timings.get(ways[0])
    if other and ways[0] == "vectorized":
        notes.append("PyTorch: vectorized, blocks computed again")
    return replace(
        row, ours=ours, torch=other, reference=reference(row.name), note="; ".join(notes)
    )


def agree(name: str, ours: Any, theirs: Any, tolerance: float = 2e-3) -> None:
    """Raises where the two sides have computed something else."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if np.abs(ours - theirs).max() > tolerance * np.abs(theirs).max():
        raise ValueError(f"{name}: ours {ours} isn't PyTorch's {theirs}")


class Torch:
    """PyTorch in a process of its own, for as long as the context lasts."""

    def __init__(self, settings: Settings) -> None:
        self.exists = find_spec("torch") is not None
        self.threads = settings.cores or 1
        self.numbers: list[float] = []
        self.peak_bytes: int | None = None

    def __enter__(self) -> Torch:
        if self.exists:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.torch_merging", str(self.threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        return self

    def __exit__(self, *_: Any) -> None:
        if self.exists:
            self.process.communicate()

    def build(self, name: str, arguments: Mapping[str, Any]) -> Work:
        self.numbers = self._ask({"build": name, "arguments": arguments})["numbers"]

        def call() -> None:
            self.peak_bytes = self._ask({"call": 1})["peak_bytes"]

        return Work(call)

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"PyTorch's process ended with {self.process.wait()}")
        return json.loads(answer)


def nested(tree: Mapping[str, np.ndarray]) -> Any:
    """{"a/b": x} -> {"a": {"b": x}}, on the device."""
    result: dict[str, Any] = {}
    for name, value in tree.items():
        *parents, last = name.split("/")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = jnp.asarray(value)
    return result


def flat(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def sizes(**more: Any) -> dict[str, Any]:
    return {"batch": BATCH, "experts": TASKS, **more}


def at_least(settings: Settings) -> Settings:
    return replace(settings, repeats=ROUNDS, seconds=1e9)


def scaled(timing: Timing, factor: float) -> Timing:
    return replace(
        timing,
        median=factor * timing.median,
        low=factor * timing.low,
        high=factor * timing.high,
    )
