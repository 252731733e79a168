"""The sizes of the published checkpoints, and networks with random weights: no file of a checkpoint is needed."""

import re
import zlib
from collections.abc import Sequence

import torch
from torch import nn

from imp_kit.config_json import parse_config
from imp_kit.errors import MemoryLimitError, SettingError
from imp_kit.machine import free_memory
from imp_kit.model.config import ImpConfig
from imp_kit.model.imp import ImpModel
from imp_kit.prompts import Control

PHI2 = {
    "vocab_size": 51200,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 3072,
    "partial_rotary_factor": 0.4,
    "rope_theta": 10000.0,
    "layer_norm_eps": 1e-5,
}
QWEN = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5504,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
}
PHI3 = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 32000,
}
CHECKPOINTS = {  # name -> family, language model, pixels of the picture's side, layout
    "imp-v1-3b": ("imp", PHI2, 384, "old"),
    "imp-v1.5-3b-phi2": ("imp", PHI2, 384, "new"),
    "imp-v1.5-3b-196": ("imp", PHI2, 196, "old"),
    "imp-v1.5-2b-qwen1.5": ("imp_qwen2", QWEN, 384, "qwen"),
    "imp-v1.5-4b-phi3": ("imp_phi3", PHI3, 384, "phi3"),
}
TOWER = "google/siglip-so400m-patch14-384"
WIDTH, MLP, PATCH, LAYERS = 1152, 4304, 14, 27  # of that tower


def published_config(name: str) -> ImpConfig:
    """The configuration of a published checkpoint, a key of CHECKPOINTS. Raises SettingError for any other name."""
    if name not in CHECKPOINTS:
        raise SettingError(f"There is no published size {name!r}; choose from {', '.join(CHECKPOINTS)}.")
    family, decoder, side, _ = CHECKPOINTS[name]
    shapes = {
        "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
        "vision_model.embeddings.position_embedding.weight": ((side // PATCH) ** 2, WIDTH),
        "vision_model.encoder.layers.0.mlp.fc1.weight": (MLP, WIDTH),
        f"vision_model.encoder.layers.{LAYERS - 1}.mlp.fc1.weight": (MLP, WIDTH),
    }
    return parse_config({**decoder, "model_type": family, "mm_vision_tower": TOWER}, shapes, name)


def random_model(config: ImpConfig, device: torch.device, dtype: torch.dtype) -> ImpModel:
    """A network whose weights are noise (standard deviation 0.02), rounded as in a file of fp16; norms 1, biases 0.

    Made on the device, parameter by parameter; one block of noise is repeated, since billions of draws take minutes.
    Raises MemoryLimitError.
    """
    with torch.device("meta"):
        model = ImpModel(config)
    needed, free = sum(p.numel() for p in model.parameters()) * dtype.itemsize, free_memory(device)
    if free is not None and needed > free:
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


class Words:
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
