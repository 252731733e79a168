"""Which tensors the two GGUF files hold, under llama.cpp's names, and which rows of the kit's parameters each is.

Source of the names: llama.cpp's loaders of the architectures phi2, qwen2, phi3 and clip (projector type mlp).
"""

from dataclasses import dataclass
from itertools import accumulate, pairwise

from torch import nn

from imp_kit.model.config import DecoderConfig
from imp_kit.model.imp import ImpModel

ARCHITECTURES = {"imp": "phi2", "imp_qwen2": "qwen2", "imp_phi3": "phi3"}  # by the kit's family
OUTER = {"decoder.embed_tokens": "token_embd", "decoder.norm": "output_norm", "decoder.lm_head": "output"}
INNER = {"norm": "attn_norm", "attention.out": "attn_output", "mlp_norm": "ffn_norm", "mlp.down": "ffn_down"}
TOWER = {
    "layer_norm1": "ln1",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "layer_norm2": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
EMBEDDINGS = {
    "vision.embeddings.patch_embedding": "v.patch_embd",
    "vision.embeddings.position_embedding": "v.position_embd",
    "projector.0": "mm.0",
    "projector.2": "mm.2",
}


@dataclass(frozen=True)
class Target:
    """A tensor of a GGUF file: rows `start` to `stop` of one of the model's parameters."""

    name: str
    parameter: str
    start: int
    stop: int


def decoder_targets(model: ImpModel) -> list[Target]:
    """The tensors of the language model's file."""
    config = model.config
    separate = ARCHITECTURES[config.family] == "qwen2"  # the others have q, k, v in one tensor, and gate and up
    targets = []
    for name, parameter in model.decoder.named_parameters(prefix="decoder"):
        stem, kind = name.rsplit(".", 1)
        if stem in OUTER:
            parts = [OUTER[stem]]
        else:
            _, _, index, inner = stem.split(".", 3)
            parts = [f"blk.{index}.{part}" for part in _inner_parts(inner, separate)]
        ends = accumulate(_rows(config.decoder, parts, parameter), initial=0)
        targets += [Target(f"{part}.{kind}", name, *rows) for part, rows in zip(parts, pairwise(ends), strict=True)]
    return targets


def _inner_parts(inner: str, separate: bool) -> tuple[str, ...]:
    if inner == "attention.qkv":
        return ("attn_q", "attn_k", "attn_v") if separate else ("attn_qkv",)
    if inner == "mlp.up":
        return ("ffn_gate", "ffn_up") if separate else ("ffn_up",)
    return (INNER[inner],)


def _rows(config: DecoderConfig, parts: list[str], parameter: nn.Parameter) -> list[int]:
    total = len(parameter)
    if len(parts) == 3:  # keys and values can have fewer rows than queries
        keys = config.num_kv_heads * config.head_dim
        return [total - 2 * keys, keys, keys]
    return [total // len(parts)] * len(parts)


def tower_targets(model: ImpModel) -> list[Target]:
    """The tensors of the file of tower and projector ("mmproj")."""
    return [
        Target(_tower_name(parameter), parameter, 0, len(value))
        for parameter, value in model.named_parameters()
        if not parameter.startswith("decoder.")
    ]


def _tower_name(parameter: str) -> str:
    stem, kind = parameter.rsplit(".", 1)
    if stem in EMBEDDINGS:
        return f"{EMBEDDINGS[stem]}.{kind}"
    index, inner = stem.removeprefix("vision.encoder.layers.").split(".", 1)
    return f"v.blk.{index}.{TOWER[inner]}.{kind}"
