"""Many questions at once: rows of a batch, padded before the question, each answered as if it were alone."""

import hashlib
import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from imp_kit.answers import Answer, Seconds
from imp_kit.errors import CheckpointError, ImpKitError, MemoryLimitError, PromptError, SettingError
from imp_kit.images import check_order, check_square, open_image, to_pixels
from imp_kit.machine import free_memory, memory_told, peak_memory
from imp_kit.model.decoder import KVCache, Padding
from imp_kit.model.generate import generate
from imp_kit.prompts import check_question
from imp_kit.sampling import Sampling
from imp_kit.tokens import GrowingText

QUESTION = 256  # tokens before and behind a picture, for planning


def answer_all(
    imp, pairs: Sequence[tuple[Any, str]], batch_size: int, progress: bool, sampling: Sampling, stops: tuple[str, ...]
) -> list[Answer | ImpKitError]:
    """Answer (picture, question) pairs with an Imp; see `Imp.ask_many`."""
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise SettingError(f"batch_size is {batch_size!r}; give a whole number from 1.")
    results: list[Answer | ImpKitError | None] = [None] * len(pairs)
    with tqdm(total=len(pairs), unit="answer", disable=not progress) as bar:
        for start in range(0, len(pairs), batch_size):
            places, pictures, questions = [], [], []
            for place in range(start, min(start + batch_size, len(pairs))):
                try:
                    picture, question = _pair(pairs[place])
                    check_order(picture, question)
                    check_question(question)
                    image = None if picture is None else open_image(picture)
                    if image and imp.model.config.pad:
                        check_square(image)
                except ImpKitError as error:
                    results[place] = _bare(error)
                    continue
                places.append(place)
                pictures.append(image)
                questions.append([question])
            for place, answer in zip(places, _fitting(imp, pictures, questions, sampling, stops), strict=True):
                results[place] = answer
            bar.update(min(batch_size, len(pairs) - start))
    errors = [result for result in results if isinstance(result, ImpKitError)]
    if errors:
        warnings.warn(f"{len(errors)} of {len(pairs)} have no answer. The first: {errors[0]}", stacklevel=3)
    return results


def _fitting(imp, pictures: list, questions: list, sampling: Sampling, stops: tuple[str, ...]) -> list:
    """The batch's answers, in halves and halves of these where it does not fit into memory."""
    if not pictures:
        return []
    free = free_memory(imp.model.device)
    if len(pictures) == 1 or len(pictures) * _row_bytes(imp, sampling) <= free:
        try:
            return converse(imp, pictures, questions, sampling, stops)
        except (CheckpointError, MemoryLimitError) as error:
            if len(pictures) == 1:  # what fails alone costs itself, not the others
                return [_bare(error)]
    half = len(pictures) // 2
    parts = ((pictures[:half], questions[:half]), (pictures[half:], questions[half:]))
    return [answer for part in parts for answer in _fitting(imp, *part, sampling, stops)]


def _bare(error: ImpKitError) -> ImpKitError:
    """The error without its traceback, whose frames would keep a batch's memory as long as the error is kept."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _row_bytes(imp, sampling: Sampling) -> int:
    """Memory that one row of a batch takes at most, about: keys and values twice, and the widest layer's work."""
    sizes, patches = imp.model.config.decoder, imp.model.config.vision.num_patches
    positions = min(sizes.max_positions, patches + QUESTION + sampling.max_new_tokens)
    values = 2 * sizes.kept_values * positions + 4 * sizes.intermediate_size * (patches + QUESTION)
    return values * imp.model.dtype.itemsize


def _pair(pair: Any) -> tuple[Any, str]:
    try:
        picture, question = pair
    except (TypeError, ValueError):
        raise PromptError(f"Each item is a pair of a picture and a question, not {pair!r:.80}.") from None
    return picture, question


@torch.inference_mode()
def converse(
    imp, pictures: Sequence, conversations: Sequence[Sequence[str]], sampling: Sampling, stops: tuple[str, ...] = ()
) -> list[Answer | PromptError]:
    """The last answers of conversations of equal length, one about each RGB picture, or about none (None).

    A row whose prompt is too long for the checkpoint has a PromptError in its place. Times are the batch's, divided
    by its rows. Raises MemoryLimitError.
    """
    results: list[Answer | PromptError | None] = [None] * len(pictures)
    # Rows with a picture share the length of what stands before the question, and so do rows without one.
    for shown in (True, False):
        places = [place for place, picture in enumerate(pictures) if (picture is not None) == shown]
        if places:
            chosen = ([pictures[place] for place in places], [conversations[place] for place in places])
            with imp.threads.use(len(places)):
                answers = _converse(imp, *chosen, sampling, stops)
            for place, answer in zip(places, answers, strict=True):
                results[place] = answer
    return results


