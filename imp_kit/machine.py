"""What this machine has: its device, the dtype that suits it, its memory."""

import ctypes
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten

import psutil
import torch

from imp_kit.errors import MemoryLimitError, SettingError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LONG_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def has_tiles() -> bool:
    """Whether this CPU multiplies matrices in tiles of registers (Intel's AMX), as far as torch tells."""
    told = getattr(torch.cpu, "_is_amx_tile_supported", None)  # private, so a version may lack it
    return bool(told and told())


def choose_device(device: str | torch.device) -> torch.device:
    """The device that was asked for, if it works; "auto" is the first GPU, else the CPU. Raises SettingError."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = shorten(str(error).splitlines()[0].rstrip("."), 160, placeholder=" ...")
        raise SettingError(f"There is no device {device!r} here ({reason}). Use device='cpu' or 'auto'.") from None
    if place.type == "meta":
        raise SettingError("The device 'meta' holds no values. Use device='cpu' or 'auto'.")
    return place


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


def bf16_pays() -> bool:
    """Whether this CPU is at least as fast in bf16 as in fp32: measured on a large matrix, 0.2 s.

    Both for one vector, as in decoding, and for many, as in reading a prompt: a CPU without bf16 instructions may win
    the first, having fewer bytes to read, and lose the second by far.
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


def return_memory() -> None:
    """Give back to the system what this process has freed. glibc keeps what threads other than the first one freed."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, TypeError, OSError):  # another C library
        return


def free_memory(device: torch.device) -> int:
    """Free bytes on a device."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for what comes next
        return torch.cuda.mem_get_info(device)[0] + kept
    free = psutil.virtual_memory().available  # with what the system's file cache would give back
    group = Path("/sys/fs/cgroup")  # a container's own limit, as Docker and Kaggle set it
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        told = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        files = sum(int(told.get(name, 0)) for name in ("active_file", "inactive_file"))  # a cache, which gives way
        return free if limit == "max" else min(free, int(limit) - int(used) + files)
    except (OSError, ValueError):
        return free


@contextmanager
def memory_told(what: str) -> Iterator[None]:
    """Turn torch's out-of-memory error into MemoryLimitError, which names `what` needed the memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise MemoryLimitError(
            f"{what} needs more memory than is free ({reason}). "
            "Free some of it, or choose a smaller checkpoint or dtype='fp16'."
        ) from error


def peak_memory(device: torch.device) -> int | None:
    """The most bytes in use so far: of the GPU's memory, else of this process; None where it is not told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
