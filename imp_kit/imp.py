"""Imp as a person calls it: load, look, ask, chat."""

import base64
import functools
import html
import io
import os
import re
import time
import warnings
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from typing import Any, TypeVar, Unpack, cast

import torch
from PIL import Image

from imp_kit.answers import Answer, Candidate
from imp_kit.boxes import Box, Corners, read_box, region
from imp_kit.checkpoints.files import check_not_exported
from imp_kit.checkpoints.hub import DEFAULT, HUB_IDS, NANO, Snapshot, find, is_available
from imp_kit.checkpoints.load import check_tokenizer, choose_cpu_dtype, fill, slow_int8
from imp_kit.checkpoints.plan import plan_folder
from imp_kit.checkpoints.registry import PUBLISHED
from imp_kit.checkpoints.tokenizer import TextTokenizer
from imp_kit.device import LONG_DTYPES, choose_device, choose_dtype, why_no_gpu
from imp_kit.engine import Conversation, Engine, Turn
from imp_kit.errors import ImageError, ImpKitError, PromptError, SettingError
from imp_kit.images import check_order, open_image
from imp_kit.model.imp import ImpModel
from imp_kit.model.memory import free_gpu_memory, free_memory, roomier_gpu, trim_heap
from imp_kit.model.packed_linear import check_quantize
from imp_kit.model.sampling import Sampling
from imp_kit.prompts import CAPTION, CLASSIFY, DESCRIBE_REGION, LOCATE, check_answers, check_phrase, check_question
from imp_kit.settings import Settings, named_settings, read_settings

KNOWN_WORDS = 0.4  # of a question's words: English that imp-nano never saw has more, other languages have fewer
THUMBNAIL = 240  # pixels of the longer side


def load(
    checkpoint: str | os.PathLike | None = None,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    quantize: str | None = None,
    engine: str = "torch",
) -> "Imp":
    """Load a checkpoint: a name such as "imp-v1-3b" or "imp-nano", a hub id, or a folder.

    Without a name: imp-v1-3b where there is a GPU and the hub (or its cache) has it, else the bundled imp-nano.
    `device` "auto" is the first GPU, else the CPU. `dtype` is "fp32", "bf16", "fp16" or "auto": bf16 on a GPU that
    has it, else fp16; on a CPU fp32, or bf16 for a large model where that is at least as fast. In fp32 on an x86 CPU
    the language model's large weights stay in fp16 if that holds their exact values, as those of a file in fp16.
    `revision` pins a branch, tag or commit of the hub. `quantize` "int8" keeps the language model's weights in 8 bits,
    which takes about half the memory; answers change a little. On a CPU it is quick in bf16 only: give dtype "bf16".
    `engine` "llama.cpp" computes on the CPU with the package llama-cpp-python; `quantize` is then one of the types of
    `imp_kit.llama_cpp.export` (default "q8_0"), and the checkpoint is written as GGUF files once, or is a folder that
    `python -m imp_kit export gguf` wrote.
    Raises CheckpointError, SettingError or MemoryLimitError; nothing of the checkpoint is run.
    """
    if engine == "llama.cpp":
        return _load_llama_cpp(checkpoint, device, dtype, revision, quantize)
    if engine != "torch":
        raise SettingError(f"engine is {engine!r}; choose torch or llama.cpp.")
    check_quantize(quantize)
    trim_heap()  # of a model that was loaded before
    device = choose_device(device)
    chosen = choose_dtype(dtype, device)
    why = "you asked for it"
    if checkpoint is None:
        checkpoint, why = choose_checkpoint(device)
        limit = " It knows only simple drawings." if checkpoint == NANO else ""
        print(f"imp-kit: {checkpoint}, because {why}.{limit}")  # not stderr, which notebooks show in red
    snapshot = find(checkpoint, revision)
    check_not_exported(snapshot.folder)
    tokenizer = TextTokenizer(snapshot.folder)
    plan = plan_folder(snapshot.folder)
    check_tokenizer(tokenizer, plan)
    chosen = chosen or choose_cpu_dtype(plan)
    if quantize and device.type == "cpu" and (slow := slow_int8(plan, chosen)):
        warnings.warn(slow, stacklevel=2)  # before minutes of waiting
    model = fill(plan, device, chosen, pack=True, quantize=quantize)
    if plan.unexpected:
        unexpected = ", ".join(plan.unexpected)
        warnings.warn(f"{snapshot.name} holds tensors that Imp does not use: {unexpected}.", stacklevel=2)
    return Imp(model, tokenizer, snapshot, why, quantize)


