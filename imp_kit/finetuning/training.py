"""The training of adapters: batches, the loss on the answers, and the steps."""

import csv
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from tqdm.auto import tqdm

from imp_kit.device import is_small
from imp_kit.errors import CheckpointError, MemoryLimitError, RunError
from imp_kit.finetuning.examples import EncodedExample, ImageFeatures
from imp_kit.model.imp import ImpModel
from imp_kit.model.memory import free_memory

WARM_UP = 0.03  # of all steps, in which the learning rate rises; as LLaVA-1.5 (arXiv 2310.03744) was trained
LARGEST_NORM = 1.0  # of all gradients together
LOST = 3  # steps in a row without a finite loss end a run


@contextmanager
def recomputed_blocks(model: ImpModel) -> Iterator[None]:
    """For a while, only the input of each block of a large decoder is kept for the backward pass.

    The rest is computed once more (Chen et al., arXiv 1604.06174): a third more work for a fraction of the memory.
    """
    blocks = [] if is_small(model) else list(model.decoder.layers)
    for block in blocks:
        recomputed = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        block.forward = recomputed  # type: ignore[method-assign]
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # a block that refers to itself would keep its memory until Python looks for such


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

    Raises MemoryLimitError, CheckpointError for weights that give no numbers, RunError where the training diverges.
    """
    steps = epochs * math.ceil(len(rows) / batch_size)
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    # In fp16 small gradients would be 0: they are computed of a multiple of the loss (arXiv 1710.03740).
    scaler = torch.amp.GradScaler(model.device.type, enabled=model.dtype == torch.float16)
    check_memory(model, len(opening), rows, batch_size)
    values: list[float] = []
    with (
        log.open("w", encoding="utf-8", newline="") as opened,
        recomputed_blocks(model),
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
            values.append(value)
            check_loss(values, steps, learning_rate, model.dtype)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * rate(step - 1, steps)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(trained, LARGEST_NORM)
            if norm.isfinite():
                scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            bar.set_postfix(loss=f"{value:.3f}", refresh=False)
            bar.update()
    # A tenth of the steps, as single ones differ.
    last, guess = fmean(values[-max(1, steps // 10) :]), math.log(model.config.decoder.vocab_size)
    if last > guess:
        warnings.warn(
            f"The loss ended at {last:.1f} nats a token, and a blind guess among all tokens has {guess:.1f}: nothing "
            "useful was learned. Try another learning_rate, or more epochs.",
            stacklevel=4,
        )


def check_loss(values: Sequence[float], steps: int, learning_rate: float, dtype: torch.dtype) -> None:
    """Raise where the last losses of a run are no numbers, LOST of them before its end or one at its end.

    CheckpointError if there was none before, else RunError.
    """
    done = len(values)
    lost = next((count for count, value in enumerate(reversed(values)) if math.isfinite(value)), done)
    if not lost or (lost < LOST and done < steps):
        return
    if lost == done:  # with the weights as they came
        raise CheckpointError(
            "The loss is no number from the first step on: the checkpoint's weights are damaged, or too large for "
            f"{str(dtype).removeprefix('torch.')}. Nothing was written; download them again, or choose another dtype."
        )
    raise RunError(
        f"The training diverged: the loss is no number from step {done - lost + 1} to step {done} of {steps}. "
        f"Nothing was written; choose a learning_rate smaller than {learning_rate:g}."
    )


def check_memory(model: ImpModel, opening: int, rows: Sequence[EncodedExample], batch_size: int) -> None:
    """Raise MemoryLimitError where a batch's longest rows would surely not fit: a CPU's process would be killed."""
    sizes = model.config.decoder
    lengths = sorted((len(row.ids) for row in rows), reverse=True)[:batch_size]
    positions = len(lengths) * (opening + model.config.vision.num_patches + lengths[0])
    # What a block's backward pass needs at least: inputs of norms and products, q, k, v and the MLP's inner values.
    block = 8 * sizes.hidden_size + 2 * sizes.intermediate_size
    per_position = block * sizes.num_layers if is_small(model) else block + sizes.num_layers * sizes.hidden_size
    needed, free = positions * per_position * model.dtype.itemsize, free_memory(model.device)
    if needed > free:
        raise MemoryLimitError(
            f"A batch of {len(lengths)} examples needs {needed / 1e9:.1f} GB and more beside the weights, but "
            f"{free / 1e9:.1f} GB are free on {model.device}. Choose a smaller batch_size than {batch_size}."
        )
