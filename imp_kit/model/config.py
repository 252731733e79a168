"""What the network has to know of a checkpoint."""

from dataclasses import dataclass

# model_type of config.json -> how its language model differs from the others.
FAMILIES = {
    "imp": {"gated": False, "qkv_bias": True},
    "imp_qwen2": {"gated": True, "qkv_bias": True},
    "imp_phi3": {"gated": True, "qkv_bias": False},
}


@dataclass(frozen=True)
class VisionConfig:
    """Geometry of a SigLIP tower; `used_layers` of its layers feed the projector, the rest are not built."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    used_layers: int
    patch_size: int
    image_size: int
    eps: float

    @property
    def num_patches(self) -> int:
        """Image tokens; a remainder of pixels at the right and lower edge is not used (384 = 27 x 14 + 6)."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the language model, and what makes it Phi-2, Qwen1.5 or Phi-3."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int  # fewer than num_heads where several queries share keys and values (arXiv 2305.13245)
    max_positions: int
    rotary_dim: int
    rope_theta: float
    eps: float
    gated: bool  # LLaMA's block (RMSNorm, attention, then SwiGLU, no biases) instead of Phi-2's parallel one
    qkv_bias: bool
    window: int | None = None  # a position sees itself and the window - 1 before it; None: all before it
    window_from: int = 0  # the first layer with that window

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def kv_values_per_token(self) -> int:
        """How many values the keys and values of one position are, in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class ImpConfig:
    """A whole checkpoint: its family, decoder, tower, and how an image is brought to the tower's size."""

    family: str  # a key of FAMILIES
    decoder: DecoderConfig
    vision: VisionConfig
    pad: bool  # pad to a square first (image_aspect_ratio "pad") instead of squashing
    eos_token_ids: tuple[int, ...]
