"""Imp as a person calls it: load, look, ask, chat."""

import base64
import hashlib
import html
import io
import math
import os
import re
import time
import warnings
from collections import OrderedDict
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, Unpack

import torch
from PIL import Image

from imp_kit.answers import Answer, Seconds
from imp_kit.batches import answer_all
from imp_kit.boxes import Box, read_box, region
from imp_kit.checkpoints import DEFAULT, HUB_IDS, NANO, Snapshot, at_hand, find
from imp_kit.config_json import read_ends
from imp_kit.errors import CheckpointError, ImpKitError, PromptError
from imp_kit.fitting import Plan, plan_folder, read_configs
from imp_kit.images import check_order, open_image, to_pixels
from imp_kit.linears import check_quantize
from imp_kit.machine import (
    LONG_DTYPES,
    bf16_pays,
    choose_device,
    choose_dtype,
    free_memory,
    memory_told,
    peak_memory,
    return_memory,
)
from imp_kit.model.config import ImpConfig
from imp_kit.model.decoder import KVCache
from imp_kit.model.generate import generate
from imp_kit.model.imp import ImpModel
from imp_kit.model.weights import fill
from imp_kit.prompts import CAPTION, DESCRIBE_REGION, LOCATE, TEMPLATES, check_phrase, check_question
from imp_kit.sampling import Sampling, Settings, named_settings, read_settings
from imp_kit.stored import MIXED, shown
from imp_kit.threads import SMALL_MODEL, Threads
from imp_kit.tokens import GrowingText, TextTokenizer

DEFAULT_NEEDS = 7.5e9  # bytes of a GPU's memory: 6.4 for the weights of imp-v1-3b in 16 bit, the rest to work
KNOWN_WORDS = 0.4  # of a question's words: English that imp-nano never saw has more, other languages have fewer
THUMBNAIL = 240  # pixels of the longer side
ROOM = 256  # positions behind a picture: as long as question and answer fit in there, nothing is copied
KEPT_BYTES = 400e6  # of keys and values of pictures already looked at: one of a large Imp's, or hundreds of imp-nano's


def load(
    checkpoint: str | os.PathLike | None = None,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    quantize: str | None = None,
) -> "Imp":
    """Load a checkpoint: a name such as "imp-v1-3b" or "imp-nano", a hub id, or a folder.

    Without a name: imp-v1-3b where there is a GPU and the hub (or its cache) has it, else the bundled imp-nano.
    `device` "auto" is the first GPU, else the CPU. `dtype` is "fp32", "bf16", "fp16" or "auto": bf16 on a GPU that
    has it, else fp16; on a CPU fp32, or bf16 for a large model where that is at least as fast. In fp32 on an x86 CPU
    the language model's large weights stay in fp16 if that holds their exact values, as those of a file in fp16.
    `revision` pins a branch, tag or commit of the hub. `quantize` "int8" keeps the language model's weights in 8 bits,
    which takes about half the memory; answers change a little. On a CPU it is quick in bf16 only: give dtype "bf16".
    Raises CheckpointError, SettingError or MemoryLimitError; nothing of the checkpoint is run.
    """
    check_quantize(quantize)
    return_memory()  # of a model that was loaded before
    device = choose_device(device)
    chosen = choose_dtype(dtype, device)
    why = "you asked for it"
    if checkpoint is None:
        checkpoint, why = choose_checkpoint(device)
        limit = " It knows only simple drawings." if checkpoint == NANO else ""
        print(f"imp-kit: {checkpoint}, because {why}.{limit}")  # not stderr, which notebooks show in red
    snapshot = find(checkpoint, revision)
    tokenizer = TextTokenizer(snapshot.folder)
    checked = plan_folder(snapshot.folder)
    _check_tokenizer(tokenizer, checked.model.config, snapshot.folder)
    if chosen is None:
        chosen = _cpu_dtype(checked, device)
    model = fill(checked, device, chosen, frozen=True, quantize=quantize)
    if checked.spare:
        spare = ", ".join(checked.spare)
        warnings.warn(f"{snapshot.name} holds tensors that Imp does not use: {spare}.", stacklevel=2)
    return Imp(model, tokenizer, snapshot, why, quantize)


