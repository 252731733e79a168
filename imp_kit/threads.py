"""How many threads a small model computes with: more than are free make it many times slower, not faster.

Threads that share one product wait for each other in a loop that keeps a CPU busy. Where another program holds one of
these CPUs, all wait for the thread that does not run, and a small model's products are so short that it only waits.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from imp_kit.cpu_meter import CpuMeter
from imp_kit.model.imp import ImpModel

SMALL_MODEL = 100_000_000  # parameters


def is_small(model: ImpModel) -> bool:
    """Whether a CPU's caches and overheads decide how fast this model is, not its bandwidth."""
    return sum(parameter.numel() for parameter in model.parameters()) < SMALL_MODEL


class Threads:
    """The threads that a model's answers are computed with.

    On a CPU a small model gets one for a single question and those of the free CPUs for a batch. A large model, or a
    small one where OMP_NUM_THREADS is set, gets what torch has.
    """

    def __init__(self, model: ImpModel):
        self.limited = is_small(model) and model.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ
        self._meter = CpuMeter()

    @contextmanager
    def use(self, rows: int = 1) -> Iterator[None]:
        """Set torch's number of threads while `rows` answers are computed; afterwards it is as before."""
        before = torch.get_num_threads()
        if not self.limited or before == 1:
            yield
            return
        free = len(self._meter.cpus) - self._meter.others() if rows > 1 else 1
        torch.set_num_threads(min(before, max(1, int(free + 0.25))))
        try:
            yield
        finally:
            torch.set_num_threads(before)
