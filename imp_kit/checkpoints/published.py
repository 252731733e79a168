"""The networks of the published checkpoints: their tensors, and random weights in their place."""

import json
import math
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

from imp_kit.checkpoints.config import parse_config
from imp_kit.checkpoints.key_maps import NEW_PHI, OLD_PHI, PHI3, QWEN
from imp_kit.checkpoints.plan import slots
from imp_kit.checkpoints.registry import PUBLISHED
from imp_kit.errors import MemoryLimitError, SettingError
from imp_kit.model.config import ImpConfig
from imp_kit.model.imp import ImpModel
from imp_kit.model.memory import free_memory
from imp_kit.prompts import TEMPLATES, Control

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
    noise = _noise(device).to(dtype)
    for name, parameter in list(model.named_parameters()):
        stem, leaf = name.rsplit(".", 1)
        values = torch.full(parameter.shape, float(leaf != "bias"), device=device, dtype=dtype)
        if parameter.ndim > 1:
            for part in values.view(-1).split(len(noise)):
                part.copy_(noise[: len(part)])
        setattr(model.get_submodule(stem), leaf, nn.Parameter(values, requires_grad=False))
    return model.eval()


def _noise(device: torch.device) -> Tensor:
    """The block of values that is repeated, fp16 (4194305,)."""
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(2**22 + 1, generator=generator, device=device).mul_(0.02).half()


def random_bytes(name: str) -> int:
    """Bytes of the tensors that `write_random` writes. Raises SettingError."""
    return sum(2 * math.prod(shape) for shape in published_tensors(name).values())


def write_random(folder: Path, name: str, texts: Sequence[str], progress: Callable[[int], object]) -> None:
    """Write a checkpoint of a published size whose weights are noise as in `random_model`, in fp16, piece by piece.

    Its tokenizer has a token for each word of `texts` and of the family's template, and the family's control tokens.
    `progress` is told the bytes of each piece. Raises SettingError for an unknown name.
    """
    shapes = published_tensors(name)
    ends = list(accumulate((2 * math.prod(shape) for shape in shapes.values()), initial=0))
    header = {
        key: {"dtype": "F16", "shape": list(shape), "data_offsets": list(span)}
        for (key, shape), span in zip(shapes.items(), pairwise(ends), strict=True)
    }
    described = json.dumps(header).encode()
    described += b" " * (-len(described) % 8)
    noise, config = _noise(torch.device("cpu")).numpy(), PUBLISHED[name].config
    with (folder / "model.safetensors").open("wb") as target:
        target.write(struct.pack("<Q", len(described)) + described)
        for key, shape in shapes.items():
            left = math.prod(shape)
            values = noise if len(shape) > 1 else torch.full(shape, float(not key.endswith("bias"))).half().numpy()
            while left:
                target.write(values[:left].tobytes())
                progress(2 * min(left, len(values)))
                left -= min(left, len(values))
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    template = TEMPLATES[config["model_type"]]
    words = re.findall(r"[a-zA-Z]+", " ".join((template.opening, template.first, *texts)))
    _write_tokenizer(folder / "tokenizer.json", words, template.control)


def _write_tokenizer(file: Path, words: Sequence[str], control: Sequence[str]) -> None:
    """A byte-level BPE that makes one token of each of these words, alone and after a blank."""
    blank = "\u0120"  # as byte-level tokenizers write it
    vocabulary = {letter: id for id, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: dict[tuple[str, str], None] = {}
    for word in dict.fromkeys([*words, *(blank + word for word in words)]):
        for pair in ((word[:end], word[end]) for end in range(1, len(word))):
            merges[pair] = None
            vocabulary.setdefault("".join(pair), len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(file))


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
