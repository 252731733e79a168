"""What the people who use the page ask of one model: sessions, their questions and answers, and what goes wrong.

Nothing here knows gradio. A session belongs to one browser tab; the model is shared by all of them.
"""

import hashlib
import io
import math
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from imp_kit.answers import Answer
from imp_kit.boxes import Box, Corners
from imp_kit.chat_web.texts import say
from imp_kit.checkpoints.hub import HUB_IDS, NANO, cached
from imp_kit.checkpoints.registry import PUBLISHED
from imp_kit.device import choose_device
from imp_kit.errors import ImageError, ImpKitError, MemoryLimitError, PromptError
from imp_kit.images import MAX_PIXELS, open_image
from imp_kit.imp import Chat, Imp, load
from imp_kit.prompts import IMAGE, check_question, is_blank

MAX_FILE_BYTES = 50_000_000
MAX_LETTERS = 20_000  # of a question: more are not even counted in tokens
MAX_NEW_TOKENS = 1024
MAX_KEPT_BYTES = 2e9  # of pictures, keys and values of all conversations
MAX_ENTRIES = 50  # that a page shows of a conversation
DRAWN_SIDE = 800  # pixels of the longer side of a picture with a box
WHERE = re.compile(r"\s*where(?:\s+is|\s+are|['’]s)\s+(.+?)[\s?.!]*", re.IGNORECASE | re.DOTALL)


class Problem(ImpKitError):
    """What keeps a question from its answer: the name of a text in `texts`, and the values that go into it."""

    def __init__(self, name: str, /, **values: object):
        super().__init__(say("en", name, **values))
        self.name, self.values = name, values

    def text(self, language: str) -> str:
        return say(language, self.name, **self.values)


@dataclass(frozen=True)
class Asked:
    """A question and what was answered; `answer` is None where somebody stopped it."""

    question: str
    text: str
    answer: Answer | None
    knows_words: bool


@dataclass(frozen=True)
class Found:
    """A thing that was looked for, where it is (None: not found), and the picture with its box as a JPEG file."""

    phrase: str
    fractions: Corners | None
    answer: Answer
    drawn: bytes


@dataclass(frozen=True)
class Notice:
    """A text of the page's own between two questions."""

    name: str
    values: dict[str, object]


@dataclass(frozen=True)
class Pending:
    """A question, or a phrase to find, that waits for its answer."""

    text: str
    find: bool
    settings: dict[str, Any]


@dataclass(eq=False)
class Session:
    """One browser tab: its picture and its conversation, each of which is only its own."""

    path: str | None = None
    entries: list[Asked | Found | Notice] = field(default_factory=list)
    pending: Pending | None = None
    model: str | None = None  # that knows this conversation
    number: int = 0  # of the conversation
    stopping: bool = False
    _digest: bytes = b""

    def show(self, path: str | None) -> bool:
        """Take an image file, or none, and begin a conversation; false if it is the one that is there already.

        Raises Problem for what is no image or too large: then all stays as it was.
        """
        if path == self.path:
            return False
        digest = b""
        if path is not None:
            content = read_file(path)
            digest = hashlib.sha256(content).digest()
            if digest == self._digest:  # another copy
                self.path = path
                return False
            _open(content)
        self.path, self._digest = path, digest
        self.begin()
        return True

    def begin(self) -> None:
        """Begin a new conversation about the same image."""
        self.entries, self.pending, self.model = [], None, None
        self.number += 1

    def accept(self, text: str, find: bool, settings: dict[str, Any]) -> Pending:
        """Take the next question, or phrase to find, which `answer` will answer. Raises Problem."""
        if self.pending:
            raise Problem("error_wait")
        text = read_phrase(str(text)) if find else str(text).strip()
        if is_blank(text):
            raise Problem("error_phrase" if find else "error_empty")
        if self.path is None:
            raise Problem("error_no_image")
        if IMAGE in text:
            raise Problem("error_marker")
        if len(text) > MAX_LETTERS:
            raise Problem("error_long")
        try:
            check_question(text)
        except PromptError as error:
            raise Problem("error_other", reason=str(error)) from None
        self.pending, self.stopping = Pending(text, find, settings), False
        return self.pending

    def answer(self, model: "SharedModel") -> Iterator[str]:
        """Answer what was accepted: the text so far, again and again; at the end it is among the entries.

        Raises Problem; the conversation stays as it was before the question.
        """
        pending, number = self.pending, self.number
        if pending is None:
            return
        model.answering.add(self)
        try:
            if pending.find:
                self._add(number, model.find(self, pending.text, pending.settings))
                return
            pieces, text, answer = model.stream(self, pending.text, pending.settings), "", None
            while not self.stopping and self.number == number:
                try:
                    text += next(pieces)
                except StopIteration as end:
                    answer = end.value
                    break
                yield text
            pieces.close()
            self._add(number, Asked(pending.text, text, answer, model.knows_words(pending.text)))
        finally:
            model.answering.discard(self)
            if self.pending is pending:
                self.pending = None

    def stop(self) -> None:
        """End the answer that is being made; the model does not remember it."""
        self.stopping = True

    def note(self, name: str, /, **values: object) -> None:
        """Put a text of the page's own into the conversation."""
        self._add(self.number, Notice(name, values))

    def _add(self, number: int, entry: Asked | Found | Notice) -> None:
        if number == self.number:  # else another conversation was begun meanwhile
            self.entries = [*self.entries, entry][-MAX_ENTRIES:]


