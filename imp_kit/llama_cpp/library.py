"""llama.cpp's own library, as the package llama-cpp-python brings it: the two networks, and the quantizer."""

import ctypes
import os
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imp_kit.errors import CheckpointError, MemoryLimitError, SettingError

QUANTIZER_BYTES = 300_000_000  # of a tensor's rows that its quantizer has in memory at once
BATCH = 512  # positions that are computed together
FLASH_STEP = 64  # llama.cpp's flash attention is quick for heads of a multiple of so many numbers
KEPT_LINES = 4  # of llama.cpp's log, for an error
WARNING = 3  # a level of its log

# llama.cpp computes in a thread of its own: it sets up a CPU's matrix tiles (AMX) once in a thread, and where torch has
# used them there since, its next product ends Python with "Illegal instruction".
_worker = ThreadPoolExecutor(1, "llama.cpp")
_lines: deque[str] = deque(maxlen=KEPT_LINES)
_listener: Any = None  # kept, since llama.cpp calls it


def modules() -> tuple[Any, Any]:
    """The modules llama_cpp and llama_cpp.mtmd_cpp, which then print nothing and keep the last lines of their log."""
    global _listener
    try:
        import llama_cpp
        from llama_cpp import mtmd_cpp
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # its library does not fit this system
        raise SettingError(f"llama-cpp-python cannot be used here ({error}). Install it again.") from None
    if _listener is None:

        @llama_cpp.llama_log_callback
        def listen(level: int, text: bytes, _: Any) -> None:
            if level >= WARNING:
                _lines.append(text.decode("utf-8", "replace").strip())

        _listener = listen
        llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(_listener, ctypes.c_void_p(0))
    mtmd_cpp.mtmd_log_set(_listener, ctypes.c_void_p(0))
    return llama_cpp, mtmd_cpp


def _compute(function: Any, *values: Any) -> int:
    """Call a function of llama.cpp in its thread; also where Ctrl-C comes, it has ended afterwards."""
    job = _worker.submit(function, *values)
    try:
        return job.result()
    finally:
        wait([job])


def _failure(file: Path) -> CheckpointError:
    """What llama.cpp could not open, with its own words."""
    said = " ".join(line for line in _lines if line and line != ".")
    return CheckpointError(
        f"llama.cpp cannot open {file} ({said or 'it does not say why'}). It is damaged, or newer than this llama.cpp: "
        "export it again, or update llama-cpp-python."
    )


def quantize(file: Path, type: str) -> None:
    """Replace a GGUF file in f16 by one in q6_k, q5_k_m or q4_k_m. Raises CheckpointError."""
    from gguf import LlamaFileType

    llama, _ = modules()
    params = llama.llama_model_quantize_default_params()
    params.ftype = int(LlamaFileType[f"MOSTLY_{type.upper()}"])
    params.nthread = os.cpu_count() or 1
    params.max_buf_size = QUANTIZER_BYTES
    made = file.with_name(f"{file.name}.{type}")
    try:
        if llama.llama_model_quantize(os.fsencode(file), os.fsencode(made), ctypes.byref(params)):
            raise CheckpointError(f"llama.cpp could not write {file.name} in {type}. Choose q8_0, which needs no help.")
        os.replace(made, file)
    finally:
        made.unlink(missing_ok=True)