def _check_tokenizer(tokenizer: TextTokenizer, config: ImpConfig, folder: Path) -> None:
    """Raise CheckpointError where a tokenizer is another checkpoint's than config.json."""
    where, vocabulary = f"{folder}: {tokenizer.file.name} and the files beside it", config.decoder.vocab_size
    if tokenizer.size > vocabulary:
        raise CheckpointError(
            f"{where} have ids up to {tokenizer.size - 1}, but config.json a vocabulary of {vocabulary}. {MIXED}"
        )
    stop = TEMPLATES[config.family].stop
    if stop not in tokenizer.control:
        raise CheckpointError(f"{where} have no token {stop!r}, which ends each answer of {config.family}. {MIXED}")
    # config.json comes with the weights and may end answers with any token; this file has nothing else to prove it.
    for id in set(read_ends(read_configs(folder)[1], vocabulary, "")) - set(tokenizer.control.values()):
        token = tokenizer.backend.id_to_token(id)
        raise CheckpointError(
            f"{where} have {shown(token) if token else 'no token'} as {id}, with which generation_config.json ends an "
            f"answer. {MIXED}"
        )


def identify(
    checkpoint: str | os.PathLike,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
) -> dict[str, str | None]:
    """What `load` would load, without doing it: checkpoint, revision, dtype and the device's type. Raises as `load`.

    Where there is no revision, "files" is the SHA-256 that tells one state of a folder from another.
    """
    device = choose_device(device)
    snapshot = find(checkpoint, revision)
    chosen = choose_dtype(dtype, device) or _cpu_dtype(plan_folder(snapshot.folder), device)
    name = LONG_DTYPES[str(chosen).removeprefix("torch.")]
    found = {"checkpoint": snapshot.name, "revision": snapshot.revision, "files": snapshot.digest()}
    return {**found, "dtype": name, "device": device.type}


def choose_checkpoint(device: torch.device) -> tuple[str, str]:
    """The checkpoint for this machine, and the reason in words."""
    if device.type == "cpu":
        absent = not torch.cuda.is_available()
        return NANO, f"there is no GPU here for {DEFAULT}" if absent else "you chose the CPU"
    free = free_memory(device)
    if free < DEFAULT_NEEDS:
        return NANO, f"{DEFAULT} needs {DEFAULT_NEEDS / 1e9} GB of the GPU's memory and {free / 1e9:.1f} GB are free"
    if not at_hand(HUB_IDS[DEFAULT]):
        return NANO, f"the hub cannot be reached for {DEFAULT}"
    return DEFAULT, "there is a GPU and the hub has it"


def _cpu_dtype(checked: Plan, device: torch.device) -> torch.dtype:
    """fp32 for a small model; for a large one bf16 where that is no slower, or where fp32 would not fit."""
    if sum(math.prod(stored.shape) for stored in checked.found.values()) <= SMALL_MODEL:
        return torch.float32
    free = free_memory(device)
    tight = checked.needed_bytes(device, torch.float32, frozen=True) > free
    return torch.bfloat16 if tight or bf16_pays() else torch.float32


