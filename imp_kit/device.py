"""What a checkpoint computes with on this machine: its device, the dtype that suits it, and how many threads."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten

import torch

from imp_kit.errors import SettingError
from imp_kit.model.imp import ImpModel
from imp_kit.system.cpu_meter import CpuMeter

SMALL_MODEL = 100_000_000  # parameters
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LONG_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def choose_device(device: str | torch.device) -> torch.device:
    """The device that was asked for, if it works; "auto" is the first GPU, else the CPU. Raises SettingError."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = shorten(str(error).splitlines()[0].rstrip("."), 160, placeholder=" ...")
        raise SettingError(f"There is no device {device!r} here ({reason}). Use device='cpu' or 'auto'.") from None
    if chosen.type == "meta":
        raise SettingError("The device 'meta' holds no values. Use device='cpu' or 'auto'.")
    return chosen


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype | None:
    """The dtype that was asked for, or fits a GPU; None leaves a CPU's choice to the checkpoint's size."""
    if dtype == "auto":
        if device.type == "cpu":
            return None
        native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if native else torch.float16
    name = str(dtype).removeprefix("torch.")
    name = LONG_DTYPES.get(name, name)
    if name not in DTYPES:
        raise SettingError(f"dtype {dtype!r} is unknown; choose from auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def bf16_is_faster() -> bool:
    """Whether this CPU is at least as fast in bf16 as in fp32: measured on a large matrix, 0.2 s.

    Both for one vector, as in decoding, and for many, as in reading a prompt: a CPU without bf16 instructions may be
    faster in the first, as it reads fewer bytes, and be much slower in the second.
    """
    for columns in (1, 64):
        best = {}
        for dtype in (torch.float32, torch.bfloat16):
            matrix, vectors = torch.ones(8192, 2560, dtype=dtype), torch.ones(2560, columns, dtype=dtype)
            times = []
            for _ in range(5):
                start = time.perf_counter()
                matrix @ vectors
                times.append(time.perf_counter() - start)
            best[dtype] = min(times)
        if best[torch.bfloat16] > best[torch.float32]:
            return False
    return True


def is_small(model: ImpModel) -> bool:
    """Whether a CPU's caches and overheads decide how fast this model is, not its bandwidth."""
    return sum(parameter.numel() for parameter in model.parameters()) < SMALL_MODEL


class Threads:
    """The threads that a model's answers are computed with.

    Threads that share one product wait for each other in a loop that keeps a CPU busy. Where another program holds one
    of these CPUs, all wait for the thread that does not run, and a small model's products are so short that it only
    waits: more threads than CPUs are free make it many times slower, not faster. On a CPU a small model gets one for a
    single question and those of the free CPUs for a batch. A large model, or a small one where OMP_NUM_THREADS is set,
    gets what torch has.
    """

    def __init__(self, model: ImpModel):
        self.limited = is_small(model) and model.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ
        self._meter = CpuMeter()

    def count(self, rows: int = 1) -> int:
        """How many threads suit so many answers at once, now."""
        most = torch.get_num_threads()
        if not self.limited or most == 1:
            return most
        free = len(self._meter.cpus) - self._meter.others() if rows > 1 else 1
        return min(most, max(1, int(free + 0.25)))

    @contextmanager
    def use(self, count: int) -> Iterator[None]:
        """Set torch's number of threads for a while; afterwards it is as before."""
        before = torch.get_num_threads()
        if count == before:  # setting it again would cost each token 0.1 ms (on an AMD EPYC)
            yield
            return
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)
