"""A folder of safetensors files -> an ImpModel on its device, every tensor accounted for."""

import math
from collections import defaultdict
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from imp_kit.errors import CheckpointError, MemoryLimitError
from imp_kit.fitting import Plan, plan_folder
from imp_kit.linears import PIECE, laid_out
from imp_kit.machine import free_memory
from imp_kit.model.imp import ImpModel
from imp_kit.stored import read_tensor


def load_weights(
    folder: Path, device: torch.device, dtype: torch.dtype, *, frozen: bool = False, quantize: str | None = None
) -> tuple[ImpModel, list[str]]:
    """The filled model of a checkpoint's folder (see `fill`), and the names of stored tensors that nobody knows."""
    checked = plan_folder(folder)
    return fill(checked, device, dtype, frozen=frozen, quantize=quantize), list(checked.spare)


def fill(
    checked: Plan, device: torch.device, dtype: torch.dtype, *, frozen: bool = False, quantize: str | None = None
) -> ImpModel:
    """Fill a plan's model, one tensor at a time; it is then ready to answer.

    `frozen`: each linear layer is laid out for speed as soon as it is filled (imp_kit.linears), `quantize` as there.
    Raises CheckpointError for a checkpoint that does not fit, MemoryLimitError before anything is read.
    """
    for fault in checked.faults.values():
        raise CheckpointError(fault)
    model, table, found = checked.model, checked.slots, checked.found
    needed, free = checked.needed_bytes(device, dtype, frozen=frozen, quantize=quantize), free_memory(device)
    if needed > free:
        smaller = "choose dtype='bf16'" if dtype.itemsize > 2 else "choose a smaller checkpoint"
        raise MemoryLimitError(
            f"{checked.where} needs {needed / 1e9:.1f} GB on {device} as {str(dtype).removeprefix('torch.')}, but "
            f"{free / 1e9:.1f} GB are free. Close other programs, or {smaller}."
        )
    filling = defaultdict(list)
    for key, slot in table.items():
        filling[slot.parameter].append((key, slot))
    total = sum(math.prod(found[key].shape) for key in table) * dtype.itemsize
    with tqdm(total=total, unit="B", unit_scale=True, desc="loading", disable=total < 1e9) as bar:
        # Weights that are laid out anew pass through one piece of memory: freed one by one, they would leave gaps that
        # a CPU's allocator gives to nobody (0.7 GB of a 3B).
        largest = max(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
        passing = frozen and (quantize is not None or device.type == "cpu")
        scratch = torch.empty(largest if passing else 0, dtype=dtype, device=device)
        wide = torch.empty(PIECE, dtype=torch.float32, device="cpu")
        for place in [place for place, _ in model.named_modules()]:
            module = model.get_submodule(place)
            for leaf, parameter in list(module.named_parameters(recurse=False)):
                passes = passing and isinstance(module, nn.Linear) and leaf == "weight"
                memory = scratch if passes else torch.empty(parameter.numel(), dtype=dtype, device=device)
                filled = memory[: parameter.numel()].view(parameter.shape)
                for key, slot in filling[f"{place}.{leaf}"]:
                    target = filled[slot.start : slot.stop]
                    stored = piece = read_tensor(found[key].file, key)
                    if device.type == "cpu":  # by way of fp32: torch turns fp16 into bf16 one by one, four times slower
                        for part, piece in zip(target.view(-1).split(PIECE), stored.view(-1).split(PIECE), strict=True):
                            part.copy_(wide[: len(piece)].copy_(piece))
                    else:
                        target.copy_(stored)
                    del stored, piece  # they hold the file's pages
                    bar.update(target.nbytes)
                setattr(module, leaf, nn.Parameter(filled, requires_grad=False))
            if frozen and isinstance(module, nn.Linear):
                final = laid_out(place, module, quantize)
                if passing and final is module:  # it stays plain, and must not lie where the next one passes
                    final.weight = nn.Parameter(final.weight.clone(), requires_grad=False)
                model.set_submodule(place, final)
    return model.eval()
