"""Writes a GGUF file: its metadata, and tensors that pass from a checkpoint's files in pieces."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from imp_kit.checkpoints.files import follow, read_tensor
from imp_kit.checkpoints.plan import LoadPlan
from imp_kit.errors import CheckpointError
from imp_kit.llama_cpp.names import Target

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

BLOCKLESS = ("f32", "f16", "bf16")
PLAIN = (*BLOCKLESS, "q8_0", "q4_0")  # types that the package gguf makes itself
BLOCK = 32  # columns of a row that are quantized together
PIECE = 8_000_000  # values of a tensor that are in memory at once
FP16_MAX = 65504.0


class Tensors:
    """The tensors of one GGUF file in a type of PLAIN: matrices in that type, vectors and positions in f32."""

    def __init__(self, plan: LoadPlan, targets: Sequence[Target], type: str):
        self._plan, self._targets, self._type = plan, targets, type
        self._parameters = dict(plan.model.named_parameters())
        self._parts: dict[str, list[tuple[int, int, str]]] = defaultdict(list)  # rows of a parameter, and their tensor
        for key, slot in plan.slots.items():
            rows = len(self._parameters[slot.parameter]) if slot.stop is None else slot.stop
            self._parts[slot.parameter].append((slot.start, rows, key))
        self._followed = {file: follow(file) for file in {plan.found[key].file for key in plan.slots}}

    def shape(self, target: Target) -> tuple[int, ...]:
        return (target.stop - target.start, *self._parameters[target.parameter].shape[1:])

    def kind(self, target: Target) -> "GGMLQuantizationType":
        """How a tensor is stored. Scores suffer most from few bits, so their matrix has at least eight."""
        from gguf import GGMLQuantizationType as Kind

        if len(self.shape(target)) == 1 or target.name == "v.position_embd.weight":
            return Kind.F32
        if target.name == "output.weight" and self._type == "q4_0":
            return Kind.Q8_0
        return Kind[self._type.upper()]

    def size(self, target: Target) -> int:
        """Bytes of a tensor in the file."""
        from gguf import GGML_QUANT_SIZES

        values, stored = GGML_QUANT_SIZES[self.kind(target)]
        return math.prod(self.shape(target)) // values * stored

    @property
    def nbytes(self) -> int:
        return sum(map(self.size, self._targets))

    def write(self, file: Path, architecture: str, metadata: Mapping[str, Any], progress: Callable[[int], Any]) -> None:
        """Write the whole file; `progress` is told the bytes of each piece. Raises CheckpointError."""
        from gguf import GGUFWriter, LlamaFileType

        writer = GGUFWriter(file, architecture)
        writer.add_file_type(LlamaFileType[f"{'ALL' if self._type == 'f32' else 'MOSTLY'}_{self._type.upper()}"])
        add: dict[type, Callable] = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        for key, value in metadata.items():
            add.get(type(value), writer.add_array)(key, value)
        for target in self._targets:
            shape, kind = self.shape(target), self.kind(target)
            writer.add_tensor_info(target.name, shape, np.dtype(np.float32), self.size(target), raw_dtype=kind)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for target in self._targets:
                writer.write_tensor_data(cast(np.ndarray, _Stream(self, target, progress)))
        finally:
            writer.close()

    def pieces(self, target: Target) -> Iterator[np.ndarray]:
        """A tensor's values as the file holds them, some rows at a time. Raises CheckpointError."""
        from gguf import GGMLQuantizationType as Kind
        from gguf import quantize

        kind, columns = self.kind(target), math.prod(self.shape(target)[1:])
        step = max(1, PIECE // columns)
        for start, stop, key in sorted(self._parts[target.parameter]):
            first, last = max(start, target.start), min(stop, target.stop)
            for row in range(first, last, step):
                file = self._plan.found[key].file
                rows = slice(row - start, min(row + step, last) - start)
                values = read_tensor(file, self._followed[file], key, rows).float().numpy()
                worst = np.abs(values).max(initial=0)
                if not worst <= (FP16_MAX if kind != Kind.F32 and kind != Kind.BF16 else np.finfo(np.float32).max):
                    raise CheckpointError(
                        f"{file}: {key} holds {worst}, which {kind.name.lower()} cannot hold. "
                        + ("Choose the type bf16." if np.isfinite(worst) else "Download it again.")
                    )
                yield values if kind == Kind.F32 else quantize(values.reshape(len(values), -1), kind)


class _Stream:
    """A tensor as gguf's writer takes it: `nbytes`, and `tofile`, which takes it from the checkpoint at once."""

    def __init__(self, tensors: Tensors, target: Target, progress: Callable[[int], Any]):
        self.nbytes = tensors.size(target)
        self._pieces, self._progress = tensors.pieces(target), progress

    def tofile(self, stream: BinaryIO) -> None:
        for piece in self._pieces:
            piece.tofile(stream)
            self._progress(piece.nbytes)