def _converse(imp, pictures, conversations, sampling, stops):
    model, limit = imp.model, imp.model.config.decoder.max_positions
    start = time.perf_counter()
    opening = () if pictures[0] is None else imp.template.open()
    with memory_told("Looking at these pictures"):
        looked, owners = _look(imp, pictures, opening)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    seen = time.perf_counter()
    rows = [_Row(opening) for _ in pictures]
    for turn in range(len(conversations[0])):
        for row, questions in zip(rows, conversations, strict=True):
            row.ask(imp, questions[turn], limit - looked.length, stops)
        going = [index for index, row in enumerate(rows) if row.error is None]
        if not going:
            break
        prompts = [model.splice([[*rows[index].ids, *imp.tokenizer.suffix]])[0] for index in going]
        counts = [len(prompt) for prompt in prompts]
        # At the left of the questions, behind the pictures; questions of one length need none.
        pads = torch.tensor([max(counts) - count for count in counts], device=model.device)
        padding = Padding(pads, looked.length) if pads.any() else None
        with memory_told("These answers"):
            embeddings = pad_sequence(prompts, batch_first=True, padding_side="left")
            # Short rows go on where a long one has reached the limit.
            end = looked.length + max(counts) + min(sampling.max_new_tokens, limit - looked.length - min(counts))
            cache = looked.keep(torch.tensor([owners[index] for index in going], device=model.device), end)
            ended: set[int] = set()
            for step in generate(model, embeddings, cache, sampling, imp.stop_ids, padding, ended):
                for place, (index, count, token) in enumerate(zip(going, counts, step, strict=True)):
                    rows[index].take(token, imp.stop_ids, room=limit - looked.length - count)
                    if rows[index].finished:
                        ended.add(place)
        for index in going:
            rows[index].close(imp)
    decoded = time.perf_counter()
    seconds = Seconds((seen - start) / len(rows), 0.0, (decoded - seen) / len(rows))
    return [row.answer(imp, seconds) for row in rows]


def _look(imp, pictures: Sequence, opening: tuple[str, ...]) -> tuple[KVCache, list[int]]:
    """Keys and values of each different picture, and which of them each row is about."""
    model, config = imp.model, imp.model.config
    if pictures[0] is None:
        return model.new_cache(0), [0] * len(pictures)
    pixels = [to_pixels(picture, config.vision.image_size, config.pad) for picture in pictures]
    numbers: dict[bytes, int] = {}
    owners = [numbers.setdefault(hashlib.sha256(each.numpy().tobytes()).digest(), len(numbers)) for each in pixels]
    different = [pixels[owners.index(number)] for number in range(len(numbers))]
    before = model.decoder.embed_tokens(
        torch.tensor(imp.tokenizer.encode_pieces(opening, begins=True), device=model.device)
    )
    features = model.encode(torch.stack(different))
    read = torch.cat((before.expand(len(features), -1, -1), features), dim=1)
    cache = model.new_cache(read.shape[1], len(read))
    model.decoder(read, cache)
    return cache, owners


class _Row:
    """One conversation of a batch."""

    def __init__(self, opening: tuple[str, ...]):
        self.ids: list[int] = []  # behind the picture
        self.pieces: tuple[str, ...] = opening
        self.error: ImpKitError | None = None
        self.finished = False

    def ask(self, imp, question: str, room: int, stops: tuple[str, ...]) -> None:
        if self.error:
            return
        alone = not self.pieces
        asked = imp.template.ask_alone(question) if alone else imp.template.ask(question, first=not self.ids)
        self.pieces += asked
        try:
            self.ids = [*self.ids, *imp.tokenizer.encode_pieces(asked, begins=alone)]
        except CheckpointError as error:  # of a tokenizer that forges a control token out of this question
            self.error = error
            return
        self.text = GrowingText(imp.tokenizer, (*stops, imp.template.stop))
        self.tokens, self.finish, self.finished = 0, "length", False
        length = len(self.ids) + len(imp.tokenizer.suffix)
        if length >= room:
            self.error = PromptError(f"The question is {length} tokens long, and {imp.name} has room for {room}.")

    def take(self, token: int | None, stop_ids, room: int) -> None:
        if token is None or self.finished:
            return
        self.tokens += 1
        if token in stop_ids:
            self.finish, self.finished = "stop", True
            return
        self.text.add(token)
        if self.text.stopped:
            self.finish, self.finished = "stop", True
        elif self.tokens > room:
            self.finished = True

    def close(self, imp) -> None:
        self.text.finish()
        self.prompt = "".join(self.pieces)
        self.ids = [*self.ids, *self.text.ids]
        self.pieces = (*self.pieces, imp.tokenizer.decode(self.text.ids))

    def answer(self, imp, seconds: Seconds) -> Answer | PromptError:
        return self.error or Answer(
            text=self.text.text,
            token_ids=tuple(self.text.ids),
            prompt=self.prompt,
            checkpoint=imp.name,
            revision=imp.snapshot.revision,
            device=str(imp.model.device),
            dtype=imp.dtype,
            finish=self.finish,
            tokens=self.tokens,
            seconds=seconds,
            peak_memory=peak_memory(imp.model.device),
        )