def _load_llama_cpp(
    checkpoint: str | os.PathLike | None,
    device: str | torch.device,
    dtype: str | torch.dtype,
    revision: str | None,
    quantize: str | None,
) -> "Imp":
    from imp_kit.llama_cpp.engine import open_engine

    if str(device) not in ("auto", "cpu") or dtype != "auto":
        raise SettingError(
            "engine='llama.cpp' computes on the CPU, in the type that quantize names; give no dtype, and the device "
            "'cpu' or 'auto'."
        )
    snapshot = find(NANO if checkpoint is None else checkpoint, revision)
    engine, why = open_engine(snapshot, quantize), "you asked for it"
    return Imp(engine.model, engine.tokenizer, replace(snapshot, name=engine.name), why, engine.dtype, engine)


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
    chosen = choose_dtype(dtype, device) or choose_cpu_dtype(plan_folder(snapshot.folder))
    name = LONG_DTYPES[str(chosen).removeprefix("torch.")]
    found = {"checkpoint": snapshot.name, "revision": snapshot.revision, "files": snapshot.digest()}
    return {**found, "dtype": name, "device": device.type}


def choose_checkpoint(device: torch.device, large: str = DEFAULT) -> tuple[str, str]:
    """`large`, a name of HUB_IDS, or imp-nano where this machine cannot run or get it; and the reason in words."""
    if device.type == "cpu":
        absent = not torch.cuda.is_available()
        return NANO, f"there is no GPU here for {large}{why_no_gpu()}" if absent else "the CPU was chosen"
    free, needed = free_memory(device), PUBLISHED[large].needed_bytes
    if free < needed:
        lack = f"{large} needs {needed / 1e9:.1f} GB of the GPU's memory and {free / 1e9:.1f} GB are free"
        other = roomier_gpu(needed, free_gpu_memory())
        return NANO, f"{lack}; choose {other}" if other else lack
    if not is_available(HUB_IDS[large]):
        return NANO, f"the hub cannot be reached for {large}"
    return large, "there is a GPU and the hub has it"


Call = TypeVar("Call", bound=Callable)


def image_by_older_name(method: Call) -> Call:
    """Let the parameter `image` be given as `picture`, too, as it was called before."""

    @functools.wraps(method)
    def call(*values: Any, **named: Any) -> Any:
        if "picture" in named and "image" not in named:
            named["image"] = named.pop("picture")
        return method(*values, **named)

    return cast(Call, call)


