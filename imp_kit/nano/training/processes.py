"""Processes that learn together on a CPU, each from its part of every batch.

imp-nano's matrices are too small for a second thread to gain much. A second process gains little more: on two cores,
960 pictures of the plan "further" took 66 s with `--processes 2` and 68 s without (log.csv, `--seed 9`, one run each).
"""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from imp_kit.errors import ImpKitError, RunError

T = TypeVar("T")


def run(count: int, work: Callable[..., None], *args: Any) -> None:
    """Do `work(*args)` in so many processes, of which this one is the first; they share the threads of the CPU.

    Raises what the work raises here, and RunError where another process has ended. No other is left running.
    """
    if count == 1:
        work(*args)
        return
    threads = torch.get_num_threads()
    store = dist.TCPStore("127.0.0.1", 0, count, is_master=True, wait_for_workers=False)  # 0: any free port
    context = multiprocessing.get_context("spawn")  # tokenizers must not be forked
    others = [context.Process(target=_join, args=(rank, count, store.port, work, args)) for rank in range(1, count)]
    try:
        for other in others:
            other.start()
        _begin(0, count, store)
        work(*args)
    except RuntimeError as error:  # what gloo makes of a lost connection
        for other in others:
            other.join(1)
        lost = [other.exitcode for other in others if other.exitcode is not None]
        if not lost:
            raise
        raise RunError(
            f"One of {count} processes has ended (exit code {lost[0]}), perhaps for lack of memory. The last state is "
            "kept: run the same again, or with fewer processes."
        ) from error
    finally:
        for other in others:
            if other.pid:  # it was started
                other.terminate()
                other.join()
        if dist.is_initialized():
            dist.destroy_process_group()
        torch.set_num_threads(threads)


def _join(rank: int, count: int, port: int, work: Callable[..., None], args: tuple) -> None:
    try:
        _begin(rank, count, dist.TCPStore("127.0.0.1", port, count, is_master=False))
        work(*args)
    except (ImpKitError, KeyboardInterrupt):  # the first process has the same to say
        raise SystemExit(1) from None


def _begin(rank: int, count: int, store: dist.Store) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count)


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
