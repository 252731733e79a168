"""What a checkpoint computes with on this machine: its device, the dtype that suits it, and how many threads."""

import math
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten

import torch

from imp_kit.errors import SettingError
from imp_kit.model.imp import ImpModel
from imp_kit.model.memory import is_out_of_memory
from imp_kit.system.cpu_meter import CpuMeter

SMALL_MODEL = 100_000_000  # parameters
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LONG_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def choose_device(device: str | torch.device) -> torch.device:
    """The device that was asked for, if it works; "auto" is the first GPU, else the CPU. Raises SettingError.

    Where there is a GPU that cannot be used, "auto" warns and is the CPU.
    """
    if device == "auto":
        error = _gpu_error()
        if error is None:
            return torch.device("cuda")
        if problem := gpu_problem(error):
            warnings.warn(f"The GPU cannot be used: {problem}. The CPU is used instead.", stacklevel=3)
        return torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = gpu_problem(error) or hidden_gpu(error) or _first_line(error)
        raise SettingError(f"There is no device {device!r} here ({reason}). Use device='cpu' or 'auto'.") from None
    if chosen.type == "meta":
        raise SettingError("The device 'meta' holds no values. Use device='cpu' or 'auto'.")
    return chosen


def _gpu_error() -> Exception | None:
    """What torch raises as soon as the first GPU is used; None where it works."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch says of a driver is in the error, too
            torch.empty(1, device="cuda")
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        return error
    return None


def gpu_problem(error: Exception | None) -> str | None:
    """Why a GPU that is there cannot be used, from torch's error, without a full stop; None where none is there."""
    if error is None:
        return None
    text = str(error)
    if "driver on your system is too old" in text or "driver version is insufficient" in text:
        return "its NVIDIA driver is too old for this torch; update it, or install a torch for an older CUDA"
    if is_out_of_memory(error):
        return "its memory is full; end other programs that use it (nvidia-smi lists them)"
    return _first_line(error) if re.search(r"CUDA (unknown )?error|CUDA driver|re-initialize CUDA", text) else None


def hidden_gpu(error: Exception | None) -> str | None:
    """That CUDA_VISIBLE_DEVICES hides the GPUs, from torch's error where it finds a driver and no GPU; else None."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None or "No CUDA GPUs" not in str(error):
        return None
    return f"CUDA_VISIBLE_DEVICES is {shown!r} and hides it"


def why_no_gpu() -> str:
    """What "there is no GPU here" leaves open, in brackets; "" where nothing more is known."""
    hidden = hidden_gpu(_gpu_error())
    return f" ({hidden})" if hidden else ""


def _first_line(error: Exception) -> str:
    return shorten(str(error).splitlines()[0].rstrip("."), 160, placeholder=" ...")


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype | None:
    """The dtype that was asked for, or fits a GPU; None leaves a CPU's choice to the checkpoint's size."""
    if dtype == "auto":
        if device.type == "cpu":
            return None
        return gpu_dtype(torch.cuda.get_device_capability(device)) if device.type == "cuda" else torch.float16
    name = str(dtype).removeprefix("torch.")
    name = LONG_DTYPES.get(name, name)
    if name not in DTYPES:
        raise SettingError(f"dtype {dtype!r} is unknown; choose from auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def gpu_dtype(capability: tuple[int, int]) -> torch.dtype:
    """The dtype that suits an NVIDIA GPU of a compute capability: bf16 from 8.0 on; a T4 (7.5) only emulates it."""
    return torch.bfloat16 if capability >= (8, 0) else torch.float16


def bf16_is_faster() -> bool:
    """Whether this CPU is at least as fast in bf16 as in fp32: measured on a large matrix, 0.2 s.

    Both for one vector, as in decoding, and for many, as in reading a prompt: a CPU without bf16 instructions may be
    faster in the first, as it reads fewer bytes, and be much slower in the second.
    """
    for columns in (1, 64):
        products = {
            dtype: (torch.ones(8192, 2560, dtype=dtype), torch.ones(2560, columns, dtype=dtype))
            for dtype in (torch.float32, torch.bfloat16)
        }
        best = dict.fromkeys(products, math.inf)
        for _ in range(5):
            # In turns: another program that slows one of them down for a while slows down the other, too.
            for dtype, (matrix, vectors) in products.items():
                start = time.perf_counter()
                matrix @ vectors
                best[dtype] = min(best[dtype], time.perf_counter() - start)
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
