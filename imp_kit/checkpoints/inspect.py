"""What a checkpoint holds and what loading would do with it, without downloading its weights."""

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from imp_kit.checkpoints.files import TensorInfo, check_name, check_not_exported, check_weights, find_tensors
from imp_kit.checkpoints.hub import HUB_IDS, UnreachableError, cached, find, hub_errors, locate, needed_files
from imp_kit.checkpoints.plan import LoadPlan, plan, read_configs
from imp_kit.checkpoints.published import published_tensors
from imp_kit.checkpoints.registry import PUBLISHED
from imp_kit.checkpoints.tokenizer import TextTokenizer
from imp_kit.errors import CheckpointError


@dataclass(frozen=True)
class Inspection:
    """A checkpoint's tensors and the plan of loading them; `refusal` says why there is none, or what else is wrong."""

    name: str
    revision: str | None
    found: dict[str, TensorInfo]
    plan: LoadPlan | None
    refusal: str | None
    files: dict[str, float | None] = field(default_factory=dict)  # what a download brings -> bytes, None if unknown
    note: str = ""

    @property
    def loads(self) -> bool:
        return self.refusal is None and self.plan is not None and not self.plan.problems

    @property
    def size(self) -> int:
        """Bytes of all stored tensors."""
        return sum(math.prod(info.shape) * _bytes(info.dtype) for info in self.found.values())

    def fate(self, name: str) -> str:
        """What the kit would do with a stored tensor, or why it cannot, in words."""
        if self.plan is None:
            return "?"
        if name in self.plan.problems:
            return f"does not fit: {self.plan.problems[name]}"
        if name in self.plan.slots:
            slot = self.plan.slots[name]
            return f"-> {slot.parameter}" + (f"[{slot.start}:{slot.stop}]" if slot.stop else "")
        return "not needed" if name in self.plan.ignored else "unknown, left out with a warning"

    def lines(self) -> Iterator[str]:
        """The whole report, a line a tensor in the order of their names."""
        yield f"{self.name}" + (f" at {self.revision}" if self.revision else "")
        if self.note:
            yield self.note
        files = {file for file in self.files if file.endswith(".safetensors")}
        files = files or {info.file.name for info in self.found.values()}
        yield f"{len(self.found)} tensors, {self.size / 1e9:.3g} GB, {len(files)} file{'s' * (len(files) != 1)}"
        if self.files:
            small = sum(size or 0 for name, size in self.files.items() if not name.endswith(".safetensors"))
            total = (self.size + small) / 1e9
            yield f"to download: {len(self.files)} files, {total:.3g} GB ({', '.join(map(_sized, self.files.items()))})"
        if self.plan:
            decoder, vision = self.plan.model.config.decoder, self.plan.model.config.vision
            yield (
                f"{self.plan.model.config.family}: {decoder.num_layers} layers of width {decoder.hidden_size}, "
                f"{decoder.num_heads} heads, vocabulary {decoder.vocab_size}, {decoder.max_positions} positions"
                + (f", of which each sees the last {decoder.window}" if decoder.window else "")
            )
            yield (
                f"tower: {vision.used_layers} layers of width {vision.hidden_size} are used, pictures of "
                f"{vision.image_size} x {vision.image_size} pixels become {vision.num_patches} tokens"
            )
        yield ""
        width = max(map(len, self.found), default=0)
        for name, info in sorted(self.found.items(), key=lambda item: _natural(item[0])):
            shape = " x ".join(map(str, info.shape)) or "one value"
            yield f"{name:<{width}}  {shape:<18}{info.dtype:<5}{info.file.name}  {self.fate(name)}"
        yield ""
        if self.plan is None:
            yield f"The kit would refuse it: {self.refusal}"
            return
        used = self.plan.slots.keys() - self.plan.problems.keys()
        yield f"{len(used)} used, {len(self.plan.ignored)} not needed, {len(self.plan.unexpected)} unknown"
        for name in sorted(self.plan.problems.keys() - self.found.keys(), key=_natural):
            yield self.plan.problems[name]
        wrong = self.refusal or f"{len(self.plan.problems)} missing or not fitting."
        yield "The kit would load it." if self.loads else f"The kit would refuse it: {wrong}"


