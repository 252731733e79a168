"""Token after token: greedy or sampled, one row or a padded batch."""

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from imp_kit.errors import CheckpointError
from imp_kit.model.cuda_graph import StepGraph
from imp_kit.model.decoder import KVCache, Padding
from imp_kit.model.imp import ImpModel
from imp_kit.model.sampling import Sampler, Sampling

# Tokens that a device makes before they are read: each read from a GPU waits until all work before it is done.
BLOCKS = {"cuda": 8}


@torch.inference_mode()
def generate(
    model: ImpModel,
    embeddings: Tensor,
    cache: KVCache,
    sampling: Sampling | Sequence[Sampling],
    stop_ids: Collection[int],
    padding: Padding | None = None,
    ended: set[int] | None = None,
    indices: Sequence[int] | None = None,
    watch: Callable[[Sequence[int], Tensor, Tensor], None] | None = None,
) -> Iterator[list[int | None]]:
    """Yield, step by step, each row's next token id; None for a row that has ended.

    `embeddings` (batch, n, hidden_size) go after what `cache` holds. A stop id is yielded, then its row has ended; the
    caller may end others by adding to `ended`. Each row draws its tokens by the seed and its index, by default its
    number in the batch; `sampling` is one for all rows, or one for each. Ends when every row has, after the largest
    `max_new_tokens` steps, or when the cache is full. The cache may hold fewer or more positions than tokens were
    yielded: the last token is not read yet, and up to a block of tokens may be read that are not yielded. `watch` is
    called with each step before it is yielded: the rows still in the batch, their scores, fp32 (rows, vocab_size), and
    the ids that were chosen, (rows,). Raises CheckpointError where damaged weights give no numbers.
    """
    ended = set() if ended is None else ended
    rows = list(range(len(embeddings)))  # those still in the batch
    samplings = [sampling] * len(rows) if isinstance(sampling, Sampling) else sampling
    sampler = Sampler.of(samplings, embeddings.device, rows if indices is None else indices)
    most = max(each.max_new_tokens for each in samplings)
    count, block = len(rows), BLOCKS.get(embeddings.device.type, 1)
    hidden = model.decoder(embeddings, cache, padding)
    step, made, waiting = None, 0, []
    while True:
        scores = model.decoder.logits(hidden[:, -1])
        if made == 0:
            check_scores(scores, model.dtype)
        ids = sampler.pick(scores)
        if watch:
            watch(rows, scores, ids)
        waiting.append(ids)
        made += 1
        last = made == most or cache.length == cache.end
        if last or made == 1 or len(waiting) == block:  # the first at once: the user waits for it
            for tokens in torch.stack(waiting).tolist():
                step_ids: list[int | None] = [None] * count
                for index, token in zip(rows, tokens, strict=True):
                    step_ids[index] = None if index in ended else token
                yield step_ids
                ended.update(index for index, token in enumerate(step_ids) if token in stop_ids)
                if len(ended) == count:
                    return
            waiting.clear()
            if last:
                return
            left = [row for row, index in enumerate(rows) if index not in ended]
            if 2 * len(left) <= len(rows):  # rows that have ended still cost; leaving costs a copy of the others
                chosen = torch.tensor(left, device=ids.device)
                cache, ids, step = cache.select_rows(chosen, cache.end), ids[chosen], None
                padding = padding and Padding(padding.counts[chosen], padding.start)
                rows = [rows[row] for row in left]
                sampler = sampler.select_rows(left)
        if embeddings.device.type == "cuda":
            step = step or StepGraph.of(model, cache, padding)
            hidden = step(ids, cache)
        else:
            hidden = model.decoder(model.decoder.embed_tokens(ids)[:, None], cache, padding)


def check_scores(scores: Tensor, dtype: torch.dtype) -> None:
    """Raise CheckpointError where the scores of a model in `dtype` are no numbers."""
    if not scores.isfinite().all():
        raise CheckpointError(
            "The network's scores are no numbers: the checkpoint's weights are damaged, or too large for "
            f"{str(dtype).removeprefix('torch.')}. Download them again, or choose another dtype."
        )