class Imp:
    """A loaded checkpoint, for one thread at a time.

    Whatever asks takes these settings: `max_new_tokens` (100), `temperature` (0 is greedy), `top_p` (1), `seed` (None),
    and `stop`, a text or a list of texts that end the answer and are not part of it; see `Sampling`.
    """

    def __init__(
        self, model: ImpModel, tokenizer: TextTokenizer, snapshot: Snapshot, why: str, quantize: str | None = None
    ):
        self.model, self.tokenizer, self.snapshot, self.why = model, tokenizer, snapshot, why
        self.quantize = quantize
        self.threads = Threads(model)
        self._warned = False
        self.template = TEMPLATES[model.config.family]
        control = tokenizer.control
        ends = (control.get(self.template.stop), control.get("<|endoftext|>"), *model.config.eos_token_ids)
        self.stop_ids = frozenset(id for id in ends if id is not None)
        self._looked: OrderedDict[bytes, KVCache] = OrderedDict()

    @property
    def name(self) -> str:
        return self.snapshot.name

    @property
    def dtype(self) -> str:
        """Such as "bf16", or "bf16+int8" where the language model's weights are quantized."""
        plain = LONG_DTYPES[str(self.model.dtype).removeprefix("torch.")]
        return f"{plain}+{self.quantize}" if self.quantize else plain

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        return f"<Imp {self.name}: {count / 1e6:,.1f} M parameters, {self.dtype} on {self.model.device} ({self.why})>"

    def look(self, picture) -> "View":
        """Encode a picture once, for as many questions as you like. It may be anything that `open_image` takes.

        None is no picture: the questions are asked as text alone. Raises ImageError or MemoryLimitError.
        """
        return View(self, picture)

    @named_settings
    def ask(self, picture, question: str, **settings: Unpack[Settings]) -> Answer:
        """Answer one question about one picture, or about none (None).

        `max_new_tokens` is the answer's length, at most; `temperature` 0 takes the likeliest token, above 0 they are
        drawn, from those that make up `top_p` of the probability, in a way that `seed` makes repeatable; `stop` is a
        text or a list of texts before which the answer ends.
        Raises ImageError, PromptError, SettingError or MemoryLimitError.
        """
        check_order(picture, question)
        check_question(question)  # what cannot be asked is told before the picture's work is done
        read_settings(settings)
        return self.look(picture).ask(question, **settings)

    @named_settings
    def caption(self, picture, **settings: Unpack[Settings]) -> Answer:
        """Describe a picture. Raises as `ask`."""
        return self.ask(picture, CAPTION, **settings)

    @named_settings
    def locate(self, picture, phrase: str, **settings: Unpack[Settings]) -> Box:
        """Find what `phrase` names ("the bus"): its Box, which also tells if nothing was found. Raises as `ask`."""
        check_order(picture, phrase)
        phrase, image = check_phrase(phrase), open_image(picture)
        answer = self.ask(image, LOCATE.format(phrase), **settings)
        return Box(phrase, read_box(answer.text, image.size, self.model.config.pad), image, answer)

    @named_settings
    def describe(self, picture, box, **settings: Unpack[Settings]) -> Answer:
        """Describe one region: a Box, or its corners (x0, y0, x1, y1) as fractions of the picture. Raises as `ask`."""
        image = open_image(picture)
        corners = region(box, image.size, self.model.config.pad)
        return self.ask(image, DESCRIBE_REGION.format(corners), **settings)

    @named_settings
    def ask_many(
        self,
        questions: Iterable[tuple[Any, str]],
        *,
        batch_size: int = 8,
        progress: bool = True,
        **settings: Unpack[Settings],
    ) -> list[Answer | ImpKitError]:
        """Answer (picture, question) pairs, `batch_size` at a time, with a progress bar unless `progress` is false.

        The list has the order of the pairs. A pair that cannot be answered has its error (ImageError, PromptError or
        MemoryLimitError) in its place, and the others their answers. In fp32 greedy answers are those of `ask`; in bf16
        and fp16 rounding depends on the size of the batch, and only `batch_size=1` gives exactly what `ask` gives.
        Drawn ones (temperature above 0) are not those of `ask`, since the rows of a batch share the random numbers, and
        with a seed each batch begins anew. Raises SettingError.
        """
        return answer_all(self, list(questions), batch_size, progress, *read_settings(settings))

    @torch.inference_mode()
    def _read(self, picture) -> KVCache:
        """Keys and values of the system prompt and an RGB picture; of nothing for None.

        Those of the pictures that were looked at last are kept, by what the model sees of them.
        """
        model, config = self.model, self.model.config
        if picture is None:
            return model.new_cache(0)
        pixels = to_pixels(picture, config.vision.image_size, config.pad)
        opening = self.template.open()
        key = hashlib.sha256(repr((opening, pixels.shape)).encode() + pixels.numpy().tobytes()).digest()
        if key in self._looked:
            self._looked.move_to_end(key)
            return self._looked[key]
        with memory_told("Looking at a picture"), self.threads.use():
            ids = self.tokenizer.encode_pieces(opening, begins=True)
            length = len(ids) + config.vision.num_patches
            capacity = min(length + ROOM, config.decoder.max_positions)
            size = config.decoder.kept_values * capacity * model.dtype.itemsize
            if size <= KEPT_BYTES:
                self._make_room(size)
            cache = model.new_cache(capacity)
            model.decoder(model.splice([ids, model.encode(pixels[None])[0]]), cache)
        cache.settle(length)
        if size <= KEPT_BYTES:
            self._looked[key] = cache
        return cache

    def _make_room(self, size: int) -> None:
        """Forget the pictures looked at longest ago until `size` more bytes are within KEPT_BYTES."""
        kept = [cache.store.tensor.nbytes for cache in self._looked.values()]
        while kept and sum(kept) + size > KEPT_BYTES:
            self._looked.popitem(last=False)
            kept.pop(0)

    def _warn_of_unknown_words(self, question: str) -> None:
        """Say once if imp-nano, whose tokens are the words of its lessons, knows few words of a question."""
        words = () if self._warned or self.name != NANO else re.findall(r"\w+", question)
        known = sum(len(self.tokenizer.encode_pieces((f" {word.lower()}",))) == 1 for word in words)
        if known < KNOWN_WORDS * len(words):
            self._warned = True
            text = f"{NANO} learned only simple English and knows few words of this question: expect no right answer."
            warnings.warn_explicit(text, UserWarning, "imp-kit", 1)  # the place in the kit would tell a reader nothing

    def chat(self, picture) -> "Chat":
        """Begin a conversation about a picture, in which later questions know the earlier answers. Raises as `look`."""
        return Chat(self.look(picture))