def inspect(checkpoint: str | os.PathLike, revision: str | None = None) -> Inspection:
    """Read config.json and the headers of the safetensors files of a checkpoint, which may be anything `find` takes.

    Of a checkpoint that is neither a folder nor complete in the hub cache, only these parts are downloaded; where the
    hub cannot be reached, a published one is described from the registry. Raises CheckpointError.
    """
    located, note = locate(checkpoint), ""
    files: dict[str, float | None] = {}
    commit: str | None
    if isinstance(located, str) and not cached(located, revision):
        try:
            name, commit, raw, ends, found, where, files = _from_hub(located, revision)
        except UnreachableError as error:
            if revision is not None or located not in HUB_IDS.values():
                raise
            name, commit, raw, ends, found, where, files = _from_registry(located)
            guessed = ", ".join(next(each for each in PUBLISHED.values() if each.hub_id == located).inferred)
            note = (
                f"{error} What follows is the kit's own table of commit {commit}, from public pages of the hub; "
                f"inferred, not seen whole: {guessed}."
            )
    else:
        snapshot = find(checkpoint, revision)
        check_not_exported(snapshot.folder)
        name, commit, where = snapshot.name, snapshot.revision, str(snapshot.folder)
        raw, ends, found = *read_configs(snapshot.folder), find_tensors(snapshot.folder)
    checked = None
    try:
        checked = plan(raw, found, where, ends)
        if not files:
            TextTokenizer(Path(where))
    except CheckpointError as error:  # the keys and shapes are worth seeing all the same
        return Inspection(name, commit, found, checked, str(error), files, note)
    return Inspection(name, commit, found, checked, None, files, note)


Found = tuple[str, str | None, dict, dict, dict[str, TensorInfo], str, dict[str, float | None]]


def _from_registry(hub_id: str) -> Found:
    """What `_from_hub` gives, of a published checkpoint without the hub; which file a tensor is in is not known."""
    name = next(name for name in HUB_IDS if HUB_IDS[name] == hub_id)
    entry, no_file = PUBLISHED[name], Path("-")
    found = {key: TensorInfo(no_file, shape, entry.dtype) for key, shape in published_tensors(name).items()}
    files = {file: entry.files[file] for file in sorted(needed_files(entry.files))}
    return hub_id, entry.commit, entry.config, entry.contents["generation_config.json"], found, hub_id, files


def _from_hub(hub_id: str, revision: str | None) -> Found:
    """Name, commit, both configs, tensors, repository and files of a checkpoint; headers come by range request."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import NotASafetensorsRepoError

    api = HfApi()
    with hub_errors(hub_id, revision):
        info = api.model_info(hub_id, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size for file in info.siblings or ()}
        try:
            headers = api.get_safetensors_metadata(hub_id, revision=info.sha)
        except NotASafetensorsRepoError:
            check_weights(hub_id, sizes)
            raise
        folder = Path(hf_hub_download(hub_id, "config.json", revision=info.sha)).parent
        if "generation_config.json" in sizes:
            hf_hub_download(hub_id, "generation_config.json", revision=info.sha)
    for header in headers.files_metadata.values():
        for name in header.tensors:
            check_name(name, hub_id)
    found = {
        name: TensorInfo(Path(file), tuple(tensor.shape), tensor.dtype)
        for file, header in headers.files_metadata.items()
        for name, tensor in header.tensors.items()
    }
    files: dict[str, float | None] = {name: sizes[name] for name in sorted(needed_files(sizes))}
    return hub_id, info.sha, *read_configs(folder), found, hub_id, files


def _sized(file: tuple[str, float | None]) -> str:
    """A file's name and size, in the decimal units of the hub's pages."""
    name, size = file
    if size is None:
        return name
    unit, letters = next((unit for unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size >= unit[0]), (1, "bytes"))
    return f"{name} {size / unit:.3g} {letters}"


def _bytes(dtype: str) -> int:
    """Bytes of one value; the name of a dtype in a safetensors file begins with its bits, but for BOOL."""
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) // 8 if bits else 1


def _natural(name: str) -> list:
    """A sorting key that puts layer 10 after layer 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