class SharedModel:
    """The checkpoint that answers, one at a time for all sessions, and for one thread at a time.

    `name` is what the menu calls it; `imp` is None where neither another checkpoint nor this one could be loaded.
    Raises as `imp_kit.load`.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
    ):
        self._computing = {"device": device, "dtype": dtype}
        self._lock = threading.RLock()
        self._chats: OrderedDict[Session, tuple[Chat, int]] = OrderedDict()
        self.answering: set[Session] = set()
        self.imp: Imp | None = load(checkpoint, revision=revision, **self._computing)
        found, folder = self.imp.snapshot.name, self.imp.snapshot.folder
        named = {hub_id: name for name, hub_id in HUB_IDS.items()}
        self.name = named.get(found, found)
        self._first, self._folder = self.name, folder

    def choices(self) -> dict[str, tuple[str, dict[str, object]]]:
        """The names of the menu, first the one given at the start, each with a text about how it would run here."""
        return {name: self._outlook(name) for name in dict.fromkeys([self._first, NANO, *HUB_IDS])}

    def _outlook(self, name: str) -> tuple[str, dict[str, object]]:
        if self._find(name) is None:
            return "not_downloaded", {"size": _gigabytes(name)}
        slow = name in HUB_IDS and choose_device(self._computing["device"]).type == "cpu"
        return ("slow" if slow else "ready"), {}

    def _find(self, name: str) -> Path | str | None:
        """What to load for a name of the menu; None where it is not on this machine: a page downloads nothing."""
        if name == self._first:
            return self._folder
        return NANO if name == NANO else cached(HUB_IDS[name])

    def switch(self, name: str) -> bool:
        """Load another checkpoint in place of this one; every conversation ends. Raises Problem.

        False where the one that answers was named.
        """
        if name not in {self._first, NANO, *HUB_IDS}:
            raise Problem("error_other", reason=f"{name!r:.80}?")
        folder = self._find(name)
        if folder is None:
            raise Problem("error_not_here", name=name, size=_gigabytes(name))
        with self._lock:
            if name == self.name and self.imp:
                return False
            before, self.imp = self.name, None  # two of them may not fit into the memory
            self._chats.clear()
            try:
                self.imp, self.name = load(folder, **self._computing), name
            except ImpKitError as error:
                with suppress(ImpKitError):  # else the next question says that no model is there
                    self.imp = load(self._find(before) or before, **self._computing)
                raise Problem("error_load", name=name, current=before, reason=str(error)) from error
        return True

    def is_busy(self) -> bool:
        """Whether a session is being answered now."""
        return bool(self.answering)

    def knows_words(self, question: str) -> bool:
        """Whether the checkpoint learned the words of a question; see `Imp.knows_words`."""
        return self.imp is None or self.imp.knows_words(question)

    def stream(self, session: Session, question: str, settings: dict[str, Any]) -> Generator[str, None, Answer]:
        """Ask the next question of a session's conversation; the answer comes piece by piece. Raises Problem.

        Nothing is held between two pieces: a stream that is dropped keeps nobody waiting.
        """
        with self._lock, self._problems():
            stream = self._chat(session).stream(question, **settings)
        while True:
            try:
                with self._lock, self._problems():
                    piece = next(stream)
            except StopIteration as end:
                self._forget_oldest()
                return end.value
            yield piece

    def find(self, session: Session, phrase: str, settings: dict[str, Any]) -> Found:
        """Look for what a phrase names in a session's image. Raises Problem."""
        with self._lock, self._problems():
            view = self._chat(session).view
            box = view.imp.locate(view.image, phrase, **settings)
        return Found(box.phrase, box.fractions, box.answer, _draw(box))

    def forget(self, session: Session) -> None:
        """Drop what is kept for a session, when its tab is gone or it begins anew."""
        with self._lock:
            self._chats.pop(session, None)

    def _chat(self, session: Session) -> Chat:
        """A session's conversation as the model knows it; a new one, with a note, where it knows it no longer."""
        if self.imp is None:
            raise Problem("error_no_model")
        conversation = session.number
        chat, number = self._chats.pop(session, (None, None))
        if chat is None or number != conversation:
            if session.path is None:
                raise Problem("error_no_image")
            chat = self.imp.chat(_open(read_file(session.path)))
            if session.model not in (None, self.name):
                session.note("model_changed", name=self.name)
            elif session.model:
                session.note("set_aside")
        session.model = self.name
        self._chats[session] = (chat, conversation)
        return chat

    def _forget_oldest(self) -> None:
        """Keep conversations within MAX_KEPT_BYTES, at least the one that was used last."""
        with self._lock:
            sizes = [chat.cache_bytes + _image_bytes(chat.view.image) for chat, _ in self._chats.values()]
            while len(sizes) > 1 and sum(sizes) > MAX_KEPT_BYTES:
                self._chats.popitem(last=False)
                sizes.pop(0)

    @contextmanager
    def _problems(self) -> Iterator[None]:
        """Turn the kit's errors into Problems; what can be wrong with a question alone was found before."""
        try:
            yield
        except Problem:
            raise
        except MemoryLimitError:
            raise Problem("error_memory") from None
        except PromptError:
            raise Problem("error_long") from None
        except ImpKitError as error:
            raise Problem("error_other", reason=str(error)) from error


