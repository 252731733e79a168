"""How much memory a device has free, and the error where it is not enough."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from imp_kit.errors import MemoryLimitError


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


@contextmanager
def out_of_memory_errors(what: str, advice: str = "choose a smaller checkpoint or dtype='fp16'") -> Iterator[None]:
    """Turn torch's out-of-memory error into MemoryLimitError: `what` needed the memory, and an `advice`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0].rstrip(".")
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
