"""The training of adapters: batches, the loss on the answers, and the steps."""

import csv
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from tqdm.auto import tqdm

from imp_kit.device import is_small
from imp_kit.errors import RunError
from imp_kit.finetuning.examples import EncodedExample, ImageFeatures
from imp_kit.model.imp import ImpModel

WARM_UP = 0.03  # of all steps, in which the learning rate rises; as LLaVA-1.5 (arXiv 2310.03744) was trained
LARGEST_NORM = 1.0  # of all gradients together
LOST = 3  # steps in a row without a finite loss, after which nothing can be hoped for


def recompute_blocks(model: ImpModel) -> None:
    """Keep of each block of a large decoder its input alone for the backward pass, and compute the rest once more.

    Chen et al., arXiv 1604.06174: a third more work for a fraction of the memory.
    """
    if not is_small(model):
        for block in model.decoder.layers:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]


def answer_loss(model: ImpModel, opening: Sequence[int], features: Tensor, rows: Sequence[EncodedExample]) -> Tensor:
    """Mean cross-entropy, in nats, over the tokens of the answers and those that end them.

    `features` (batch, patches, hidden_size) are of the rows' images, and `opening` stands before each of them. Rows are
    filled up at their ends, which no earlier position sees, and what fills them is not learned.
    """
    ids = pad_sequence([torch.tensor(row.ids) for row in rows], batch_first=True).to(model.device)
    position = torch.arange(ids.shape[1])
    starts = torch.tensor([row.start for row in rows])[:, None]
    ends = torch.tensor([len(row.ids) for row in rows])[:, None]
    learned = ((position >= starts) & (position < ends))[:, 1:].to(model.device)
    embed = model.decoder.embed_tokens
    before = embed(torch.tensor(opening, device=model.device)).expand(len(rows), -1, -1)
    hidden = model.decoder(torch.cat((before, features, embed(ids[:, :-1])), dim=1))
    scores = model.decoder.logits(hidden[:, 1 - ids.shape[1] :][learned])
    return F.cross_entropy(scores, ids[:, 1:][learned])


def rate(step: int, steps: int) -> float:
    """The share of the learning rate in a step (from 0): rises in a line, then falls as half a cosine."""
    rising = max(1, math.ceil(WARM_UP * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def batches(rows: Sequence[EncodedExample], size: int, epochs: int, seed: int) -> Iterator[list[EncodedExample]]:
    """All rows once an epoch, each time in another order, which the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(rows), size):
            yield [rows[index] for index in order[start : start + size]]


def train(
    model: ImpModel,
    trained: Sequence[nn.Parameter],
    opening: Sequence[int],
    rows: Sequence[EncodedExample],
    features: ImageFeatures,
    log: Path,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    progress: bool,
) -> None:
    """Train with AdamW (arXiv 1711.05101, no weight decay), and write step and loss to the CSV file `log`.

    Raises RunError where the training diverges.
    """
    steps = epochs * math.ceil(len(rows) / batch_size)
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(rate, steps=steps))
    # In fp16 small gradients would be 0: they are computed of a multiple of the loss (arXiv 1710.03740).
    scaler = torch.amp.GradScaler(model.device.type, enabled=model.dtype == torch.float16)
    recompute_blocks(model)
    lost = 0
    with (
        log.open("w", encoding="utf-8", newline="") as opened,
        tqdm(total=steps, unit="step", desc="training", disable=not progress) as bar,
    ):
        writer = csv.writer(opened)
        writer.writerow(("step", "loss"))
        for step, batch in enumerate(batches(rows, batch_size, epochs, seed), 1):
            seen = torch.stack([features(row.example) for row in batch])
            loss = answer_loss(model, opening, seen, batch)
            value = loss.item()
            writer.writerow((step, f"{value:.6g}"))
            opened.flush()
            lost = 0 if math.isfinite(value) else lost + 1
            if lost == LOST:
                raise RunError(
                    f"The training diverged: the loss was no number in {LOST} steps in a row, up to step {step} of "
                    f"{steps}. Nothing was written; choose a learning_rate smaller than {learning_rate:g}."
                )
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(trained, LARGEST_NORM)
            if norm.isfinite():
                scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            bar.set_postfix(loss=f"{value:.3f}", refresh=False)
            bar.update()