class Imp:
    """A loaded checkpoint, for one thread at a time.

    Whatever asks takes these settings: `max_new_tokens` (100), `temperature` (0 is greedy), `top_p` (1), `seed` (None),
    and `stop`, a text or a list of texts that end the answer and are not part of it; see `Sampling`.
    """

    def __init__(
        self,
        model: ImpModel,
        tokenizer: TextTokenizer,
        snapshot: Snapshot,
        why: str,
        quantize: str | None = None,
        engine: Engine | None = None,
    ):
        self.model, self.tokenizer, self.snapshot, self.why = model, tokenizer, snapshot, why
        self.quantize = quantize
        name, revision = snapshot.name, snapshot.revision
        self.engine = engine or Engine(model, tokenizer, name=name, revision=revision, dtype=self.dtype)
        self.template, self.stop_ids = self.engine.template, self.engine.stop_ids
        self._warned = False

    @property
    def name(self) -> str:
        return self.snapshot.name

    @property
    def dtype(self) -> str:
        """Such as "bf16", "bf16+int8" where the language model's weights are quantized, or llama.cpp's "q8_0"."""
        if self.model.device.type == "meta":  # llama.cpp has the weights
            return str(self.quantize)
        plain = LONG_DTYPES[str(self.model.dtype).removeprefix("torch.")]
        return f"{plain}+{self.quantize}" if self.quantize else plain

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        return f"<Imp {self.name}: {count / 1e6:,.1f} M parameters, {self.dtype} on {self.engine.device} ({self.why})>"

    @image_by_older_name
    def look(self, image: Any) -> "View":
        """Encode an image once, for as many questions as you like. It may be anything that `open_image` takes.

        None is no image: the questions are asked as text alone. Raises ImageError or MemoryLimitError.
        """
        return View(self, image)

    @image_by_older_name
    @named_settings
    def ask(self, image: Any, question: str, **settings: Unpack[Settings]) -> Answer:
        """Answer one question about one image, or about none (None).

        `max_new_tokens` is the answer's length, at most; `temperature` 0 takes the likeliest token, above 0 they are
        drawn, from those that make up `top_p` of the probability, in a way that `seed` makes repeatable; `stop` is a
        text or a list of texts before which the answer ends.
        Raises ImageError, PromptError, SettingError or MemoryLimitError.
        """
        check_order(image, question)
        check_question(question)  # what cannot be asked is refused before the image is read
        read_settings(settings)
        return self.look(image).ask(question, **settings)

    @image_by_older_name
    @named_settings
    def caption(self, image: Any, **settings: Unpack[Settings]) -> Answer:
        """Describe an image. Raises as `ask`."""
        return self.ask(image, CAPTION, **settings)

    @image_by_older_name
    @named_settings
    def locate(self, image: Any, phrase: str, **settings: Unpack[Settings]) -> Box:
        """Find what `phrase` names ("the bus"): its Box, which also tells if nothing was found. Raises as `ask`."""
        check_order(image, phrase)
        phrase, opened = check_phrase(phrase), open_image(image)
        answer = self.ask(opened, LOCATE.format(phrase), **settings)
        return Box(phrase, read_box(answer.text, opened.size, self.model.config.pad), opened, answer)

    @image_by_older_name
    @named_settings
    def describe(self, image: Any, box: Box | Corners, **settings: Unpack[Settings]) -> Answer:
        """Describe one region: a Box, or its corners (x0, y0, x1, y1) as fractions of the image. Raises as `ask`."""
        opened = open_image(image)
        corners = region(box, opened.size, self.model.config.pad)
        return self.ask(opened, DESCRIBE_REGION.format(corners), **settings)

    @named_settings
    def ask_many(
        self,
        questions: Iterable[tuple[Any, str]],
        *,
        batch_size: int = 8,
        progress: bool = True,
        **settings: Unpack[Settings],
    ) -> list[Answer | ImpKitError]:
        """Answer (image, question) pairs, `batch_size` at a time, with a progress bar unless `progress` is false.

        The list has the order of the pairs. A pair that cannot be answered has its error (ImageError, PromptError or
        MemoryLimitError) in its place, and the others their answers. In fp32 the answers are those of `ask`; in bf16
        and fp16 rounding depends on the size of the batch, and only `batch_size=1` gives exactly what `ask` gives.
        Where answers are drawn (temperature above 0), each has random numbers of its own, from the seed and its place
        in the list, whatever the batch; the first are those of `ask`. Raises SettingError.
        """
        return self.engine.answer_all(list(questions), batch_size, progress, *read_settings(settings))

    @image_by_older_name
    def rank(self, image: Any, question: str, answers: Iterable[str], *, per_token: bool = False) -> list[Candidate]:
        """How likely each of the given answers is, most probable first.

        An answer's likelihood is the product of its tokens' probabilities and that of its end, in fp32; `probability`
        is the softmax of `log_likelihood` over the given answers. A long answer has more factors below 1; `per_token`
        divides each log_likelihood by its number of tokens first. The image and the question are read once.
        Raises ImageError, PromptError, CheckpointError or MemoryLimitError.
        """
        check_order(image, question)
        check_question(question)
        answers = check_answers(answers)
        self._warn_of_unknown_words(question)
        view = self.look(image)
        turn = Conversation(self.engine, view.image, view.prefix).ask(question)
        (ranked,) = self.engine.rank([turn], answers, per_token)
        return ranked

    def classify(
        self,
        images: Iterable[Any],
        labels: Iterable[str],
        *,
        question: str = CLASSIFY,
        answer: str = "{}",
        per_token: bool = False,
        batch_size: int = 8,
        progress: bool = True,
    ) -> list[list[Candidate] | ImpKitError]:
        """Rank the labels for each image, most probable first, `batch_size` images at a time.

        Each label is put into `answer`, such as "It is a {}.", and ranked as an answer to `question`; see `rank`. The
        list has the order of the images; one that cannot be read has its error in its place. An image of None is the
        question alone, which shows what is likely whatever there is to see.
        Raises PromptError, SettingError, CheckpointError or MemoryLimitError.
        """
        check_question(question)
        labels = check_answers(labels, "label")
        if not isinstance(answer, str) or answer.count("{}") != 1:
            raise PromptError(f"answer is {answer!r}; give a text with one {{}} where the label goes.")
        one = isinstance(images, str | bytes | os.PathLike | Image.Image) or hasattr(images, "read")
        if one or getattr(images, "ndim", 4) < 4 or not isinstance(images, Iterable):
            raise ImageError(f"classify takes a list of images; put {images!r:.80} into one: [image].")
        self._warn_of_unknown_words(question)
        texts = [answer.replace("{}", label) for label in labels]
        pairs = [(image, question) for image in images]
        results = self.engine.rank_all(pairs, batch_size, progress, texts, per_token)
        names = dict(zip(texts, labels, strict=True))
        return [
            result
            if isinstance(result, ImpKitError)
            else [candidate._replace(answer=names[candidate.answer]) for candidate in result]
            for result in results
        ]

    def knows_words(self, question: str) -> bool:
        """False where imp-nano, whose tokens are the words of its lessons, knows few words of a question."""
        words = re.findall(r"\w+", question) if self.name == NANO else ()
        known = sum(len(self.tokenizer.encode_pieces((f" {word.lower()}",))) == 1 for word in words)
        return known >= KNOWN_WORDS * len(words)

    def _warn_of_unknown_words(self, question: str) -> None:
        """Say once if imp-nano knows few words of a question."""
        if not self._warned and not self.knows_words(question):
            self._warned = True
            text = f"{NANO} learned only simple English and knows few words of this question: expect no right answer."
            warnings.warn_explicit(text, UserWarning, "imp-kit", 1)  # the place in the kit would tell a reader nothing

    @image_by_older_name
    def chat(self, image: Any) -> "Chat":
        """Begin a conversation about an image, in which later questions know the earlier answers. Raises as `look`."""
        return Chat(self.look(image))


