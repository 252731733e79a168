"""Token after token: greedy or sampled, one row or a left-padded batch."""

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from imp_kit.model.decoder import KVCache
from imp_kit.model.imp import ImpModel
from imp_kit.sampling import Sampling


@torch.inference_mode()
def generate(
    model: ImpModel,
    embeddings: Tensor,
    cache: KVCache,
    sampling: Sampling,
    stop_ids: Collection[int],
    pads: Tensor | None = None,
) -> Iterator[list[int | None]]:
    """Yield, step by step, each row's next token id; None for a row that has ended.

    `embeddings` (batch, n, hidden_size) go behind what `cache` holds; `pads`, int (batch,), counts left padding.
    A stop id is yielded, then its row has ended. Ends when every row has, after `max_new_tokens` steps, or
    when the cache is full. The last token yielded is not in the cache yet.
    """
    generator = sampling.generator(embeddings.device)
    ended = [False] * len(embeddings)
    hidden = model.decoder(embeddings, cache, pads)
    for step in range(sampling.max_new_tokens):
        ids = sampling.pick(model.decoder.logits(hidden[:, -1]), generator)
        row = [None if done else token for done, token in zip(ended, ids.tolist(), strict=True)]
        yield row
        ended = [done or token in stop_ids for done, token in zip(ended, row, strict=True)]
        if all(ended) or cache.length == cache.capacity or step + 1 == sampling.max_new_tokens:
            return
        hidden = model.decoder(model.decoder.embed_tokens(ids)[:, None], cache, pads)
