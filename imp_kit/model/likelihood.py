"""How likely given answers are after a prompt that is read once for all of them."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from imp_kit.model.decoder import KVCache, rope_at
from imp_kit.model.imp import ImpModel


@torch.inference_mode()
def log_likelihoods(
    model: ImpModel, cache: KVCache, first: Tensor, answers: Sequence[Sequence[int]], stop_ids: Collection[int]
) -> Tensor:
    """The natural logarithm of each answer's probability after each prompt, fp32 (batch, answers), on the CPU.

    `cache` holds the prompts, which have one length, and has room for the tokens of all answers, which are written
    into it; `first`, fp32 (batch, vocab_size), are the logarithms of the probabilities after the prompts. An answer,
    at least one token id, is followed by its end, which is any of `stop_ids`, where there are any.

    The answers stand one behind the other in the cache, so the prompt is neither read nor kept twice; each has the
    positions that follow the prompt, and sees the prompt and itself.
    """
    decoder, start = model.decoder, cache.length
    lengths = [len(answer) for answer in answers]
    ids = torch.tensor([id for answer in answers for id in answer], device=first.device)
    # For each token: the number of its answer, and its position in a text of prompt and answer.
    owner = torch.repeat_interleave(torch.arange(len(answers)), torch.tensor(lengths)).to(first.device)
    positions = torch.cat([torch.arange(start, start + length) for length in lengths]).to(first.device)
    own = (owner[:, None] == owner) & (positions[:, None] >= positions)
    mask = torch.cat((own.new_ones(len(ids), start), own), dim=1)
    window_mask = mask
    if decoder.config.window is not None:
        keys = torch.cat((torch.arange(start, device=first.device), positions))
        window_mask = mask & (keys > positions[:, None] - decoder.config.window)
    embeddings = decoder.embed_tokens(ids).expand(len(first), -1, -1)
    rope = rope_at(positions, decoder.config, first.device)
    hidden = decoder.blocks(embeddings, rope, mask, window_mask, cache)
    ends, stops = torch.tensor(lengths).cumsum(0) - 1, sorted(stop_ids)
    begins = ends + 1 - torch.tensor(lengths)
    rows = []
    for row, before in zip(hidden, first, strict=True):  # not all at once: a vocabulary has 150,000 scores a token
        after = decoder.logits(row).log_softmax(dim=-1)
        # A token's probability stands after the token before it, that of an answer's first token after the prompt.
        chosen = torch.cat((before[ids[:1]], after[:-1].gather(1, ids[1:, None])[:, 0]))
        chosen[begins] = before[ids[begins]]
        if stops:
            chosen[ends] += after[ends][:, stops].logsumexp(dim=-1)
        rows.append(torch.zeros(len(answers), device=first.device).index_add_(0, owner, chosen))
    return torch.stack(rows).cpu()
