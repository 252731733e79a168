"""Adapters beside the decoder's linear layers, and checkpoints in which they are merged into the weights."""

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from imp_kit.checkpoints.files import follow, read_tensor
from imp_kit.checkpoints.hub import loaded_files
from imp_kit.checkpoints.plan import LoadPlan
from imp_kit.errors import CheckpointError
from imp_kit.model.imp import ImpModel
from imp_kit.model.packed_linear import GeluLinear

# The linear layers of a decoder's block: queries, keys and values in one; attention's output; the MLP's two, of which
# `up` holds the gate, too, where there is one.
TARGETS = {"qkv": "attention.qkv", "out": "attention.out", "up": "mlp.up", "down": "mlp.down"}
ADAPTER = "default"  # peft's own name for the first


class Adapter(NamedTuple):
    """A trained adapter of one weight, on the CPU: `scale` x `b` @ `a` is added to it."""

    a: Tensor  # float32 (rank, columns)
    b: Tensor  # float32 (rows, rank)
    scale: float

    def delta(self, start: int = 0, stop: int | None = None) -> Tensor:
        """What rows `start` to `stop` of the weight change by, float32."""
        return self.scale * (self.b[start:stop] @ self.a)


def add_adapters(model: ImpModel, rank: int, alpha: float, targets: Sequence[str], seed: int) -> list[nn.Parameter]:
    """Put adapters, float32, beside the layers `targets` (names of TARGETS) of each block; return what can be trained.

    As peft does it: the first factor is random, by the seed, and the second 0, so that nothing changes yet.
    """
    from peft import LoraConfig, inject_adapter_in_model

    layers, device = model.decoder.layers, model.device
    paths = [f"{index}.{TARGETS[name]}" for index in range(len(layers)) for name in targets]
    fused = {path: layer for path in paths if isinstance(layer := layers.get_submodule(path), GeluLinear)}
    for path, layer in fused.items():  # what is added belongs before the activation
        plain = nn.Linear(layer.in_features, layer.out_features, device="meta")
        plain.weight, plain.bias = layer.weight, layer.bias
        layers.set_submodule(path, plain)
    # peft's type says int, and it computes alpha / rank.
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=paths)  # type: ignore[arg-type]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, layers)
    for path in fused:
        layers.get_submodule(path).register_forward_hook(lambda _, __, y: F.gelu(y, approximate="tanh"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    return trained


def collect_adapters(model: ImpModel) -> dict[str, Adapter]:
    """The adapters of a model by the weights that they belong to, such as "decoder.layers.0.mlp.up.weight"."""
    from peft.tuners.lora import LoraLayer

    found = {}
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            layer: Any = module
            factors = (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight)
            a, b = (factor.detach().to("cpu", torch.float32, copy=True) for factor in factors)
            found[f"{path}.weight"] = Adapter(a, b, layer.scaling[ADAPTER])
    return found


def write_merged(plan: LoadPlan, source: Path, adapters: Mapping[str, Adapter], folder: Path, progress: bool) -> None:
    """Copy a checkpoint's files to `folder`, and add to each weight what its adapter says.

    Names, order, dtypes and files of the tensors are those of the source. A sum is made in fp32 and rounded to the
    stored dtype, fp16 to 11 significant bits and bf16 to 8; what has no adapter stays as it is, bit for bit. One tensor
    at a time is in memory. Raises CheckpointError where a sum is no number in that dtype.
    """
    for name in sorted(loaded_files(source)):
        shutil.copyfile(follow(source / name), folder / name)
    changed = defaultdict(list)
    for key, slot in plan.slots.items():
        if slot.parameter in adapters:
            changed[plan.found[key].file].append((key, slot))
    total = sum(map(len, changed.values()))
    with tqdm(total=total, unit="tensor", desc="merging", disable=not progress) as bar:
        for file, entries in changed.items():
            target = follow(file)
            with (folder / file.name).open("r+b") as opened:
                offsets = _offsets(opened)
                for key, slot in entries:
                    stored = read_tensor(file, target, key)
                    merged = (stored.float() + adapters[slot.parameter].delta(slot.start, slot.stop)).to(stored.dtype)
                    if not merged.isfinite().all():
                        raise CheckpointError(
                            f"{key} with what was learned holds what is no number as "
                            f"{str(stored.dtype).removeprefix('torch.')}. Choose a smaller learning_rate."
                        )
                    opened.seek(offsets[key])
                    opened.write(merged.contiguous().view(torch.uint8).numpy().tobytes())
                    bar.update()


def _offsets(opened: BinaryIO) -> dict[str, int]:
    """Where each tensor of a safetensors file begins: after 8 bytes with the header's length, and the header."""
    length = int.from_bytes(opened.read(8), "little")
    header = json.loads(opened.read(length))
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}
