"""What a checkpoint's folder holds: its settings, and its tensors as their files' headers tell them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from imp_kit.errors import CheckpointError, MemoryLimitError

if TYPE_CHECKING:
    import torch

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_json(file: Path) -> dict:
    """A JSON object from a file. Raises CheckpointError where there is none."""
    try:
        value = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file.parent} has no {file.name}; it is not a checkpoint's folder.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON ({error}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds no JSON object.")
    return value


class Fields:
    """Takes values out of config.json. Its methods raise CheckpointError, naming the field, its value and the file.

    Each takes the names that a value may have; the first that is there and not null counts.
    """

    def __init__(self, raw: Mapping, where: str):
        self.raw, self.where = raw, where

    def value(self, *names: str, default=None):
        """A value as it stands; `default` where no name has one."""
        for name in names:
            if self.raw.get(name) is not None:
                return self.raw[name]
        return default

    def number(self, *names: str, default=None, kind: type = int):
        """A positive number below 2**31, an int or a float as `kind` says."""
        value = self.value(*names, default=default)
        if value is None:
            raise CheckpointError(f"{self.where} has none of: {', '.join(names)}.")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        # JSON as Python reads it has NaN and Infinity, too; neither is below the bound.
        if not number or not 0 < value < 2**31 or value != kind(value):
            raise CheckpointError(f"{self.where}: {names[0]} is {value!r}, not a positive {kind.__name__}.")
        return kind(value)

    def expect(self, allowed: tuple, *names: str, default=None) -> None:
        """Refuse a value that is not among those which the kit knows."""
        value = self.value(*names, default=default)
        if value not in allowed:
            raise CheckpointError(
                f"{self.where}: {names[0]} is {value!r}; this kit knows only {' or '.join(map(repr, allowed))}."
            )


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, known from the file's header only."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def find_tensors(folder: Path) -> dict[str, Stored]:
    """Read the headers of a folder's safetensors files: name -> file and shape. Raises CheckpointError."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise CheckpointError(f"{index} has no weight_map of tensor names to file names.")
        files = [folder / name for name in sorted(set(weight_map.values()))]
        for file in files:
            if file.parent != folder or not file.is_file():
                raise CheckpointError(
                    f"{index.name} lists {file.name!r}, which is not in {folder}. Download that file again."
                )
    else:
        weight_map, files = {}, sorted(folder.glob("*.safetensors"))
        if not files:
            raise no_weights(str(folder), (file.name for file in folder.glob("*")))
    found: dict[str, Stored] = {}
    for file in files:
        for name, stored in _header(file):
            if name in found:
                raise CheckpointError(f"Tensor {name} stands in both {found[name].file.name} and {file.name}.")
            found[name] = stored
    for name, file_name in weight_map.items():
        if name not in found or found[name].file.name != file_name:
            raise CheckpointError(f"{index.name} says that {name} is in {file_name}, but it is not there.")
    return found


def no_weights(where: str, names: Iterable[str]) -> CheckpointError:
    """The error for a place whose files, `names`, hold no safetensors."""
    pickles = sorted(name for name in names if any(fnmatch(name, pattern) for pattern in PICKLES))
    if not pickles:
        return CheckpointError(f"{where} holds no *.safetensors file.")
    return CheckpointError(
        f"{where} holds its weights only as pickles ({', '.join(pickles)}). A pickle can run any code, so the kit "
        "refuses it; convert it to safetensors where you trust it."
    )


def _header(file: Path) -> Iterator[tuple[str, Stored]]:
    try:
        # As "pt" torch would map the whole file writable, and Linux refuses that for a file larger than its memory.
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                view = tensors.get_slice(name)
                yield name, Stored(file, tuple(view.get_shape()), view.get_dtype())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or cut short ({error}). Download it again.") from error


def read_tensor(file: Path, name: str) -> "torch.Tensor":
    """One tensor of a file. Raises CheckpointError, or MemoryLimitError for a file larger than memory."""
    # The file is opened anew for each tensor: closing it gives its mapped pages back, so they never add up in memory.
    try:
        with safe_open(file, framework="pt") as tensors:
            return tensors.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}). Download it again.") from error
    except RuntimeError as error:  # torch maps the file as if all of it could be written to
        raise MemoryLimitError(f"{file} is too large for this machine's memory ({error}).") from error
