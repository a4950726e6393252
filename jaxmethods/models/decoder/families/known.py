"""The families that are known, by the `model_type` of their `config.json`."""

from __future__ import annotations

from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.decoder.families.codegen import read_codegen, table_codegen, write_codegen
from jaxmethods.models.decoder.families.family import Family
from jaxmethods.models.decoder.families.llama import (
    read_llama,
    read_mistral,
    read_qwen2,
    read_qwen3,
    table_llama,
    write_llama,
)
from jaxmethods.models.decoder.families.neox import read_neox, table_neox, write_neox
from jaxmethods.models.decoder.families.opt import read_opt, table_opt, write_opt

FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", read_llama, write_llama, table_llama),
    "mistral": Family("MistralForCausalLM", read_mistral, write_llama, table_llama),
    "qwen2": Family("Qwen2ForCausalLM", read_qwen2, write_llama, table_llama),
    "qwen3": Family("Qwen3ForCausalLM", read_qwen3, write_llama, table_llama),
    "gpt_neox": Family("GPTNeoXForCausalLM", read_neox, write_neox, table_neox),
    "opt": Family("OPTForCausalLM", read_opt, write_opt, table_opt),
    "codegen": Family("CodeGenForCausalLM", read_codegen, write_codegen, table_codegen),
}


def embedding_name(config: DecoderConfig) -> str:
    """The table of tokens in a checkpoint."""
    (entry,) = (e for e in FAMILIES[config.family].table(config) if e.leaves == ("embed/tokens",))
    return entry.name