def _thumbnail(image: Image.Image | None) -> str:
    """A small copy of the image as HTML that holds it; "" for none."""
    if image is None:
        return ""
    small, file = image.copy(), io.BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(file, "PNG")
    return f"<img src='data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}' alt='the picture'>"


def _small(shown: "View | Chat") -> str:
    return f"<p style='color:gray;font-size:smaller'>{html.escape(repr(shown)[1:-1])}</p>"


class View:
    """An image that an Imp has looked at: its keys and values are kept, so each question costs only itself."""

    def __init__(self, imp: Imp, image: Any):
        start = time.perf_counter()
        self.imp = imp
        self.image = None if image is None else open_image(image)
        if imp.model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(imp.model.device)
        self.prefix = imp.engine.read_prefix(self.image)
        if imp.model.device.type == "cuda":
            torch.cuda.synchronize(imp.model.device)
        self.seconds = time.perf_counter() - start
        self._unreported_seconds = self.seconds  # for the first answer: the image's work is done once

    @property
    def picture(self) -> Image.Image | None:
        """The older name of `image`."""
        return self.image

    def __repr__(self) -> str:
        seen = "no picture" if self.image is None else "a picture of {} x {} pixels".format(*self.image.size)
        return f"<View: {self.imp.name} has looked at {seen}; ask(question) asks about it>"

    def _repr_html_(self) -> str:
        return _thumbnail(self.image) + _small(self)

    @named_settings
    def ask(self, question: str, **settings: Unpack[Settings]) -> Answer:
        """Answer a question about this image, knowing no other question. Raises PromptError or SettingError."""
        return Chat(self).say(question, **settings)

    @named_settings
    def stream(self, question: str, **settings: Unpack[Settings]) -> Generator[str, None, Answer]:
        """The same answer as `ask`, piece by piece as it is made."""
        return Chat(self).stream(question, **settings)

    def next_tokens(
        self, question: str, count: int = 8, begun: str = "", *, temperature: float = 1.0
    ) -> list[tuple[str, float]]:
        """The `count` likeliest next tokens of an answer that begins with the text `begun`, and their probabilities.

        Most probable first, which is the one that a greedy answer takes. A text has the blank before its word, so
        `begun` should not end in one; a control token, such as the one that ends an answer, has its name ("</s>").
        The probabilities are softmax(logits / temperature) in fp32 over the whole vocabulary: `ask` draws with them.
        Raises PromptError, SettingError, CheckpointError or MemoryLimitError.
        """
        turn = Conversation(self.imp.engine, self.image, self.prefix).ask(question)
        self.imp._warn_of_unknown_words(question)
        return self.imp.engine.next_tokens(turn, count, begun, temperature)


class Chat:
    """A conversation about one image. `turns` holds its questions and answers."""

    def __init__(self, view: View):
        self.view = view
        self.turns: list[tuple[str, Answer]] = []
        self._conversation = Conversation(view.imp.engine, view.image, view.prefix)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the keys and values that are kept for the next question."""
        return self._conversation.cache_bytes

    def __repr__(self) -> str:
        count = len(self.turns)
        asked = f"{count} question{'s' * (count != 1)} asked"
        return f"<Chat with {self.view.imp.name}: {asked}; say(question) asks the next>"

    def _repr_html_(self) -> str:
        turns = (
            f"<p><b>{html.escape(question)}</b><br>{html.escape(str(answer))}</p>" for question, answer in self.turns
        )
        return _thumbnail(self.view.image) + "".join(turns) + _small(self)

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
        turn = self._conversation.ask(question, stops)
        self.view.imp._warn_of_unknown_words(question)
        return self._stream(question, turn, sampling)

    def _stream(self, question: str, turn: Turn, sampling: Sampling) -> Generator[str, None, Answer]:
        turn.look_seconds = self.view._unreported_seconds
        for (piece,) in self.view.imp.engine.stream([turn], sampling):
            if piece:
                yield piece
        answer = self._conversation.answers[-1]
        self.view._unreported_seconds = 0.0
        self.turns.append((question, answer))
        return answer