def _thumbnail(picture: Image.Image | None) -> str:
    """A small copy of the picture as HTML that holds it; "" for none."""
    if picture is None:
        return ""
    small, file = picture.copy(), io.BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(file, "PNG")
    return f"<img src='data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}' alt='the picture'>"


def _small(shown: "View | Chat") -> str:
    return f"<p style='color:gray;font-size:smaller'>{html.escape(repr(shown)[1:-1])}</p>"


class View:
    """A picture that an Imp has looked at: its keys and values are kept, so each question costs only itself."""

    def __init__(self, imp: Imp, picture):
        start = time.perf_counter()
        self.imp = imp
        self.picture = None if picture is None else open_image(picture)
        if imp.model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(imp.model.device)
        self._cache = imp._read(self.picture)
        if imp.model.device.type == "cuda":
            torch.cuda.synchronize(imp.model.device)
        self.seconds = time.perf_counter() - start
        self._seconds_to_tell = self.seconds

    def __repr__(self) -> str:
        seen = "no picture" if self.picture is None else "a picture of {} x {} pixels".format(*self.picture.size)
        return f"<View: {self.imp.name} has looked at {seen}; ask(question) asks about it>"

    def _repr_html_(self) -> str:
        return _thumbnail(self.picture) + _small(self)

    def _take_seconds(self) -> float:
        """The look's seconds for the first answer that asks, 0 for the later ones: the picture's work is done once."""
        seconds, self._seconds_to_tell = self._seconds_to_tell, 0.0
        return seconds

    @named_settings
    def ask(self, question: str, **settings: Unpack[Settings]) -> Answer:
        """Answer a question about this picture, knowing no other question. Raises PromptError or SettingError."""
        return Chat(self).say(question, **settings)

    @named_settings
    def stream(self, question: str, **settings: Unpack[Settings]) -> Generator[str, None, Answer]:
        """The same answer as `ask`, piece by piece as it is made."""
        return Chat(self).stream(question, **settings)


