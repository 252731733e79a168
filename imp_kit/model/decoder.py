"""The language model: blocks of Phi-2 or of LLaMA's kind over a preallocated cache of keys and values."""

import functools
import math
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imp_kit.errors import MemoryLimitError
from imp_kit.model.config import DecoderConfig
from imp_kit.model.memory import free_memory
from imp_kit.model.packed_linear import GeluLinear, has_amx

WORTH_ASKING = 100e6  # bytes; below, what is free need not be asked for
# In 16 bits torch 2.13 reads the keys twice as fast for two queries as for one on an AMD EPYC with AVX-512, and three
# times as slowly on an Intel Xeon with matrix tiles.
TWO_QUERIES = not has_amx()


class KVBuffer:
    """The memory of caches that share their beginning: (2, layers, batch, heads, capacity, head_dim).

    Raises MemoryLimitError where it would not fit: a CPU would begin, and be killed while it fills it.
    """

    def __init__(self, shape: tuple[int, ...], *, device: torch.device, dtype: torch.dtype):
        size = math.prod(shape) * dtype.itemsize
        free = free_memory(device) if size > WORTH_ASKING else None
        if free is not None and size > free:
            raise MemoryLimitError(
                f"Keys and values of {shape[2]} x {shape[-2]} positions need {size / 1e9:.1f} GB on {device}, but "
                f"{free / 1e9:.1f} GB are free. Choose a smaller max_new_tokens or batch, or a smaller checkpoint."
            )
        self.tensor = torch.empty(shape, device=device, dtype=dtype)
        self.caches: WeakSet[KVCache] = WeakSet()
        self.step: Any = None  # what a GPU captured on this memory: see cuda_graph.py


class KVCache:
    """Keys and values of every layer, each (batch, heads, capacity, head_dim); the first `length` are filled."""

    def __init__(self, buffer: KVBuffer, length: int = 0, end: int = 0):
        self.buffer, self.length, self.end = buffer, length, end  # up to `end` this cache may write
        buffer.caches.add(self)

    @classmethod
    def new(
        cls, config: DecoderConfig, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> "KVCache":
        shape = (2, config.num_layers, batch, config.num_kv_heads, capacity, config.head_dim)
        return cls(KVBuffer(shape, device=device, dtype=dtype), end=capacity)

    @property
    def nbytes(self) -> int:
        """Bytes of the memory, filled or not."""
        return self.buffer.tensor.nbytes

    def extend(self, layer: int, new: Tensor) -> Tensor:
        """Write one layer's new keys and values, (2, batch, heads, n, head_dim), after the filled part.

        Returns everything up to their end.
        """
        end = self.length + new.shape[-2]
        kv = self.buffer.tensor[:, layer]
        kv[..., self.length : end, :] = new
        return kv[..., :end, :]

    def fork(self, end: int) -> "KVCache":
        """A cache that begins with what is filled here and may be written up to `end`; this one stays as it is.

        It shares the memory if that is large enough and no other cache may write the next positions; else it copies.
        """
        others = (other for other in self.buffer.caches if other is not self)
        if end <= self.buffer.tensor.shape[-2] and all(max(other.length, other.end) <= self.length for other in others):
            return KVCache(self.buffer, self.length, end)
        return self._copy(self.buffer.tensor, end)

    def fill_row(self, row: int, other: "KVCache", other_row: int = 0) -> None:
        """Copy what is filled of a row of another cache, or of this one, to the beginning of a row of this one."""
        self.buffer.tensor[:, :, row, :, : other.length] = other.buffer.tensor[:, :, other_row, :, : other.length]
        self.length = other.length

    def select_rows(self, rows: Tensor, end: int) -> "KVCache":
        """A copy of the filled part for these rows, int (n,), of the batch, each as often as it is named."""
        return self._copy(self.buffer.tensor[..., : self.length, :].index_select(2, rows), end)

    def _copy(self, tensor: Tensor, end: int) -> "KVCache":
        buffer = KVBuffer((*tensor.shape[:-2], end, tensor.shape[-1]), device=tensor.device, dtype=tensor.dtype)
        buffer.tensor[..., : self.length, :] = tensor[..., : self.length, :]
        return KVCache(buffer, self.length, end)

    def truncate(self, length: int) -> None:
        """Forget the positions after `length`, and write no more."""
        self.length = self.end = min(self.length, length)


@functools.cache
def rope_table(config: DecoderConfig, device: torch.device) -> Tensor:
    """Cosines and sines of every position, fp32, (2, max_positions, rotary_dim), the sines' first half negative.

    Rotary position embedding of arXiv 2104.09864 in GPT-NeoX's half-split form. Kept for good: captured graphs read it.
    """
    with torch.inference_mode(False):  # training may come after an answer
        steps = torch.arange(0, config.rotary_dim, 2, device=device, dtype=torch.float32) / config.rotary_dim
        angles = torch.arange(config.max_positions, device=device)[:, None] * config.rope_theta**-steps
        cos, sin = angles.cos(), angles.sin()
        return torch.stack((torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)))


