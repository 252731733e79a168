"""The names that tensors have in checkpoints' files, for each family."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class KeyMap:
    """The names that one kind of checkpoint gives to the tensors of an ImpModel."""

    sign: str  # name of a tensor that only checkpoints of this kind have
    embedding: str  # name of the token embeddings
    tower: str  # prefix of the tower's tensors, before "vision_model."
    projector: str  # prefix of the projector's tensors
    layer: str  # prefix of a decoder layer's tensors, "{}" being its number
    inner: dict[str, tuple[str, ...]]  # module inside a layer -> its stored parts, whose rows follow each other in ours
    outer: dict[str, str]  # module outside the layers -> its stored name


def _transformers_names(sign: str, norm: str, inner: dict[str, tuple[str, ...]]) -> KeyMap:
    """A key map in transformers' names."""
    return KeyMap(
        sign=sign,
        embedding="model.embed_tokens.weight",
        tower="model.vision_tower.vision_tower.",
        projector="model.mm_projector.",
        layer="model.layers.{}.",
        inner={"norm": ("input_layernorm",), **inner},
        outer={"decoder.norm": norm, "decoder.lm_head": "lm_head"},
    )


SEPARATE_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
LLAMA = {
    "mlp_norm": ("post_attention_layernorm",),
    "attention.out": ("self_attn.o_proj",),
    "mlp.down": ("mlp.down_proj",),
}
OLD_PHI = KeyMap(  # the first Phi code's
    sign="transformer.embd.wte.weight",
    embedding="transformer.embd.wte.weight",
    tower="transformer.vision_tower.vision_tower.",
    projector="transformer.mm_projector.",
    layer="transformer.h.{}.",
    inner={
        "norm": ("ln",),
        "attention.qkv": ("mixer.Wqkv",),
        "attention.out": ("mixer.out_proj",),
        "mlp.up": ("mlp.fc1",),
        "mlp.down": ("mlp.fc2",),
    },
    outer={"decoder.norm": "lm_head.ln", "decoder.lm_head": "lm_head.linear"},
)
NEW_PHI = _transformers_names(
    "model.final_layernorm.weight",
    "model.final_layernorm",
    {
        "attention.qkv": SEPARATE_QKV,
        "attention.out": ("self_attn.dense",),
        "mlp.up": ("mlp.fc1",),
        "mlp.down": ("mlp.fc2",),
    },
)
QWEN = _transformers_names(
    "model.layers.0.mlp.gate_proj.weight",
    "model.norm",
    {**LLAMA, "attention.qkv": SEPARATE_QKV, "mlp.up": ("mlp.gate_proj", "mlp.up_proj")},
)
PHI3 = _transformers_names(
    "model.layers.0.mlp.gate_up_proj.weight",
    "model.norm",
    {**LLAMA, "attention.qkv": ("self_attn.qkv_proj",), "mlp.up": ("mlp.gate_up_proj",)},
)
KEY_MAPS = {"imp": (OLD_PHI, NEW_PHI), "imp_qwen2": (QWEN,), "imp_phi3": (PHI3,)}
# Present in some files and never read: the tower's head and final norm, and buffers that are computed.
IGNORED = re.compile(r".*(vision_model\.(post_layernorm|head)\..*|\.position_ids|\.rotary_emb\.(inv_freq|cos|sin)\w*)")
