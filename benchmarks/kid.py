"""KID: seconds of a training step for every way to distil, and beside PyTorch.

Random weights and tokens. A step is the whole update: imperfect or generated responses, student,
teacher, loss, gradient, AdamW. Generation never ends early, so that it costs what it may cost. The
rows' notes give each step as a multiple of those of plain distillation (`rkd`) and of fine-tuning
(`sft`), which is what the paper's latencies are. On CPU: 0.9 million parameters learn from 4.9
million; beside PyTorch 58 million from as many. On a GPU: a student of 0.46 billion in bfloat16.
"""

# PyTorch is optional:
# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.decoder import LLAMA, transformers_model
from benchmarks.harness import Row, Settings, Work, prepare_jax, prepare_torch, time_in_turns
from jaxmethods.kid.config import StudentConfig
from jaxmethods.kid.loss import Batch, states_of
from jaxmethods.kid.method import Data, distiller
from jaxmethods.kid.model import of_decoder
from jaxmethods.models import decoder
from jaxmethods.models.decoder.config import DecoderConfig

LEARNING_RATE = 2e-4
APART = {"loss": {"share_prefix": False}}
COMPARED: dict[str, StudentConfig] = {
    "sft": StudentConfig(objective="sft"),
    "rkd": StudentConfig(objective="rkd"),
    "rkd_cached": StudentConfig(objective="rkd"),
    "kid": StudentConfig(objective="kid"),
    "kid_whole_prompts": StudentConfig.model_validate({"objective": "kid"} | APART),
    "kid_clean": StudentConfig.model_validate({"objective": "kid", "loss": {"mle_input": "clean"}}),
    "gkd": StudentConfig(objective="gkd"),
}
"""What is timed. `rkd_cached` reads the teacher's states, kept beforehand; `kid_whole_prompts` runs
the prompt for the predictions again."""


class Sizes(NamedTuple):
    """What is learned from what."""

    student: DecoderConfig
    teacher: DecoderConfig
    batch: int = 16
    prompt: int = 160
    response: int = 64
    dtype: Any = jnp.float32


