"""How much memory a device has free, and the error where it is not enough."""

import ctypes
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import shorten

import psutil
import torch

from imp_kit.errors import MemoryLimitError

# As CUDA, cuBLAS and a CPU's allocator say it, each in an error of another class.
OUT_OF_MEMORY = re.compile(r"out of memory|CUBLAS_STATUS_ALLOC_FAILED|can't allocate memory")


def trim_heap() -> None:
    """Give back to the system what this process has freed. glibc keeps what threads other than the first one freed."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, TypeError, OSError):  # another C library
        return


def free_memory(device: torch.device) -> int:
    """Free bytes on a device."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # reserved by torch
        return torch.cuda.mem_get_info(device)[0] + unused
    free = psutil.virtual_memory().available  # with what the system's file cache would give back
    group = Path("/sys/fs/cgroup")  # a container's own limit, as Docker and Kaggle set it
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        counters = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        files = sum(int(counters.get(name, 0)) for name in ("active_file", "inactive_file"))  # a cache, which gives way
        return free if limit == "max" else min(free, int(limit) - int(used) + files)
    except (OSError, ValueError):
        return free


def free_gpu_memory() -> dict[str, int]:
    """Free bytes of each GPU that torch sees and can use, by its device: "cuda:0" and so on."""
    found = {}
    for index in range(torch.cuda.device_count()):
        with suppress(RuntimeError):
            found[f"cuda:{index}"] = free_memory(torch.device("cuda", index))
    return found


def roomier_gpu(needed: float, free: Mapping[str, int]) -> str:
    """The GPU with the most free bytes, in words; "" where they are not enough. `free` as of `free_gpu_memory`."""
    device = max(free, key=lambda device: free[device], default="")
    return f"device={device!r}, which has {free[device] / 1e9:.1f} GB free" if free.get(device, 0) >= needed else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch says that a device's memory is full."""
    named = isinstance(error, torch.OutOfMemoryError)
    return named or isinstance(error, RuntimeError) and bool(OUT_OF_MEMORY.search(str(error)))


@contextmanager
def out_of_memory_errors(
    what: str, advice: str = "choose a smaller checkpoint, dtype='fp16' or device='cpu'"
) -> Iterator[None]:
    """Turn torch's out-of-memory errors into MemoryLimitError: `what` needed the memory, and an `advice`."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        reason = shorten(str(error).splitlines()[0].rstrip("."), 240, placeholder=" ...")
        raise MemoryLimitError(
            f"{what} needs more memory than is free ({reason}). Free some of it, or {advice}."
        ) from error


def peak_memory(device: torch.device) -> int | None:
    """The most bytes in use so far: of the GPU's memory, else of this process; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