class LanguageModel:
    """A GGUF file's language model, with the keys and values of one text: the first `length` positions are filled.

    In fp32 keys, values and attention are in fp32, too, else in fp16. Raises CheckpointError.

    Flash attention adds values up in fp16, and is slow for heads such as Phi-2's of 80 numbers: docs/llama_cpp.md.
    """

    def __init__(self, file: Path, threads: int):
        self._llama, _ = modules()
        self.file, self.threads, self.length, self.capacity = file, threads, 0, 0
        _lines.clear()
        self.model = self._llama.llama_model_load_from_file(os.fsencode(file), self._llama.llama_model_default_params())
        if not self.model:
            raise _failure(file)
        self.vocab_size = self._llama.llama_vocab_n_tokens(self._llama.llama_model_get_vocab(self.model))
        self.width = self._llama.llama_model_n_embd(self.model)
        self.head = self.width // self._llama.llama_model_n_head(self.model)
        self.bytes = self._llama.llama_model_size(self.model)
        self._context: Any = None  # llama.cpp's memory of keys and values
        self._batches = [self._llama.llama_batch_init(BATCH, width, 1) for width in (0, self.width)]

    def metadata(self, key: str) -> str | None:
        """A value of the file, as text."""
        text = ctypes.create_string_buffer(1000)
        count = self._llama.llama_model_meta_val_str(self.model, key.encode(), text, len(text))
        return None if count < 0 else text.value.decode("utf-8", "replace")

    def reserve(self, capacity: int) -> None:
        """Make room for so many positions; where there was less, all is forgotten. Raises MemoryLimitError."""
        if capacity <= self.capacity:
            return
        self._close_context()
        params = self._llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = capacity, BATCH, BATCH
        params.n_threads = params.n_threads_batch = self.threads
        exact = self.metadata("general.file_type") == "0"
        if exact:
            params.type_k = params.type_v = self._llama.GGML_TYPE_F32
        if exact or self.head % FLASH_STEP:
            params.flash_attn_type = self._llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        _lines.clear()
        self._context = self._llama.llama_init_from_model(self.model, params)
        if not self._context:
            raise MemoryLimitError(
                f"llama.cpp has no room for {capacity} positions ({' '.join(_lines)}). Free some memory, or choose a "
                "smaller type."
            )
        self.length, self.capacity = 0, capacity

    def truncate(self, length: int) -> None:
        """Forget the positions after `length`."""
        if self._context:  # always: where Ctrl-C came, llama.cpp has read more than was counted
            memory = self._llama.llama_get_memory(self._context)
            self._llama.llama_memory_seq_rm(memory, 0, length, -1)
            self.length = min(self.length, length)

    def read(self, values: Sequence[int] | np.ndarray, scored: int = 1) -> np.ndarray:
        """Read token ids, or embeddings (n, width) in float32, after what is filled; `reserve` made the room.

        Returns the scores, float32 (scored, vocab_size), of the tokens that follow each of the last `scored` positions.
        """
        rows = []
        for start in range(0, len(values), BATCH):
            part = values[start : start + BATCH]
            batch = self._batches[isinstance(values, np.ndarray)]
            batch.n_tokens = len(part)
            if isinstance(part, np.ndarray):
                ctypes.memmove(batch.embd, np.ascontiguousarray(part, np.float32).ctypes.data, part.size * 4)
            wanted = []
            for index in range(len(part)):
                if not isinstance(part, np.ndarray):
                    batch.token[index] = part[index]
                batch.pos[index] = self.length + index
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = 0
                batch.logits[index] = start + index >= len(values) - scored
                wanted += [index] if batch.logits[index] else []
            if _compute(self._llama.llama_decode, self._context, batch):
                raise MemoryLimitError(f"llama.cpp could not read {len(values)} tokens ({' '.join(_lines)}).")
            self.length += len(part)
            for index in wanted:
                scores = self._llama.llama_get_logits_ith(self._context, index)
                rows.append(np.ctypeslib.as_array(scores, (self.vocab_size,)).copy())
        return np.stack(rows) if rows else np.empty((0, self.vocab_size), np.float32)

    def _close_context(self) -> None:
        if self._context:
            self._llama.llama_free(self._context)
            self._context, self.capacity, self.length = None, 0, 0

    def __del__(self) -> None:
        if getattr(self, "model", None) and not sys.is_finalizing():
            self._close_context()
            for batch in self._batches:
                self._llama.llama_batch_free(batch)
            self._llama.llama_model_free(self.model)


class Tower:
    """A GGUF file's tower and projector. Raises CheckpointError where it is none, or another language model's."""

    def __init__(self, file: Path, language: LanguageModel, threads: int):
        llama, self._mtmd = modules()
        params = self._mtmd.mtmd_context_params_default()
        params.n_threads, params.print_timings, params.warmup = threads, False, False
        _lines.clear()
        self._width, self._language = language.width, language  # which is freed after this
        self._context = self._mtmd.mtmd_init_from_file(os.fsencode(file), language.model, params)
        if not self._context:
            raise _failure(file)

    def encode(self, image: Image.Image) -> np.ndarray:
        """A square RGB image of the tower's size -> image embeddings, float32 (patches, width)."""
        mtmd = self._mtmd
        pixels = (ctypes.c_uint8 * (3 * image.width * image.height)).from_buffer_copy(image.tobytes())
        bitmap = mtmd.mtmd_bitmap_init(image.width, image.height, pixels)
        chunks = mtmd.mtmd_input_chunks_init()
        marker = mtmd.mtmd_default_marker()
        try:
            text = mtmd.mtmd_input_text(marker, len(marker), False, False)
            bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
            if mtmd.mtmd_tokenize(self._context, chunks, ctypes.byref(text), bitmaps, 1):
                raise CheckpointError(f"llama.cpp cannot look at this picture ({' '.join(_lines)}).")
            count = mtmd.mtmd_input_chunks_size(chunks)
            found = [mtmd.mtmd_input_chunks_get(chunks, index) for index in range(count)]
            (chunk,) = (c for c in found if mtmd.mtmd_input_chunk_get_type(c) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE)
            if _compute(mtmd.mtmd_encode_chunk, self._context, chunk):
                raise CheckpointError(f"llama.cpp cannot look at this picture ({' '.join(_lines)}).")
            shape = (mtmd.mtmd_input_chunk_get_n_tokens(chunk), self._width)
            return np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(self._context), shape).copy()
        finally:
            mtmd.mtmd_input_chunks_free(chunks)
            mtmd.mtmd_bitmap_free(bitmap)

    def __del__(self) -> None:
        if getattr(self, "_context", None) and not sys.is_finalizing():
            self._mtmd.mtmd_free(self._context)