def rope_at(positions: Tensor | range, config: DecoderConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """The table's rows for positions, a range or int (n,) or (batch, n), as `rotate` takes them: cosines and sines."""
    table = rope_table(config, device)
    if isinstance(positions, range):
        rows = table.narrow(1, positions.start, len(positions))
    else:  # a row that has ended may pass the last position, beside others; its output there is not used
        rows = table[:, positions.clamp(max=config.max_positions - 1)]
    cosines, sines = rows[..., None, :]
    return cosines, sines


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> None:
    """Turn, in place, the first rotary_dim dimensions of (batch, n, heads, head_dim)."""
    cos, sin = rope
    width = cos.shape[-1]
    turning = x[..., :width]
    turning.copy_(torch.addcmul(turning * cos, turning.roll(width // 2, dims=-1), sin))


@dataclass(frozen=True)
class Padding:
    """A batch's padding: `counts`, int (batch,), positions of each row that mean nothing, from position `start` on.

    With `start` 0 it is at the left of the rows; else after a prefix that has the same length in all rows.
    """

    counts: Tensor
    start: int = 0

    def row_positions(self, positions: Tensor) -> Tensor:
        """Positions (n,) in the cache -> those in each row, (batch, n); padding has any."""
        moved = (positions - self.counts[:, None]).clamp(min=0)
        return torch.where(positions < self.start, positions, moved)

    def hides(self, keys: Tensor) -> Tensor:
        """Which keys (n,) are padding, bool (batch, 1, 1, n)."""
        return ((keys >= self.start) & (keys < self.start + self.counts[:, None]))[:, None, None]


def in_window(queries: Tensor, keys: Tensor, window: int, padding: Padding | None) -> Tensor:
    """Which keys (n,) are within each query's (m,) window, by a row's own positions: bool (1 or batch, 1, m, n)."""
    if padding is not None:
        queries, keys = padding.row_positions(queries), padding.row_positions(keys)
    within = keys[..., None, :] > queries[..., :, None] - window
    return within.view(-1, 1, *within.shape[-2:])


def attention_mask(
    start: int, count: int, padding: Padding | None, device: torch.device, window: int | None = None
) -> Tensor | None:
    """Which keys each new position may see, bool (1 or batch, 1, count, start + count); None for all up to itself.

    `start` positions are in the cache and `count` come new. The mask is explicit where a cache is filled: SDPA's
    quicker `is_causal` aligns at the upper left, which would be wrong then.
    """
    window = window if window is not None and start + count > window else None
    if padding is None and window is None and (count == 1 or start == 0):
        return None
    queries = torch.arange(start, start + count, device=device)[:, None]
    keys = torch.arange(start + count, device=device)
    mask = (keys <= queries)[None, None]
    if window is not None:
        mask = mask & in_window(queries[:, 0], keys, window, padding)
    if padding is not None:
        # A padded position sees itself, else its softmax over nothing would be NaN and spread.
        mask = mask & ~padding.hides(keys) | (keys == queries)
    return mask


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        # One product for queries, keys and values: rows are all q, then all k, then all v.
        rows = (self.num_heads + 2 * self.num_kv_heads) * config.head_dim
        self.qkv = nn.Linear(config.hidden_size, rows, bias=config.qkv_bias)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=not config.gated)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: Any, layer: int) -> Tensor:
        # Plain views: einops' own calls would take a fortieth of a small model's step.
        batch, count, width = x.shape
        queries, keys = self.num_heads, self.num_kv_heads
        qkv = self.qkv(x).view(batch, count, queries + 2 * keys, width // queries)
        rotate(qkv[:, :, : queries + keys], rope)
        q = qkv[:, :, :queries].transpose(1, 2)
        kv = qkv[:, :, queries:].unflatten(2, (2, keys)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            kv = cache.extend(layer, kv)
        k, v = kv
        if count == 1 and TWO_QUERIES and q.device.type == "cpu" and q.dtype != torch.float32:
            q = q.expand(-1, -1, 2, -1)
        # Phi-2's q.k leaves fp16's range; SDPA's kernels keep the scores in fp32 or scale q and k beforehand.
        causal = mask is None and count > 1
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=keys < queries)
        return self.out(y[:, :, :count].transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Phi-2's two layers around a tanh GELU, or `gated`: SwiGLU (arXiv 2002.05202), gate and up in one product."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gated = config.gated
        width, inner = config.hidden_size, config.intermediate_size
        self.up = nn.Linear(width, 2 * inner, bias=False) if self.gated else GeluLinear(width, inner)
        self.down = nn.Linear(inner, width, bias=not self.gated)

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            gate, up = self.up(x).chunk(2, dim=-1)
            return self.down(F.silu(gate) * up)
        return self.down(self.up(x))


def norm(config: DecoderConfig) -> nn.Module:
    """LayerNorm where the blocks are Phi-2's, RMSNorm (arXiv 1910.07467) where they are LLaMA's."""
    return (nn.RMSNorm if config.gated else nn.LayerNorm)(config.hidden_size, eps=config.eps)


class Block(nn.Module):
    """Attention and MLP: side by side from one norm in Phi-2, one after the other with two norms if `gated`."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.norm = norm(config)
        self.attention = Attention(config)
        self.mlp_norm = norm(config) if config.gated else None
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: Any, layer: int) -> Tensor:
        h = self.norm(x)
        attended = x + self.attention(h, rope, mask, cache, layer)
        return attended + self.mlp(h if self.mlp_norm is None else self.mlp_norm(attended))


class Decoder(nn.Module):
    """Embeddings (batch, n, hidden_size) -> last hidden states of the same shape; `logits` turns them into scores."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        # Without nn.Embedding's own first values, for which torch on "meta" would import its compiler: a second.
        self.embed_tokens = nn.Embedding.from_pretrained(
            torch.empty(config.vocab_size, config.hidden_size), freeze=False
        )
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = norm(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=not config.gated)

    def forward(self, x: Tensor, cache: KVCache | None = None, padding: Padding | None = None) -> Tensor:
        """Run `x` after what `cache` holds, and add to it."""
        start, count = cache.length if cache else 0, x.shape[1]
        end = start + count
        positions = padding.row_positions(torch.arange(start, end, device=x.device)) if padding else range(start, end)
        rope = rope_at(positions, self.config, x.device)
        mask = window_mask = attention_mask(start, count, padding, x.device)
        if self.config.window is not None:
            window_mask = attention_mask(start, count, padding, x.device, self.config.window)
        x = self.blocks(x, rope, mask, window_mask, cache)
        if cache is not None:
            cache.length += count
        return x

    def blocks(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, window_mask: Tensor | None, cache: Any
    ) -> Tensor:
        """All layers and the last norm; `window_mask` is for the layers with a window, `mask` for the others."""
        for index, layer in enumerate(self.layers):
            x = layer(x, rope, window_mask if index >= self.config.window_from else mask, cache, index)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, fp32, (..., vocab_size)."""
        return self.lm_head(hidden).float()
