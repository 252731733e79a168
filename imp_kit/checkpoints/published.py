"""The networks of the published checkpoints: their tensors, and random weights in their place."""

import re
import zlib
from collections.abc import Sequence

import torch
from torch import nn

from imp_kit.checkpoints.config import parse_config
from imp_kit.checkpoints.key_maps import NEW_PHI, OLD_PHI, PHI3, QWEN
from imp_kit.checkpoints.plan import slots
from imp_kit.checkpoints.registry import PUBLISHED
from imp_kit.errors import MemoryLimitError, SettingError
from imp_kit.model.config import ImpConfig
from imp_kit.model.imp import ImpModel
from imp_kit.model.memory import free_memory
from imp_kit.prompts import Control

NAMED_KEY_MAPS = {"old": OLD_PHI, "new": NEW_PHI, "qwen": QWEN, "phi3": PHI3}  # by a registry entry's `layout`
WIDTH, MLP, PATCH, LAYERS = 1152, 4304, 14, 26  # of the tower as the files hold it: without its last layer and head


def published_config(name: str) -> ImpConfig:
    """The configuration of a published checkpoint, a key of PUBLISHED. Raises SettingError for any other name."""
    if name not in PUBLISHED:
        raise SettingError(f"There is no published size {name!r}; choose from {', '.join(PUBLISHED)}.")
    entry = PUBLISHED[name]
    shapes = {
        "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
        "vision_model.embeddings.position_embedding.weight": ((entry.image_size // PATCH) ** 2, WIDTH),
        "vision_model.encoder.layers.0.mlp.fc1.weight": (MLP, WIDTH),
        f"vision_model.encoder.layers.{LAYERS - 1}.mlp.fc1.weight": (MLP, WIDTH),
    }
    return parse_config(entry.config, shapes, name, entry.contents["generation_config.json"])


def published_tensors(name: str) -> dict[str, tuple[int, ...]]:
    """Every tensor of a published checkpoint by its name in the files, and its shape. Raises SettingError."""
    config = published_config(name)
    with torch.device("meta"):
        model = ImpModel(config)
    parameters = dict(model.named_parameters())
    shapes = {}
    for key, slot in slots(model, NAMED_KEY_MAPS[PUBLISHED[name].layout]).items():
        rows, *others = parameters[slot.parameter].shape
        shapes[key] = (rows if slot.stop is None else slot.stop - slot.start, *others)
    return shapes


def random_model(config: ImpConfig, device: torch.device, dtype: torch.dtype) -> ImpModel:
    """A network whose weights are noise (standard deviation 0.02), rounded as in a file of fp16; norms 1, biases 0.

    Made on the device, parameter by parameter; one block of noise is repeated, since billions of draws take minutes.
    Raises MemoryLimitError.
    """
    with torch.device("meta"):
        model = ImpModel(config)
    needed, free = sum(p.numel() for p in model.parameters()) * dtype.itemsize, free_memory(device)
    if needed > free:
        raise MemoryLimitError(f"These weights need {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free.")
    generator = torch.Generator(device).manual_seed(0)
    noise = torch.randn(2**22 + 1, generator=generator, device=device).mul_(0.02).half().to(dtype)
    for name, parameter in list(model.named_parameters()):
        stem, leaf = name.rsplit(".", 1)
        values = torch.full(parameter.shape, float(leaf != "bias"), device=device, dtype=dtype)
        if parameter.ndim > 1:
            for part in values.view(-1).split(len(noise)):
                part.copy_(noise[: len(part)])
        setattr(model.get_submodule(stem), leaf, nn.Parameter(values, requires_grad=False))
    return model.eval()


class HashTokenizer:
    """Stands in for the tokenizer of a network without a checkpoint: every word or mark is one id, no id is a text."""

    def __init__(self, vocab_size: int):
        self.control: dict[str, int] = {}
        self.prefix = self.suffix = ()
        self._vocab_size = vocab_size

    def encode_pieces(self, pieces: Sequence[str], *, begins: bool = False) -> list[int]:
        marks = ([] if isinstance(piece, Control) else re.findall(r"\w+|[^\w\s]", piece) for piece in pieces)
        return [zlib.crc32(mark.encode()) % self._vocab_size for piece in marks for mark in piece]

    def decode(self, ids: Sequence[int]) -> str:
        return ""
