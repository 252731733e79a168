"""Processes that learn together, each from its part of every batch, as torch's launcher starts them.

torchrun --nproc-per-node 2 -m -- imp_kit.nano train --out runs/nano

A second thread gains next to nothing, since imp-nano's matrices are small; a second process does. The `--` keeps
torchrun from taking `--start` for its own.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


@contextmanager
def together() -> Iterator[None]:
    """Join the processes that torchrun started, and leave them at the end; without torchrun there is this one alone."""
    if not dist.is_torchelastic_launched():
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank_and_world_size() -> tuple[int, int]:
    """Which of the processes this is, from 0, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def average(tensors: Sequence[Tensor]) -> None:
    """Put the mean over all processes into each of the tensors; all are of one dtype."""
    if not dist.is_initialized():
        return
    whole = torch.cat([tensor.flatten() for tensor in tensors])  # one message is faster than one for each
    dist.all_reduce(whole)
    whole /= dist.get_world_size()
    for tensor, mean in zip(tensors, whole.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def collect(part: T) -> list[T]:
    """The parts of all processes, by rank; each waits here for the others."""
    parts = [part] * rank_and_world_size()[1]
    if dist.is_initialized():
        dist.all_gather_object(parts, part)
    return parts
