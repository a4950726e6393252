"""A decoder-only transformer to look inside: Llama, Mistral, Qwen, GPT-NeoX, OPT and CodeGen.

config, params = decoder.load("path/to/model", dtype=jnp.bfloat16, mesh=mesh)
outputs = decoder.forward(params, config, ids, taps=("norms",))
tokens = decoder.generate(params, config, ids, 64, key=key).tokens
"""

from __future__ import annotations

from jaxmethods.models.decoder import lora, peft
from jaxmethods.models.decoder.beams import Beams as Beams
from jaxmethods.models.decoder.beams import beam_search
from jaxmethods.models.decoder.checkpoint import load, read_config, save, shardings
from jaxmethods.models.decoder.config import DecoderConfig as DecoderConfig
from jaxmethods.models.decoder.config import RopeScaling as RopeScaling
from jaxmethods.models.decoder.generation import Generated as Generated
from jaxmethods.models.decoder.generation import Sampling as Sampling
from jaxmethods.models.decoder.generation import generate
from jaxmethods.models.decoder.network import TAPS as TAPS
from jaxmethods.models.decoder.network import Outputs as Outputs
from jaxmethods.models.decoder.network import (
    at,
    embed,
    forward,
    init_params,
    logits_of,
    norms_of,
    unstack_layers,
)
from jaxmethods.models.decoder.slots import Refilled as Refilled
from jaxmethods.models.decoder.slots import generate_in_slots

__all__ = [
    "at",
    "beam_search",
    "embed",
    "forward",
    "generate",
    "generate_in_slots",
    "init_params",
    "load",
    "logits_of",
    "lora",
    "norms_of",
    "peft",
    "read_config",
    "save",
    "shardings",
    "unstack_layers",
]
