"""What a checkpoint holds and what loading would do with it, without downloading its weights."""

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imp_kit.checkpoints import cached, find, hub_told, locate
from imp_kit.errors import CheckpointError
from imp_kit.fitting import Plan, plan
from imp_kit.stored import Stored, check_name, check_weights, find_tensors, read_json


@dataclass(frozen=True)
class Inspection:
    """A checkpoint's tensors, and the plan of loading them; without a plan, `refusal` says why there is none."""

    name: str
    revision: str | None
    found: dict[str, Stored]
    plan: Plan | None
    refusal: str | None

    @property
    def loads(self) -> bool:
        return self.plan is not None and not self.plan.faults

    @property
    def size(self) -> int:
        """Bytes of all stored tensors."""
        return sum(math.prod(stored.shape) * _bytes(stored.dtype) for stored in self.found.values())

    def fate(self, name: str) -> str:
        """What the kit would do with a stored tensor, or why it cannot, in words."""
        if self.plan is None:
            return "?"
        if name in self.plan.faults:
            return f"does not fit: {self.plan.faults[name]}"
        if name in self.plan.slots:
            slot = self.plan.slots[name]
            return f"-> {slot.parameter}" + (f"[{slot.start}:{slot.stop}]" if slot.stop else "")
        return "not needed" if name in self.plan.idle else "unknown, left out with a warning"

    def lines(self) -> Iterator[str]:
        """The whole report, a line a tensor in the order of their names."""
        yield f"{self.name}" + (f" at {self.revision}" if self.revision else "")
        files = {stored.file.name for stored in self.found.values()}
        yield f"{len(self.found)} tensors, {self.size / 1e9:.3g} GB, {len(files)} file{'s' * (len(files) != 1)}"
        if self.plan:
            decoder, vision = self.plan.model.config.decoder, self.plan.model.config.vision
            yield (
                f"{self.plan.model.config.family}: {decoder.num_layers} layers of width {decoder.hidden_size}, "
                f"{decoder.num_heads} heads, vocabulary {decoder.vocab_size}, {decoder.max_positions} positions"
            )
            yield (
                f"tower: {vision.used_layers} layers of width {vision.hidden_size} are used, pictures of "
                f"{vision.image_size} x {vision.image_size} pixels become {vision.num_patches} tokens"
            )
        yield ""
        width = max(map(len, self.found), default=0)
        for name, stored in sorted(self.found.items(), key=lambda item: _natural(item[0])):
            shape = " x ".join(map(str, stored.shape)) or "one value"
            yield f"{name:<{width}}  {shape:<18}{stored.dtype:<5}{stored.file.name}  {self.fate(name)}"
        yield ""
        if self.plan is None:
            yield f"The kit would refuse it: {self.refusal}"
            return
        used = self.plan.slots.keys() - self.plan.faults.keys()
        yield f"{len(used)} used, {len(self.plan.idle)} not needed, {len(self.plan.spare)} unknown"
        for name in sorted(self.plan.faults.keys() - self.found.keys(), key=_natural):
            yield self.plan.faults[name]
        wrong = len(self.plan.faults)
        yield "The kit would load it." if self.loads else f"The kit would refuse it: {wrong} missing or not fitting."


def inspect(checkpoint: str | os.PathLike, revision: str | None = None) -> Inspection:
    """Read config.json and the headers of the safetensors files of a checkpoint, which may be anything `find` takes.

    Of a checkpoint that is neither a folder nor complete in the hub cache, only these parts are downloaded.
    Raises CheckpointError.
    """
    place = locate(checkpoint)
    if isinstance(place, str) and not cached(place, revision):
        name, commit, raw, found, where = _from_hub(place, revision)
    else:
        snapshot = find(checkpoint, revision)
        name, commit, where = snapshot.name, snapshot.revision, str(snapshot.folder)
        raw, found = read_json(snapshot.folder / "config.json"), find_tensors(snapshot.folder)
    try:
        return Inspection(name, commit, found, plan(raw, found, where), None)
    except CheckpointError as error:  # the keys and shapes are worth seeing all the same
        return Inspection(name, commit, found, None, str(error))


def _from_hub(hub_id: str, revision: str | None) -> tuple[str, str, dict, dict[str, Stored], str]:
    """Name, commit, config.json, tensors and place of a checkpoint on the hub; headers come by range request."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import NotASafetensorsRepoError

    api = HfApi()
    with hub_told(hub_id, revision):
        info = api.model_info(hub_id, revision=revision)
        try:
            headers = api.get_safetensors_metadata(hub_id, revision=info.sha)
        except NotASafetensorsRepoError:
            check_weights(hub_id, (file.rfilename for file in info.siblings or ()))
            raise
        config = Path(hf_hub_download(hub_id, "config.json", revision=info.sha))
    for header in headers.files_metadata.values():
        for name in header.tensors:
            check_name(name, hub_id)
    found = {
        name: Stored(Path(file), tuple(tensor.shape), tensor.dtype)
        for file, header in headers.files_metadata.items()
        for name, tensor in header.tensors.items()
    }
    return hub_id, info.sha, read_json(config), found, hub_id


def _bytes(dtype: str) -> int:
    """Bytes of one value; the name of a dtype in a safetensors file begins with its bits, but for BOOL."""
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) // 8 if bits else 1


def _natural(name: str) -> list:
    """A sorting key that puts layer 10 behind layer 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
