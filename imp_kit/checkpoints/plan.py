"""Whether a checkpoint's config.json and tensors fit together, and where in the network each tensor goes."""

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import nn

from imp_kit.checkpoints.config import parse_config, read_ends, read_family
from imp_kit.checkpoints.files import MIXED, TensorInfo, find_tensors, read_json
from imp_kit.checkpoints.key_maps import IGNORED, KEY_MAPS, KeyMap
from imp_kit.errors import CheckpointError
from imp_kit.model.config import DecoderConfig
from imp_kit.model.imp import ImpModel
from imp_kit.model.packed_linear import packed_itemsize

FLOATS = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class Slot:
    """Where a stored tensor goes: rows `start` to `stop` of a parameter, or the whole of it."""

    parameter: str
    start: int = 0
    stop: int | None = None


def slots(model: ImpModel, key_map: KeyMap) -> dict[str, Slot]:
    """Every tensor that a checkpoint with these names must hold, and where in `model` it goes."""
    table: dict[str, Slot] = {key_map.embedding: Slot("decoder.embed_tokens.weight")}
    for name, parameter in model.named_parameters():
        stem, kind = name.rsplit(".", 1)
        if name.startswith("vision."):
            table[f"{key_map.tower}vision_model.{name.removeprefix('vision.')}"] = Slot(name)
        elif name.startswith("projector."):
            table[key_map.projector + name.removeprefix("projector.")] = Slot(name)
        elif name.startswith("decoder.layers."):
            _, _, index, inner = stem.split(".", 3)
            parts = key_map.inner[inner]
            ends = accumulate(_rows(model.config.decoder, inner, len(parts), len(parameter)), initial=0)
            for part, (start, stop) in zip(parts, pairwise(ends), strict=True):
                table[f"{key_map.layer.format(index)}{part}.{kind}"] = Slot(name, start, stop)
        elif stem in key_map.outer:
            table[f"{key_map.outer[stem]}.{kind}"] = Slot(name)
    return table


def _rows(config: DecoderConfig, inner: str, parts: int, total: int) -> list[int]:
    """How many rows each of the `parts` has that are stored apart; keys and values can have fewer than queries."""
    if inner == "attention.qkv" and parts == 3:
        keys = config.num_kv_heads * config.head_dim
        return [total - 2 * keys, keys, keys]
    return [total // parts] * parts


@dataclass(frozen=True)
class LoadPlan:
    """What loading a checkpoint would do, known from config.json and the headers of its files."""

    where: str
    model: ImpModel  # without memory, on the device "meta"
    found: dict[str, TensorInfo]
    slots: dict[str, Slot]  # where each tensor that the model calls for goes
    ignored: frozenset[str]  # stored, and known not to be needed: the tower's head, its last layer, buffers
    unexpected: tuple[str, ...]  # stored, and unknown
    generation_ends: tuple[int, ...]  # ids that end an answer, as generation_config.json alone says
    problems: dict[str, str]  # tensors that are missing or do not fit: name -> what is wrong, in a sentence

    def needed_bytes(self, device: torch.device, dtype: torch.dtype, *, pack: bool, quantize: str | None = None) -> int:
        """Memory that a model needs, weights and keys and values; the settings are those of `load_weights`."""
        sizes, patches = self.model.config.decoder, self.model.config.vision.num_patches
        # Those of an image with a question, twice: a view has its own.
        cache = 2 * sizes.kv_values_per_token * (patches + 256) * dtype.itemsize
        return cache + self.weight_bytes(device, dtype, pack=pack, quantize=quantize)

    def weight_bytes(self, device: torch.device, dtype: torch.dtype, *, pack: bool, quantize: str | None = None) -> int:
        """Bytes of the weights alone."""
        stored = defaultdict(set)
        for key in self.slots.keys() & self.found.keys():
            stored[self.slots[key].parameter].add(self.found[key].dtype)
        total = 0
        for path, module in self.model.named_modules():
            for leaf, parameter in module.named_parameters(recurse=False):
                size = dtype.itemsize
                if pack and isinstance(module, nn.Linear) and leaf == "weight":
                    half = stored[f"{path}.{leaf}"] == {"F16"}
                    size = packed_itemsize(path, parameter.shape, device, dtype, quantize, half)
                total += parameter.numel() * size
        return total


def plan_folder(folder: Path) -> LoadPlan:
    """`plan` for a checkpoint on disk."""
    raw, generation = read_configs(folder)
    return plan(raw, find_tensors(folder), str(folder), generation)


def read_configs(folder: Path) -> tuple[dict, dict]:
    """config.json, and generation_config.json if there is one. Raises CheckpointError."""
    ends = folder / "generation_config.json"
    return read_json(folder / "config.json"), read_json(ends) if os.path.lexists(ends) else {}


def plan(raw: Mapping, found: dict[str, TensorInfo], where: str, generation: Mapping | None = None) -> LoadPlan:
    """Compare config.json (`raw`) with the stored tensors (`found`) of the checkpoint at `where`, loading nothing.

    `generation` is generation_config.json. Raises CheckpointError where they are too unusual to build a network from; a
    tensor that is missing or has another shape or dtype is a problem of the plan.
    """
    key_maps = KEY_MAPS[read_family(raw, f"{where}/config.json")]
    key_map = next((key_map for key_map in key_maps if key_map.sign in found), None)
    if key_map is None:
        signs = " or ".join(key_map.sign for key_map in key_maps)
        raise CheckpointError(
            f"{where} does not hold {signs}, which its config.json calls for ({raw['model_type']}): its tensors have "
            f"names that the kit does not know, or are another checkpoint's. {MIXED}"
        )
    towers = {
        name.removeprefix(key_map.tower): info.shape for name, info in found.items() if name.startswith(key_map.tower)
    }
    config = parse_config(raw, towers, f"{where}/config.json", generation)
    # Looked for before a network is built that may be absurdly deep.
    last = f"{key_map.layer.format(config.decoder.num_layers - 1)}{key_map.inner['norm'][0]}.weight"
    if last not in found:
        raise CheckpointError(f"{where} lacks the tensor {last}, which its config.json calls for.")
    with torch.device("meta"):
        model = ImpModel(config)
    table = slots(model, key_map)
    parameters = dict(model.named_parameters())
    checked = {name: _problem(name, slot, found, parameters, where) for name, slot in table.items()}
    problems = {name: problem for name, problem in checked.items() if problem}
    unused = re.compile(re.escape(key_map.tower) + r"vision_model\.encoder\.layers\.(\d+)\.")
    others = found.keys() - table.keys()
    ignored = {
        name
        for name in others
        if IGNORED.fullmatch(name) or ((layer := unused.match(name)) and int(layer[1]) >= config.vision.used_layers)
    }
    ends = read_ends(generation or {}, config.decoder.vocab_size, f"{where}/generation_config.json")
    return LoadPlan(where, model, found, table, frozenset(ignored), tuple(sorted(others - ignored)), ends, problems)


def _problem(
    name: str, slot: Slot, found: Mapping[str, TensorInfo], parameters: Mapping[str, nn.Parameter], where: str
) -> str | None:
    if name not in found:
        return f"{where} lacks the tensor {name}, which its config.json calls for."
    info = found[name]
    if info.dtype not in FLOATS:
        return f"{info.file}: {name} is stored as {info.dtype}; the kit reads {', '.join(FLOATS)}."
    rows, *others = parameters[slot.parameter].shape
    expected = (rows if slot.stop is None else slot.stop - slot.start, *others)
    if info.shape != expected:
        return f"{info.file}: {name} has the shape {info.shape}, but config.json calls for {expected}."
    return None
