"""Imp: tower, projector and decoder, and the splice of image features into a prompt."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from imp_kit.model.config import ImpConfig
from imp_kit.model.decoder import Decoder, KVCache
from imp_kit.model.vision import SiglipTower


class ImpModel(nn.Module):
    def __init__(self, config: ImpConfig):
        super().__init__()
        self.config = config
        self.vision = SiglipTower(config.vision)
        width = config.decoder.hidden_size
        self.projector = nn.Sequential(nn.Linear(config.vision.hidden_size, width), nn.GELU(), nn.Linear(width, width))
        self.decoder = Decoder(config.decoder)

    @property
    def device(self) -> torch.device:
        return self.decoder.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.embed_tokens.weight.dtype

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (batch, 3, image_size, image_size) -> image embeddings (batch, patches, decoder's hidden_size)."""
        return self.projector(self.vision(pixels.to(self.device, self.dtype)))

    def splice(self, pieces: Sequence[Sequence[int] | Tensor]) -> Tensor:
        """Token ids and image embeddings (patches, hidden_size), in reading order -> (1, n, hidden_size)."""
        parts = [
            piece if isinstance(piece, Tensor) else self.decoder.embed_tokens(self._ids(piece)) for piece in pieces
        ]
        return torch.cat(parts)[None]

    def _ids(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    def new_cache(self, capacity: int, batch: int = 1) -> KVCache:
        """An empty cache of this model's device and dtype."""
        return KVCache.new(self.config.decoder, batch, capacity, device=self.device, dtype=self.dtype)