def small(width: int, layers: int, vocabulary: int = 1024) -> DecoderConfig:
    """A small Llama."""
    return LLAMA.model_copy(
        update={"vocab_size": vocabulary, "width": width, "mlp_width": 8 * width // 3 // 8 * 8}
        | {"layers": layers, "heads": 4, "kv_heads": 4, "tied": True}
        | {"head_dim": width // 4, "rotary_dim": width // 4}
    )


CPU = Sizes(small(128, 4), small(256, 6))
HALF_BILLION = LLAMA.model_copy(
    update={"vocab_size": 151_936, "width": 1024, "mlp_width": 2816, "layers": 24, "tied": True}
    | {"heads": 16, "kv_heads": 16, "head_dim": 64, "rotary_dim": 64}
)
"""The shape of Qwen1.5-0.5B."""
TWO_BILLION = HALF_BILLION.model_copy(
    update={"width": 2048, "mlp_width": 5504, "head_dim": 128, "rotary_dim": 128}
)
GPU = Sizes(HALF_BILLION, TWO_BILLION, batch=16, prompt=512, response=64, dtype=jnp.bfloat16)
BESIDE_TORCH = Sizes(LLAMA, LLAMA, batch=8, prompt=192, response=64)


def rows(settings: Settings) -> Iterator[Row]:
    """Steps of every kind, and plain distillation beside PyTorch."""
    on_cpu = jax.default_backend() == "cpu"
    yield from steps(settings, CPU if on_cpu else GPU, tuple(COMPARED))
    if on_cpu:
        yield beside_torch(settings, BESIDE_TORCH)


def steps(settings: Settings, sizes: Sizes, names: Sequence[str]) -> Iterator[Row]:
    """A step of each, in turns."""
    teacher = jax.jit(lambda key: decoder.init_params(key, sizes.teacher, sizes.dtype))
    params = teacher(jax.random.key(1))
    works = [step_work(name, sizes, params) for name in names]
    timings = dict(zip(names, time_in_turns(works, settings), strict=True))
    for name, timing in timings.items():
        base = [one for one in ("rkd", "sft") if one in timings]
        ratios = [f"{timing.median / timings[one].median:.2f}x {one}" for one in base]
        yield Row(
            name=f"kid/{name}",
            sizes=described(sizes),
            work=sizes.batch,
            unit="rows/s",
            ours=timing,
            note=", ".join(ratios),
        )


def step_work(name: str, sizes: Sizes, teacher: Any) -> Work:
    """One update of a student."""
    config = COMPARED[name]
    student_model = of_decoder(sizes.student, dtype=sizes.dtype)
    teacher_model = of_decoder(sizes.teacher, dtype=sizes.dtype)
    method = distiller(
        student_model,
        teacher_model,
        optax.adamw(LEARNING_RATE),
        config.loss,
        rows=sizes.batch,
        init=lambda key: decoder.init_params(key, sizes.student),
        source=config.source,
    )
    examples = random_examples(sizes)
    if name == "rkd_cached":
        seen = jnp.ones(examples.responses.shape, bool)
        states = jax.jit(
            lambda params: states_of(teacher_model, params, examples)(examples.responses, seen)
        )(teacher)
        examples = examples._replace(teacher_states=states)
    data = Data(examples, teacher if config.loss.divergence.name != "none" else None)
    state = jax.jit(method.init)(jax.random.key(0), data)
    return prepare_jax(method.step, state, data, donate=(0,))


def random_examples(sizes: Sizes) -> Batch:
    """As many as a batch has, all of full length."""
    keys = jax.random.split(jax.random.key(2))
    shapes = (sizes.batch, sizes.prompt), (sizes.batch, sizes.response)
    prompts, responses = (
        jax.random.randint(key, shape, 3, sizes.student.vocab_size)
        for key, shape in zip(keys, shapes, strict=True)
    )
    counted = jnp.ones(shapes[1], bool)
    return Batch(
        prompts, jnp.ones(shapes[0], bool), responses, counted, counted.at[:, -1].set(False)
    )


def beside_torch(settings: Settings, sizes: Sizes) -> Row:
    """A step of reverse KL and likelihood, and the same in PyTorch with logits of all tokens."""
    params = decoder.init_params(jax.random.key(1), sizes.teacher)
    works = [step_work("rkd", sizes, params)]
    theirs = None
    if find_spec("transformers") is not None:
        theirs = prepare_torch(lambda device: torch_step(sizes, params, params, device), settings)
    timings = time_in_turns([*works, *([theirs] if theirs else [])], settings)
    return Row(
        name="kid/rkd_58M",
        sizes=described(sizes),
        work=sizes.batch,
        unit="rows/s",
        ours=timings[0],
        torch=timings[1] if theirs else None,
        note="teacher as large as the student",
    )


def torch_step(sizes: Sizes, own: Any, other: Any, device: str) -> Callable[[], Any]:
    """One update of `transformers`' model, as the reference code bases write it.

    Args:
        own, other: parameters of the student and the teacher.
    """
    import torch

    student = transformers_model(sizes.student, own).to(device).train()
    teacher = transformers_model(sizes.teacher, other).to(device).eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    batch = random_examples(sizes)
    ids = torch.tensor(jnp.concatenate([batch.prompts, batch.responses], 1).tolist())
    ids = ids.to(device)
    counted = torch.zeros_like(ids[:, 1:], dtype=torch.bool)
    counted[:, sizes.prompt - 1 :] = True

    def step() -> float:
        optimizer.zero_grad()
        logits = student(ids).logits[:, :-1]
        with torch.no_grad():
            other = teacher(ids).logits[:, :-1]
        log_q, log_p = logits.log_softmax(-1), other.log_softmax(-1)
        divergence = (log_q.exp() * (log_q - log_p)).sum(-1)
        likelihood = -log_q.gather(-1, ids[:, 1:, None])[..., 0]
        loss = ((divergence + likelihood) * counted).sum() / counted.sum()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def described(sizes: Sizes) -> dict[str, Any]:
    """For a row."""
    counts = [parameters(config) for config in (sizes.student, sizes.teacher)]
    names = [f"{count / 1e6:.1f}M" for count in counts]
    return {
        "student": names[0],
        "teacher": names[1],
        "batch": sizes.batch,
        "prompt": sizes.prompt,
        "response": sizes.response,
        "dtype": jnp.dtype(sizes.dtype).name,
    }


def parameters(config: DecoderConfig) -> int:
    """How many a decoder has."""
    shapes = jax.eval_shape(lambda key: decoder.init_params(key, config), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
