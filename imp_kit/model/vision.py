"""The SigLIP tower: an image as a row of patch features. Parameter names are the checkpoints' own."""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from imp_kit.model.config import VisionConfig
from imp_kit.model.packed_linear import GeluLinear


class Attention(nn.Module):
    """Full self-attention over the patches of one image."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            rearrange(project(x), "b n (h d) -> b h n d", h=self.num_heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


class MLP(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.fc1 = GeluLinear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))


class Layer(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_size, stride=config.patch_size)
        empty = torch.empty(config.num_patches, config.hidden_size)  # see the decoder's embed_tokens
        self.position_embedding = nn.Embedding.from_pretrained(empty, freeze=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return rearrange(self.patch_embedding(pixels), "b d h w -> b (h w) d") + self.position_embedding.weight


class Encoder(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.used_layers))


class SiglipTower(nn.Module):
    """Pixels, float (batch, 3, image_size, image_size) in -1..1 -> features (batch, patches, hidden_size).

    Only the layers that Imp reads are built; their output goes on without `post_layernorm`, as in LLaVA.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embeddings(pixels)
        for layer in self.encoder.layers:
            x = layer(x)
        return x
