"""A whole model of Imp's kind, small enough to be read at once: tower, projector, decoder.

It stands alone: only torch is imported. Imp's own layers (imp_kit.model) differ in details, not in the plan: rotary
positions, a cache of keys and values, attention and MLP side by side.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS = 4


class Layer(nn.Module):
    """Attention, then an MLP, each added to what came in. With `causal` a token sees only itself and those before."""

    def __init__(self, width: int, causal: bool):
        super().__init__()
        self.causal = causal
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, dim=2))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


class Tower(nn.Module):
    """Pixels (batch, 3, height, width) -> a vector for each patch (batch, patches, width)."""

    def __init__(self, patch: int, patches: int, width: int, depth: int):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.position = nn.Parameter(0.3 * torch.randn(patches, width))
        self.layers = nn.Sequential(*(Layer(width, causal=False) for _ in range(depth)))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(self.patches(pixels).flatten(2).transpose(1, 2) + self.position)


class Decoder(nn.Module):
    """Vectors (batch, n, width) -> scores of the next word after each (batch, n, words)."""

    def __init__(self, words: int, longest: int, width: int, depth: int):
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(0.3 * torch.randn(words, width), freeze=False)
        self.position = nn.Parameter(0.3 * torch.randn(longest, width))
        self.layers = nn.Sequential(*(Layer(width, causal=True) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(x + self.position[: x.shape[1]])))


class TinyImp(nn.Module):
    """The tower looks, the projector translates, the decoder reads the image's vectors as if they were words."""

    def __init__(self, words: int, longest: int, patch: int = 16, patches: int = 18, width: int = 96, depth: int = 3):
        super().__init__()
        self.tower = Tower(patch, patches, width, depth)
        self.projector = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.decoder = Decoder(words, longest, width, depth)

    def forward(self, features: Tensor, ids: Tensor) -> Tensor:
        """The tower's features and the words after them (batch, n) -> scores of the next word after each."""
        image = self.projector(features)
        x = torch.cat((image, self.decoder.embed(ids)), dim=1)  # the splice
        return self.decoder(x)[:, image.shape[1] :]

    @torch.no_grad()
    def answer(self, features: Tensor, ids: Tensor, stop: int, most: int) -> list[list[int]]:
        """The likeliest word, again and again, until `stop`; all rows of `ids` have the same length."""
        start = ids.shape[1]
        for _ in range(most):
            ids = torch.cat((ids, self(features, ids)[:, -1:].argmax(dim=2)), dim=1)
            if (ids[:, start:] == stop).any(dim=1).all():
                break
        written = [row + [stop] for row in ids[:, start:].tolist()]
        return [row[: row.index(stop)] for row in written]
