"""llama.cpp's own library, as the package llama-cpp-python brings it."""

import ctypes
import os
from pathlib import Path

from imp_kit.errors import CheckpointError

QUANTIZER_BYTES = 300_000_000  # of a tensor's rows that its quantizer has in memory at once


def quantize(file: Path, type: str) -> None:
    """Replace a GGUF file in f16 by one in q6_k, q5_k_m or q4_k_m. Raises CheckpointError."""
    import llama_cpp
    from gguf import LlamaFileType

    wanted = f"MOSTLY_{type.upper()}"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = int(LlamaFileType[wanted])
    params.nthread = os.cpu_count() or 1
    params.max_buf_size = QUANTIZER_BYTES
    made = file.with_name(f"{file.name}.{type}")
    try:
        if llama_cpp.llama_model_quantize(os.fsencode(file), os.fsencode(made), ctypes.byref(params)):
            raise CheckpointError(f"llama.cpp could not write {file.name} in {type}. Choose q8_0, which needs no help.")
        os.replace(made, file)
    finally:
        made.unlink(missing_ok=True)
