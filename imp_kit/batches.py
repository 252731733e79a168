"""Many questions at once: rows of a left-padded batch, each answered as if it were alone."""

import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from imp_kit.answers import Answer, Seconds
from imp_kit.errors import ImpKitError, PromptError, SettingError
from imp_kit.images import open_image, to_pixels
from imp_kit.machine import memory_told, peak_memory
from imp_kit.model.generate import generate
from imp_kit.prompts import check_question
from imp_kit.sampling import Sampling
from imp_kit.tokens import GrowingText


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
                    check_question(question)
                    pictures.append(None if picture is None else open_image(picture))
                except ImpKitError as error:
                    results[place] = error
                    continue
                places.append(place)
                questions.append([question])
            try:
                answers = converse(imp, pictures, questions, sampling, stops)
            except ImpKitError as error:  # what does not fit into memory costs this batch, not the others
                answers = [error] * len(places)
            for place, answer in zip(places, answers, strict=True):
                results[place] = answer
            bar.update(min(batch_size, len(pairs) - start))
    errors = [result for result in results if isinstance(result, ImpKitError)]
    if errors:
        warnings.warn(f"{len(errors)} of {len(pairs)} have no answer. The first: {errors[0]}", stacklevel=3)
    return results


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
    if not pictures:
        return []
    model, config = imp.model, imp.model.config
    limit = config.decoder.max_positions
    start = time.perf_counter()
    opening = imp.template.open()
    opening_ids = imp.tokenizer.encode_pieces(opening)
    rows = [_Row(() if picture is None else opening) for picture in pictures]
    shown = [index for index, picture in enumerate(pictures) if picture is not None]
    if shown:
        with memory_told("Looking at these pictures"):
            size, pad = config.vision.image_size, config.pad
            features = model.encode(torch.stack([to_pixels(pictures[index], size, pad) for index in shown]))
        for index, seen_there in zip(shown, features, strict=True):
            rows[index].prefix = [opening_ids, seen_there]
            rows[index].read = len(opening_ids) + len(seen_there)
    seen = time.perf_counter()
    for turn in range(len(conversations[0])):
        for row, questions in zip(rows, conversations, strict=True):
            row.ask(imp, questions[turn], limit - row.read, stops)
        going = [index for index, row in enumerate(rows) if row.error is None]
        if not going:
            break
        prompts = [model.splice([*rows[index].prefix, rows[index].ids])[0] for index in going]
        lengths = [len(prompt) for prompt in prompts]
        pads = torch.tensor([max(lengths) - length for length in lengths], device=model.device)
        with memory_told("These answers"):
            embeddings = pad_sequence(prompts, batch_first=True, padding_side="left")
            cache = model.new_cache(embeddings.shape[1] + sampling.max_new_tokens, len(prompts))
            for step in generate(model, embeddings, cache, sampling, imp.stop_ids, pads):
                for index, length, token in zip(going, lengths, step, strict=True):
                    rows[index].take(token, imp.stop_ids, room=limit - length)
                if all(rows[index].finished for index in going):
                    break
        for index in going:
            rows[index].close(imp)
    decoded = time.perf_counter()
    seconds = Seconds((seen - start) / len(rows), 0.0, (decoded - seen) / len(rows))
    return [row.answer(imp, seconds) for row in rows]


class _Row:
    """One conversation of a batch."""

    def __init__(self, opening: tuple[str, ...]):
        self.prefix: list = []  # the ids before the picture and its features,
        self.read = 0  # so many positions
        self.ids: list[int] = []  # behind the picture
        self.pieces: tuple[str, ...] = opening
        self.error: PromptError | None = None
        self.finished = False

    def ask(self, imp, question: str, room: int, stops: tuple[str, ...]) -> None:
        if self.error:
            return
        alone = not self.pieces
        asked = imp.template.ask_alone(question) if alone else imp.template.ask(question, first=not self.ids)
        self.pieces += asked
        self.ids = [*self.ids, *imp.tokenizer.encode_pieces(asked)]
        self.text = GrowingText(imp.tokenizer, (*stops, imp.template.stop))
        self.tokens, self.finish, self.finished = 0, "length", False
        if len(self.ids) >= room:
            self.error = PromptError(
                f"The question is {len(self.ids)} tokens long, and {imp.name} has room for {room}."
            )

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
