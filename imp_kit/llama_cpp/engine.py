"""Answers by llama.cpp: what the kit's engine does, with another library's networks.

The kit prepares the image, makes the tokens and chooses them; llama.cpp computes what lies between. Its memory holds
one text, and a question is read after as much of it as begins in the same way.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from imp_kit.answers import Seconds
from imp_kit.checkpoints.files import is_exported
from imp_kit.checkpoints.hub import Snapshot
from imp_kit.checkpoints.tokenizer import TextTokenizer
from imp_kit.device import is_small
from imp_kit.engine import Engine, Turn
from imp_kit.errors import SettingError
from imp_kit.images import squash
from imp_kit.llama_cpp.export import check_type, export_snapshot
from imp_kit.llama_cpp.exported import Exported
from imp_kit.llama_cpp.library import LanguageModel, Tower
from imp_kit.model.generate import check_scores
from imp_kit.model.imp import ImpModel
from imp_kit.model.sampling import Sampler, Sampling
from imp_kit.system.extras import require

CACHE = Path.home() / ".cache" / "imp-kit" / "gguf"
HEADROOM = 256  # positions after a prompt for which there is room from the start
KEPT_IMAGES = 16  # whose embeddings are kept: 7.5 MB each for a 3B


@dataclass(frozen=True)
class Prefix:
    """An image that was read: how many positions, and the bytes of their keys and values."""

    length: int
    nbytes: int


def open_engine(snapshot: Snapshot, type: str | None = None) -> "LlamaCppEngine":
    """The engine of a folder that an export wrote, or of a checkpoint, which is exported once into CACHE.

    `type` None is the only one of an export, and q8_0 of a checkpoint. Raises CheckpointError or SettingError.
    """
    require("llama-cpp", what="The engine llama.cpp")
    if is_exported(snapshot.folder):
        return LlamaCppEngine(Exported.read(snapshot.folder), type)
    type = "q8_0" if type is None else type
    check_type(type, "quantize")
    folder = CACHE / f"{snapshot.name.replace('/', '--')}-{snapshot.revision or snapshot.digest()}"
    if not _holds(folder, type):
        try:
            CACHE.mkdir(parents=True, exist_ok=True)
            only = FileLock(f"{folder}.lock").acquire()
        except OSError as error:
            raise SettingError(
                f"{CACHE} cannot be written ({error.strerror}); write the files elsewhere, and load that folder: "
                "python -m imp_kit export gguf."
            ) from None
        with only:
            if not _holds(folder, type):  # another program may have written them meanwhile
                print(f"imp-kit: {snapshot.name} is written for llama.cpp once, into {folder}.")
                export_snapshot(snapshot, folder, type)
    return LlamaCppEngine(Exported.read(folder), type)


def _holds(folder: Path, type: str) -> bool:
    return is_exported(folder) and type in Exported.read(folder).types()


class LlamaCppEngine(Engine):
    """Answers turns with the two files of an export. Threads take turns from token to token.

    One turn after the other, also those of a batch. Raises CheckpointError for files that do not belong together.
    """

    def __init__(self, exported: Exported, type: str | None = None):
        tokenizer, decoder = TextTokenizer(exported.folder), exported.decoder(type)
        type = next(name for name, file in exported.types().items() if file == decoder)
        tower = exported.tower(type)
        with torch.device("meta"):
            model = ImpModel(exported.config)  # its sizes; llama.cpp has the weights
        super().__init__(model, tokenizer, name=exported.name, revision=exported.revision, dtype=type)
        self.device = "cpu, by llama.cpp"
        threads = 1 if is_small(model) else torch.get_num_threads()
        self.language = LanguageModel(decoder, threads)
        exported.check(decoder, self.language.metadata, tower)
        self.tower = Tower(tower, self.language, threads)
        self._lock = RLock()  # around all that uses the memory, the tower or what is said to be in them
        self._held: list[tuple[bytes, int]] = []  # what the filled positions are: of an image, or a token
        self._images: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def read_prefix(self, image: Image.Image | None) -> Prefix:  # type: ignore[override]
        """Look at an image, and read it with what stands before it."""
        if image is None:
            return Prefix(0, 0)
        self._read(self._embed(image), [], HEADROOM)
        length, wide = self.prefix_length(image), self.dtype == "f32"
        return Prefix(length, length * self.model.config.decoder.kv_values_per_token * (4 if wide else 2))

    def stream(
        self, turns: Sequence[Turn], sampling: Sampling | Sequence[Sampling], indices: Sequence[int] = (0,)
    ) -> Iterator[list[str]]:
        """As the kit's engine, but one turn after the other."""
        samplings = [sampling] * len(turns) if isinstance(sampling, Sampling) else sampling
        for turn in turns:
            turn.check()
        for row, (turn, each, index) in enumerate(zip(turns, samplings, indices, strict=True)):
            for piece in self._answer(turn, each, index):
                yield [piece if other == row else "" for other in range(len(turns))]

    def _answer(self, turn: Turn, sampling: Sampling, index: int) -> Iterator[str]:
        image, ids, start = turn.conversation.image, list(turn.ids), time.perf_counter()
        if not turn.conversation.is_read:
            self.read_prefix(image)
        looked, paused, first = time.perf_counter(), 0.0, None
        sampler = Sampler.of([sampling], torch.device("cpu"), [index])
        limit = min(sampling.max_new_tokens, self._room(turn) + 1)  # the last token is not read
        seen = self._embed(image)
        while not turn.done:
            scores = torch.from_numpy(self._read(seen, ids, limit))
            check_scores(scores, scores.dtype)
            chosen = sampler.pick(scores)
            turn.watch(scores[0], chosen[0])
            first = first or time.perf_counter()
            ids.append(int(chosen))
            piece = turn.take(ids[-1], self.stop_ids, limit)
            handed = time.perf_counter()
            yield piece
            paused += time.perf_counter() - handed
        end = time.perf_counter() - paused
        first = first or end
        self._close(turn, Seconds(turn.look_seconds + looked - start, first - looked, end - first), None)

    def fits(self, rows: int, new_tokens: int) -> bool:
        """Always, as no two are in memory at once."""
        return True

    def _next_scores(self, turn: Turn, ids: Sequence[int]) -> Tensor:
        scores = torch.from_numpy(self._read(self._embed(turn.conversation.image), ids, 1)[0])
        check_scores(scores, scores.dtype)
        return scores

    def _log_likelihoods(self, turns: Sequence[Turn], encoded: Sequence[list[int]]) -> Tensor:
        rows, stops = [], sorted(self.stop_ids)
        for turn in turns:
            seen, found = self._embed(turn.conversation.image), []
            with self._lock:
                first = torch.from_numpy(self._read(seen, turn.ids, max(map(len, encoded))))
                check_scores(first, first.dtype)
                for ids in encoded:
                    logs = torch.cat((first, torch.from_numpy(self.language.read(ids, len(ids))))).log_softmax(dim=-1)
                    self.language.truncate(len(self._held))
                    ends = logs[-1, stops].logsumexp(dim=-1) if stops else 0.0
                    found.append(logs[range(len(ids)), ids].sum() + ends)
            rows.append(torch.stack(found))
        return torch.stack(rows)

    def _read(self, seen: tuple[bytes, np.ndarray], ids: Sequence[int], room: int) -> np.ndarray:
        """The scores after a prompt, float32 (1, vocab_size), with room for so many tokens after it; no ids, no scores.

        `seen` is an image as `_embed` gives it. What the memory holds of the prompt's beginning is not read again.
        """
        key, embeddings = seen
        opening = self._opening if len(embeddings) else []
        before, patches = len(opening), len(embeddings)
        pieces = [*((b"", id) for id in opening), *((key, n) for n in range(patches)), *((b"", id) for id in ids)]
        with self._lock:
            if len(pieces) + room > self.language.capacity:
                most = self.model.config.decoder.max_positions
                self.language.reserve(min(most, len(pieces) + room + HEADROOM))
                self._held = []
            pairs = enumerate(zip(pieces, self._held, strict=False))
            same = next((place for place, (new, old) in pairs if new != old), min(len(pieces), len(self._held)))
            same = min(same, len(pieces) - 1) if ids else same  # the scores after the last are wanted
            self._held = []  # until all is read
            self.language.truncate(same)
            if same < before:
                self.language.read(opening[same:], 0)
            if same < before + patches:
                self.language.read(embeddings[max(0, same - before) :], 0)
            scores = self.language.read(list(ids[max(0, same - before - patches) :]), min(1, len(ids)))
            self._held = pieces
        return scores

    def _embed(self, image: Image.Image | None) -> tuple[bytes, np.ndarray]:
        """An image as the tower sees it: a key that tells it from others, and its embeddings (patches, width)."""
        if image is None:
            return b"", np.empty((0, self.language.width), np.float32)
        config = self.model.config
        square = squash(image, config.vision.image_size, config.pad)
        key = hashlib.sha256(square.tobytes()).digest()
        with self._lock:
            if key not in self._images:
                self._images[key] = self.tower.encode(square)
                while len(self._images) > KEPT_IMAGES:
                    self._images.popitem(last=False)
            self._images.move_to_end(key)
            return key, self._images[key]
