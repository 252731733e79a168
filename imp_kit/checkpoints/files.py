"""What a checkpoint's folder holds: its settings, and its tensors as the headers of their files list them."""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from imp_kit.errors import CheckpointError, MemoryLimitError, SettingError

if TYPE_CHECKING:
    import torch

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
DESCRIPTION = "imp-kit.json"  # in a folder that an export for llama.cpp wrote
MOST_LINKS = 10  # in a chain
TEXT_LIMIT = 32_000_000  # bytes of a JSON file or a header; more is no checkpoint's, and would only fill the memory
MIXED = "Files of two checkpoints are mixed, or one is missing: download them again."
INCOMPLETE = "If its download was cut short, load it by its name once more while online."


def check_space(target: Path, needed: float, what: str, name: str = "out") -> None:
    """Raise SettingError where `needed` bytes do not fit on the disk of `target`, which need not exist.

    `name` is the setting that names it.
    """
    there = next(folder for folder in (target, *target.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        sizes = f"{format_size(free)} are free; {what} takes {format_size(needed)}"
        raise SettingError(f"{name} is {str(target)!r}, where {sizes}. Free some, or choose another disk.")


def format_size(nbytes: float) -> str:
    """Bytes in words: "2.9 GB", or "71 MB" below one GB."""
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f} MB"


def is_exported(folder: Path) -> bool:
    """Whether an export for llama.cpp wrote this folder."""
    return os.path.lexists(folder / DESCRIPTION)


def check_not_exported(folder: Path) -> None:
    """Raise CheckpointError for a folder that an export for llama.cpp wrote: it holds no checkpoint."""
    if is_exported(folder):
        raise CheckpointError(
            f"{folder} was written for llama.cpp; load it with engine='llama.cpp', or give the checkpoint that it was "
            "made of."
        )


def follow(file: Path) -> Path:
    """The file that a checkpoint's `file` is or links to; every file of a checkpoint is opened through here.

    A link may lead to a file inside its own folder; from a hub cache's snapshot, wherever it was copied to, into the
    blobs beside it; and to a blob in this machine's own hub cache, wherever its owner keeps that. Any other is refused:
    a folder from elsewhere must not make the kit read this machine's other files, whose text an error could show.
    Raises CheckpointError; a file that is not there passes.
    """
    target = Path(os.path.realpath(file))
    own = target.is_relative_to(os.path.realpath(file.parent))
    if not (own or _in_blobs(Path(os.path.realpath(file.parent)), target) or _in_own_cache(file)):
        raise CheckpointError(
            f"{file} is a link to {target}, outside its folder, and the kit does not follow it. "
            "Put a copy or a hard link in its place, or give the folder that holds the file itself."
        )
    if os.path.lexists(file) and not os.path.isfile(target):
        raise CheckpointError(f"{file} is no file, or a link to one that is not there. {INCOMPLETE}")
    return target


def _in_blobs(folder: Path, target: Path) -> bool:
    """Whether a file lies among the blobs of REPOSITORY/snapshots/COMMIT, a folder made by the hub's client."""
    if folder.parent.name != "snapshots":
        return False
    repository = folder.parent.parent
    # Blobs that repositories share, since huggingface_hub 2: blobs/<2 digits>/<64 digits> beside them.
    shared = re.fullmatch(r"[0-9a-f]{64}", target.name) and target.parent.parent == repository.parent / "blobs"
    return bool(target.parent == repository / "blobs" or shared)


def _in_own_cache(file: Path) -> bool:
    """Whether a file is a blob in this machine's hub cache, or links to one; the blob itself may be a link again."""
    from huggingface_hub import constants

    cache = Path(os.path.realpath(constants.HF_HUB_CACHE))
    step = Path(os.path.realpath(file.parent), file.name)
    for _ in range(MOST_LINKS):
        parts = step.relative_to(cache).parts if step.is_relative_to(cache) else ()
        # REPOSITORY/blobs/FILE, or shared by repositories: blobs/<2 digits>/<64 digits>.
        own = len(parts) == 3 and parts[0].startswith("models--") and parts[1] == "blobs"
        if own or (len(parts) == 3 and parts[0] == "blobs" and re.fullmatch(r"[0-9a-f]{64}", parts[2])):
            return True
        if not step.is_symlink():
            return False
        link = Path(os.path.normpath(step.parent / os.readlink(step)))
        # Within the cache as it is written there, since its folders may be links to another disk.
        step = link if link.is_relative_to(cache) else Path(os.path.realpath(link.parent), link.name)
    return False


def file_names(folder: Path) -> set[str]:
    """The names of a checkpoint's files. Those that begin with a dot, such as macOS's "._" files, are ignored."""
    try:
        return {name for name in os.listdir(folder) if not name.startswith(".")}
    except OSError:  # no folder
        return set()


def readable(name: str) -> str:
    """A file's name as text that can be printed and stored, also where its bytes are no UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def text_file(file: Path) -> Path:
    """`follow`, for a file that is to be read at once: raises CheckpointError, too, for one that is far too large."""
    target = follow(file)
    size = target.stat().st_size
    if size > TEXT_LIMIT:
        raise CheckpointError(f"{file} takes {size} bytes; the kit reads at most {TEXT_LIMIT} of such a file.")
    return target


def quote(value: object) -> str:
    """A value from a file for an error message: escaped, and cut after 300 characters."""
    try:
        text = repr(value)
    except RecursionError:
        return "a value nested without end"
    return text if len(text) <= 300 else f"{text[:300]}..."


def check_name(name: str, where: object) -> None:
    """Raise CheckpointError for what no tensor is called; names are printed, and the numbers in them read."""
    if not (name.isprintable() and 0 < len(name) <= 300):
        raise CheckpointError(f"{where} holds a tensor by the name of {quote(name)}, which is no tensor's name.")


def read_json(file: Path) -> dict:
    """A JSON object from a file. Raises CheckpointError where there is none."""
    try:
        value = json.loads(text_file(file).read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{file.parent} has no {file.name}; it is not a checkpoint's folder, or not a whole one. {INCOMPLETE}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON ({error}). Correct it, or download it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds no JSON object. Correct it, or download it again.")
    return value


class Fields:
    """Takes values out of config.json. Its methods raise CheckpointError, naming the field, its value and the file.

    Each takes the names that a value may have; the first that is there and not null counts.
    """

    def __init__(self, raw: Mapping, where: str):
        self.raw, self.where = raw, where

    def value(self, *names: str, default: Any = None) -> Any:
        """A value as it stands; `default` where no name has one."""
        for name in names:
            if self.raw.get(name) is not None:
                return self.raw[name]
        return default

    def number(self, *names: str, default: Any = None, kind: type = int, limit: int = 2**31 - 1) -> Any:
        """A positive number up to `limit`, an int or a float as `kind` says."""
        value = self.value(*names, default=default)
        if value is None:
            raise CheckpointError(f"{self.where} has none of: {', '.join(names)}.")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        # JSON as Python reads it has NaN and Infinity, too; neither is within the bounds.
        if not number or not 0 < value <= limit or value != kind(value):
            raise CheckpointError(
                f"{self.where}: {names[0]} is {quote(value)}, not a positive {kind.__name__} up to {limit}."
            )
        return kind(value)

    def expect(self, allowed: tuple, *names: str, default: Any = None) -> None:
        """Refuse a value that is not among those which the kit knows."""
        value = self.value(*names, default=default)
        if value not in allowed:
            raise CheckpointError(
                f"{self.where}: {names[0]} is {quote(value)}; this kit knows only {' or '.join(map(repr, allowed))}."
            )


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a file, known from the file's header only."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def find_tensors(folder: Path) -> dict[str, TensorInfo]:
    """Read the headers of a folder's safetensors files: name -> file and shape. Raises CheckpointError."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise CheckpointError(f"{index} has no weight_map of tensor names to file names.")
        files = [folder / name for name in sorted(set(weight_map.values()))]
        for file in files:
            if file.parent != folder or not os.path.isfile(file):
                raise CheckpointError(f"{index.name} lists {quote(file.name)}, which is not in {folder}. {INCOMPLETE}")
    else:
        names = file_names(folder)
        weight_map, files = {}, [folder / name for name in sorted(names) if name.endswith(".safetensors")]
        check_weights(readable(str(folder)), names)
    found: dict[str, TensorInfo] = {}
    for file in files:
        for name, info in _header(file):
            if name in found:
                raise CheckpointError(f"Tensor {name} stands in both {found[name].file.name} and {file.name}. {MIXED}")
            found[name] = info
    for name, file_name in weight_map.items():
        if name not in found or found[name].file.name != file_name:
            raise CheckpointError(
                f"{index.name} says that {quote(name)} is in {quote(file_name)}, but it is not there. {MIXED}"
            )
    return found


def check_adapters(where: str, names: Iterable[str]) -> None:
    """Raise CheckpointError where files of these `names` are LoRA adapters without a model."""
    names = set(names)
    weights = {name for name in names if name.endswith(".safetensors")}
    if "adapter_config.json" in names and weights <= {"adapter_model.safetensors"}:
        raise CheckpointError(
            f"{where} holds LoRA adapters alone (adapter_config.json), no whole model. Merge them into the checkpoint "
            "that they were trained on, then load the result: peft's PeftModel.from_pretrained(model, folder)"
            ".merge_and_unload().save_pretrained(new_folder)."
        )


def check_weights(where: str, names: Iterable[str]) -> None:
    """Raise CheckpointError where files of these `names` hold no model's weights as safetensors."""
    names = set(names)
    check_adapters(where, names)
    if any(name.endswith(".safetensors") for name in names):
        return
    pickles = sorted(name for name in names if any(fnmatch(name, pattern) for pattern in PICKLES))
    if pickles:
        raise CheckpointError(
            f"{where} holds its weights only as pickles ({', '.join(pickles)}). A pickle can run any code, so the kit "
            "refuses it; convert it to safetensors where you trust it."
        )
    raise CheckpointError(f"{where} holds no *.safetensors file. {INCOMPLETE}")


def _header(file: Path) -> Iterator[tuple[str, TensorInfo]]:
    target = follow(file)
    if readable(str(target)) != str(target):
        raise CheckpointError(f"{file}: bytes in this path are no UTF-8, and safetensors cannot open it. Rename it.")
    try:
        with target.open("rb") as stream:
            start = stream.read(8)
            if start == b"version ":  # how git stores a large file that it did not fetch
                raise CheckpointError(f"{file} is a pointer of Git LFS, no weights: run `git lfs pull` in its folder.")
            length = int.from_bytes(start, "little")
            if length > TEXT_LIMIT:
                raise SafetensorError(f"a header of {length} bytes")
            header = stream.read(length)
        # As "pt" torch would map the whole file writable, and Linux refuses that for a file larger than its memory.
        with safe_open(target, framework="np") as tensors:
            # Of two tensors by one name and with the same bytes, safetensors keeps the last and does not say so.
            names = Counter(name for name, _ in json.loads(header, object_pairs_hook=list))
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                check_name(name, file)
                if names[name] > 1:
                    raise CheckpointError(f"{file} holds the tensor {name} {names[name]} times. Download it again.")
                view = tensors.get_slice(name)
                yield name, TensorInfo(file, tuple(view.get_shape()), view.get_dtype())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or cut short ({error}). Download it again.") from error


def read_tensor(file: Path, target: Path, name: str, rows: slice | None = None) -> "torch.Tensor":
    """One tensor of a file, or some of its rows; `target` is where it leads, as `follow` says.

    Raises CheckpointError, or MemoryLimitError for a file larger than memory.
    """
    # The file is opened anew for each tensor: closing it gives its mapped pages back, so they never add up in memory.
    try:
        with safe_open(target, framework="pt") as tensors:
            return tensors.get_tensor(name) if rows is None else tensors.get_slice(name)[rows]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}). Download it again.") from error
    except RuntimeError as error:  # torch maps the file as if all of it could be written to
        raise MemoryLimitError(f"{file} is too large for this machine's memory ({error}).") from error
