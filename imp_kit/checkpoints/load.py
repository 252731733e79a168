"""A folder of safetensors files -> an ImpModel on its device, every tensor accounted for."""

import math
from collections import defaultdict
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from imp_kit.checkpoints.files import MIXED, follow, quote, read_tensor
from imp_kit.checkpoints.plan import LoadPlan, plan_folder
from imp_kit.checkpoints.tokenizer import TextTokenizer
from imp_kit.device import SMALL_MODEL, bf16_is_faster
from imp_kit.errors import CheckpointError, MemoryLimitError
from imp_kit.model.imp import ImpModel
from imp_kit.model.memory import free_gpu_memory, free_memory, out_of_memory_errors, roomier_gpu
from imp_kit.model.packed_linear import PIECE, pack_linear
from imp_kit.prompts import TEMPLATES


def load_weights(
    folder: Path, device: torch.device, dtype: torch.dtype, *, pack: bool = False, quantize: str | None = None
) -> tuple[ImpModel, list[str]]:
    """The filled model of a checkpoint's folder (see `fill`), and the names of stored tensors that are unknown."""
    plan = plan_folder(folder)
    return fill(plan, device, dtype, pack=pack, quantize=quantize), list(plan.unexpected)


def check_tokenizer(tokenizer: TextTokenizer, plan: LoadPlan) -> None:
    """Raise CheckpointError where a tokenizer is another checkpoint's than config.json."""
    config = plan.model.config
    where, vocabulary = f"{plan.where}: {tokenizer.file.name} and the files beside it", config.decoder.vocab_size
    if tokenizer.size > vocabulary:
        raise CheckpointError(
            f"{where} have ids up to {tokenizer.size - 1}, but config.json a vocabulary of {vocabulary}. {MIXED}"
        )
    stop = TEMPLATES[config.family].stop
    if stop not in tokenizer.control:
        raise CheckpointError(f"{where} have no token {stop!r}, which ends each answer of {config.family}. {MIXED}")
    # config.json comes with the weights and may end answers with any token; this file has nothing else to prove it.
    for id in set(plan.generation_ends) - set(tokenizer.control.values()):
        token = tokenizer.backend.id_to_token(id)
        raise CheckpointError(
            f"{where} have {quote(token) if token else 'no token'} as {id}, with which generation_config.json ends an "
            f"answer. {MIXED}"
        )


def choose_cpu_dtype(plan: LoadPlan) -> torch.dtype:
    """fp32 for a small model; for a large one bf16 where that is no slower, or where fp32 would not fit."""
    if sum(math.prod(info.shape) for info in plan.found.values()) <= SMALL_MODEL:
        return torch.float32
    device = torch.device("cpu")
    tight = plan.needed_bytes(device, torch.float32, pack=True) > free_memory(device)
    return torch.bfloat16 if tight or bf16_is_faster() else torch.float32


def slow_int8(plan: LoadPlan, dtype: torch.dtype) -> str | None:
    """That 8-bit weights are slow on this CPU in `dtype`, and what to use instead; None where they are quick."""
    if sum(math.prod(info.shape) for info in plan.found.values()) <= SMALL_MODEL:
        return None
    if not bf16_is_faster():
        return (
            "quantize='int8' is slow on this CPU, which is slower in bf16 than in fp32: a first answer can take "
            "minutes. Use engine='llama.cpp' with quantize='q4_k_m' (it needs llama-cpp-python), or leave quantize out."
        )
    return None if dtype == torch.bfloat16 else "quantize='int8' is slow in fp32 and fp16; give dtype='bf16', too."


def fill(
    plan: LoadPlan, device: torch.device, dtype: torch.dtype, *, pack: bool = False, quantize: str | None = None
) -> ImpModel:
    """Fill a plan's model, one tensor at a time; it is then ready to answer.

    `pack`: each linear layer is packed for speed as soon as it is filled (see `pack_linear`), `quantize` as there.
    Raises CheckpointError for a checkpoint that does not fit; MemoryLimitError before anything is read, or later where
    another program takes the memory meanwhile.
    """
    for problem in plan.problems.values():
        raise CheckpointError(problem)
    model, table, found = plan.model, plan.slots, plan.found
    needed, free = plan.needed_bytes(device, dtype, pack=pack, quantize=quantize), free_memory(device)
    if needed > free:
        smaller = "dtype='bf16'" if dtype.itemsize > 2 else "a smaller checkpoint"
        advice = f"Close other programs, or choose {smaller}."
        if device.type == "cuda":
            other = roomier_gpu(needed, free_gpu_memory())
            advice = (
                "End other programs that use the GPU (nvidia-smi lists them), or choose "
                f"{f'{other}, ' if other else ''}dtype='fp16' with quantize='int8', device='cpu' or imp-nano."
            )
        raise MemoryLimitError(
            f"{plan.where} needs {needed / 1e9:.1f} GB on {device} as {str(dtype).removeprefix('torch.')}, but "
            f"{free / 1e9:.1f} GB are free. {advice}"
        )
    filling = defaultdict(list)
    for key, slot in table.items():
        filling[slot.parameter].append((key, slot))
    followed = {file: follow(file) for file in {found[key].file for key in table}}
    total = sum(math.prod(found[key].shape) for key in table) * dtype.itemsize
    bar = tqdm(total=total, unit="B", unit_scale=True, desc="loading", disable=total < 1e9)
    with bar, out_of_memory_errors(f"Loading {plan.where}"):
        # Weights that are packed pass through one piece of memory: freed one by one, they would leave gaps that a CPU's
        # allocator does not give back (0.7 GB of a 3B).
        largest = max(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
        passing = pack and (quantize is not None or device.type == "cpu")
        scratch = torch.empty(largest if passing else 0, dtype=dtype, device=device)
        wide = torch.empty(PIECE, dtype=torch.float32, device="cpu")
        for path in [path for path, _ in model.named_modules()]:
            module = model.get_submodule(path)
            for leaf, parameter in list(module.named_parameters(recurse=False)):
                passes = passing and isinstance(module, nn.Linear) and leaf == "weight"
                memory = scratch if passes else torch.empty(parameter.numel(), dtype=dtype, device=device)
                filled = memory[: parameter.numel()].view(parameter.shape)
                for key, slot in filling[f"{path}.{leaf}"]:
                    target = filled[slot.start : slot.stop]
                    file = found[key].file
                    stored = piece = read_tensor(file, followed[file], key)
                    if device.type == "cpu":  # by way of fp32: torch turns fp16 into bf16 one by one, four times slower
                        for part, piece in zip(target.view(-1).split(PIECE), stored.view(-1).split(PIECE), strict=True):
                            part.copy_(wide[: len(piece)].copy_(piece))
                    else:
                        target.copy_(stored)
                    del stored, piece  # they hold the file's pages
                    bar.update(target.nbytes)
                setattr(module, leaf, nn.Parameter(filled, requires_grad=False))
            if pack and isinstance(module, nn.Linear):
                final = pack_linear(path, module, quantize)
                if passing and final is module:  # it stays plain, so it must leave the memory that the next one passes
                    final.weight = nn.Parameter(final.weight.clone(), requires_grad=False)
                model.set_submodule(path, final)
    return model.eval()