class Chat:
    """A conversation about one picture. `turns` holds its questions and answers."""

    def __init__(self, view: View):
        self.view = view
        self.turns: list[tuple[str, Answer]] = []
        self._cache = view._cache
        self._unread: list[int] = []  # tokens of the last answer that are not in the cache yet
        self._pieces: tuple[str, ...] = () if view.picture is None else view.imp.template.open()

    def __repr__(self) -> str:
        count = len(self.turns)
        asked = f"{count} question{'s' * (count != 1)} asked"
        return f"<Chat with {self.view.imp.name}: {asked}; say(question) asks the next>"

    def _repr_html_(self) -> str:
        turns = (
            f"<p><b>{html.escape(question)}</b><br>{html.escape(str(answer))}</p>" for question, answer in self.turns
        )
        return _thumbnail(self.view.picture) + "".join(turns) + _small(self)

    @named_settings
    def say(self, question: str, **settings: Unpack[Settings]) -> Answer:
        """Ask the next question and wait for the whole answer. Raises PromptError, SettingError or MemoryLimitError."""
        stream = self.stream(question, **settings)
        while True:
            try:
                next(stream)
            except StopIteration as end:
                return end.value

    @named_settings
    def stream(self, question: str, **settings: Unpack[Settings]) -> Generator[str, None, Answer]:
        """Ask the next question; the answer comes piece by piece. Raises as `say`.

        A stream that is not read to its end is forgotten; one that is read after another answer came is refused.
        """
        sampling, stops = read_settings(settings)
        imp = self.view.imp
        imp._warn_of_unknown_words(question)
        alone = self.view.picture is None and not self.turns
        asked = imp.template.ask_alone(question) if alone else imp.template.ask(question, first=not self.turns)
        ids = [*self._unread, *imp.tokenizer.encode_pieces(asked, begins=alone), *imp.tokenizer.suffix]
        limit = imp.model.config.decoder.max_positions
        if self._cache.length + len(ids) >= limit:
            raise PromptError(
                f"The question makes the prompt {self._cache.length + len(ids)} tokens long, and {imp.name} reads "
                f"{limit}. Ask a shorter question{' or begin a new chat' if self.turns else ''}."
            )
        return self._stream(question, asked, ids, sampling, stops, before=self._cache)

    def _stream(
        self,
        question: str,
        asked: tuple[str, ...],
        ids: list[int],
        sampling: Sampling,
        stops: tuple[str, ...],
        before: KVCache,
    ) -> Generator[str, None, Answer]:
        self._check_unchanged(before)
        imp = self.view.imp
        start = time.perf_counter()
        limit = imp.model.config.decoder.max_positions
        prompt_length = self._cache.length + len(ids)
        # The view's other questions, and this chat if the stream is dropped, keep what they had.
        with memory_told("This answer"):
            cache = before.branch(min(limit, prompt_length + sampling.max_new_tokens))
        text = GrowingText(imp.tokenizer, (*stops, imp.template.stop))
        finish, tokens, first = "length", 0, start
        with torch.inference_mode():
            embeddings = imp.model.splice([ids])
        steps = generate(imp.model, embeddings, cache, sampling, imp.stop_ids)
        while True:
            with memory_told("This answer"), imp.threads.use():
                token = next(steps, (None,))[0]
            if token is None:
                break
            tokens += 1
            first = time.perf_counter() if tokens == 1 else first
            if token in imp.stop_ids:
                finish = "stop"
                break
            if piece := text.add(token):
                yield piece
            if text.stopped:
                finish = "stop"
                break
        if piece := text.finish():
            yield piece
        self._check_unchanged(before)
        end = time.perf_counter()
        kept = text.ids
        # What a tokenizer wants behind each prompt is no part of the conversation: before it the next turn goes on.
        behind = len(imp.tokenizer.suffix)
        cache.settle(prompt_length - behind if behind else prompt_length + len(kept))
        pieces = (*self._pieces, *asked)
        answer = Answer(
            text=text.text,
            token_ids=tuple(kept),
            prompt="".join(pieces),
            checkpoint=imp.name,
            revision=imp.snapshot.revision,
            device=str(imp.model.device),
            dtype=imp.dtype,
            finish=finish,
            tokens=tokens,
            seconds=Seconds(self.view._take_seconds(), first - start, end - first),
            peak_memory=peak_memory(imp.model.device),
        )
        self._cache, self._unread = cache, kept[max(0, cache.length - prompt_length) :]
        # Not the text: a stop string can cut within a token, and the next prompt tells what was read.
        self._pieces = (*pieces, imp.tokenizer.decode(kept))
        self.turns.append((question, answer))
        return answer

    def _check_unchanged(self, before: KVCache) -> None:
        if self._cache is not before:
            raise PromptError("This chat got another answer since that question; ask the question again.")
