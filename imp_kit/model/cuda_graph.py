"""One decoding step as a CUDA graph: the hundreds of kernels of a step are launched at once instead of one by one."""

import functools
import warnings

import torch
from torch import Tensor

from imp_kit.model.decoder import KVCache, Padding, in_window, rope_at
from imp_kit.model.imp import ImpModel

side_stream = functools.cache(torch.cuda.Stream)  # one for each GPU: its workspaces are kept for good
SAME = 0.02  # of the largest value; how far a graph's hidden states may be from the plain step's


class StepGraph:
    """Token ids (batch,) -> hidden states (batch, 1, hidden_size), with the step's keys and values put into a cache.

    A graph does the same work at the same addresses each time. So the position in the cache is a number on the device,
    and attention reads every key of the cache's memory; a mask hides those that are not yet filled. The first step is
    made both ways; if the graph cannot be captured or does not give the same, all steps are made the plain way.
    """

    def __init__(self, model: ImpModel, tensor: Tensor, padding: Padding | None):
        self.model, self.tensor, self.padding = model, tensor, padding
        self.graph: torch.cuda.CUDAGraph | None = None
        self.tried = False

    @classmethod
    def of(cls, model: ImpModel, cache: KVCache, padding: Padding | None) -> "StepGraph":
        """The step after what `cache` holds; one that was captured on the same memory is used again."""
        step = cache.buffer.step
        if step is None or padding is not None or step.padding is not None:
            step = cache.buffer.step = cls(model, cache.buffer.tensor, padding)
        if step.graph:
            step.position.fill_(cache.length)
        return step

    def __call__(self, ids: Tensor, cache: KVCache) -> Tensor:
        """One step after what `cache` holds; each call goes on where the one before it ended."""
        if self.graph:
            self.ids.copy_(ids)
            self.graph.replay()
            cache.length += 1
            return self.hidden
        start = cache.length
        plain = self.model.decoder(self.model.decoder.embed_tokens(ids)[:, None], cache, self.padding)
        if not self.tried:
            self.tried = True
            written = self.tensor[..., start : start + 1, :].clone()
            try:
                with torch.cuda.device_of(self.tensor):
                    self._capture(ids, start, plain)
            except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
                self.tensor[..., start : start + 1, :] = written
                reason = str(error).splitlines()[0]
                warnings.warn(f"Decoding goes on without a CUDA graph, which is slower: {reason}", stacklevel=2)
        return plain

    def prepare(self, ids: Tensor, start: int) -> None:
        """Put a step's inputs where `run` reads them: its token ids, and its position in the cache."""
        self.ids, self.position = ids.clone(), torch.tensor([start], device=ids.device)
        self.keys = torch.arange(self.tensor.shape[-2], device=ids.device)

    def run(self) -> Tensor:
        """The step itself; moves the position on by one."""
        decoder = self.model.decoder
        row_positions = self.padding.row_positions(self.position) if self.padding else self.position
        rope = rope_at(row_positions, decoder.config, self.position.device)
        mask = window_mask = (self.keys <= self.position)[None, None, None]
        if self.padding:
            mask = window_mask = mask & ~self.padding.hides(self.keys)
        if decoder.config.window is not None:
            window_mask = mask & in_window(self.position, self.keys, decoder.config.window, self.padding)
        cache = _GraphCache(self.tensor, self.position)
        hidden = decoder.blocks(decoder.embed_tokens(self.ids)[:, None], rope, mask, window_mask, cache)
        self.position += 1
        return hidden

    def _capture(self, ids: Tensor, start: int, plain: Tensor) -> None:
        self.prepare(ids, start)
        self.tensor[..., start + 1 :, :] = 0  # what is masked must be finite, or 0 times it is not 0
        side = side_stream(ids.device.index)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels choose their workspaces before the capture
            self.run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            self.hidden = self.run()
        self.position.fill_(start)
        graph.replay()
        if not agrees(self.hidden, plain):
            raise RuntimeError("its result is not that of the plain step.")
        self.graph = graph


def agrees(found: Tensor, expected: Tensor) -> bool:
    """Whether a graph's hidden states are those of the plain step, but for rounding; NaN is not."""
    return bool((found - expected).abs().max() <= SAME * expected.abs().max())


class _GraphCache:
    """Keys and values of all layers, written at a position that only the device knows."""

    def __init__(self, tensor: Tensor, position: Tensor):
        self.tensor, self.position = tensor, position

    def extend(self, layer: int, new: Tensor) -> Tensor:
        return self.tensor[:, layer].index_copy_(3, self.position, new)