def read_settings(max_new_tokens: Any, temperature: Any, seed: Any) -> dict[str, Any]:
    """A page's settings, as a browser sends them, for `Chat.stream`; no seed is None. Raises Problem."""
    numbers = [max_new_tokens, temperature, 0 if seed is None else seed]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers) or not (
        1 <= max_new_tokens <= MAX_NEW_TOKENS
        and 0 <= temperature <= 2
        and 0 <= numbers[2] < 2**53  # the largest whole numbers of a browser
        and max_new_tokens == int(max_new_tokens)
        and numbers[2] == int(numbers[2])
    ):
        raise Problem("error_settings", most=MAX_NEW_TOKENS)
    return {
        "max_new_tokens": int(max_new_tokens),
        "temperature": float(temperature),
        "seed": None if seed is None else int(seed),
    }


def read_phrase(text: str) -> str:
    """What to look for: "the bus" of "Where is the bus?", else the text without blanks and marks at its end."""
    asked = WHERE.fullmatch(text)
    return asked[1] if asked else text.strip().rstrip("?.! ")


def read_file(path: str) -> bytes:
    """An image file's content. Raises Problem where it is not there or larger than MAX_FILE_BYTES."""
    try:
        size = os.path.getsize(path)
        if size > MAX_FILE_BYTES:
            raise Problem("error_big", size=f"{size / 1e6:.0f}", limit=f"{MAX_FILE_BYTES / 1e6:.0f}")
        return Path(path).read_bytes()
    except OSError:
        raise Problem("error_gone") from None


def _open(content: bytes) -> Image.Image:
    """The image in a file's content. Raises Problem."""
    try:
        return open_image(content)
    except ImageError as error:
        if f"{MAX_PIXELS:,} pixels" in str(error):
            raise Problem("error_pixels", limit=MAX_PIXELS // 1_000_000) from None
        raise Problem("error_file") from None


def _draw(box: Box) -> bytes:
    """The image with its box, made small, as a JPEG file."""
    small, file = box.image.copy(), io.BytesIO()
    small.thumbnail((DRAWN_SIDE, DRAWN_SIDE))
    replace(box, image=small).draw().save(file, "JPEG", quality=90)
    return file.getvalue()


def _image_bytes(image: Image.Image | None) -> int:
    return 3 * math.prod(image.size) if image else 0


def _gigabytes(name: str) -> str:
    return f"{PUBLISHED[name].weight_bytes / 1e9:.1f}"
