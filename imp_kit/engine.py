"""Questions about images in, answers out: one place for prefill, the prefix cache, batches and the end of an answer.

One question is a batch of one. What all of a batch begin with, system prompt and image, is the prefix; its keys and
values are kept for the questions that follow.
"""

import hashlib
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from imp_kit.answers import Answer, Candidate, Seconds, TokenScore
from imp_kit.checkpoints.tokenizer import REPLACEMENT, TextTokenizer
from imp_kit.device import Threads
from imp_kit.errors import (
    CheckpointError,
    ImpKitError,
    MemoryLimitError,
    PromptError,
    PromptLengthError,
    SettingError,
)
from imp_kit.images import check_order, check_square, open_image, to_pixels
from imp_kit.model.decoder import KVCache, Padding
from imp_kit.model.generate import check_scores, generate
from imp_kit.model.imp import ImpModel
from imp_kit.model.likelihood import log_likelihoods
from imp_kit.model.memory import free_memory, out_of_memory_errors, peak_memory
from imp_kit.model.sampling import Sampling
from imp_kit.prompts import TEMPLATES, check_question, check_text
from imp_kit.settings import read_batch_size

PREFIX_HEADROOM = 256  # positions after a prefix: as long as question and answer fit in there, nothing is copied
PREFIX_CACHE_BYTES = 400e6  # of keys and values: one image of a large Imp, or hundreds of imp-nano's
QUESTION_TOKENS = 256  # of a prompt beside the image, as batches are planned
RANKED_TOKENS = 128  # of answers that are read at once: 80 MB of scores where a vocabulary has 152,000 tokens


class Decoding(Protocol):
    """What gives the text of tokens."""

    def decode(self, ids: list[int], /) -> str: ...


class StreamDecoder:
    """Tokens in, text out: never half a character, never a stop string or the beginning of one.

    Joined, the pieces are the final `text`: without blanks at both ends, cut before the first stop string.
    """

    def __init__(self, tokenizer: Decoding, stops: Sequence[str]):
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._ids: list[int] = []
        self._sent = ""
        self.stopped = False

    def add(self, id: int) -> str:
        """Take one token; return what can be shown now, and set `stopped` if a stop string is complete."""
        self._ids.append(id)
        return self._show(final=False)

    def finish(self) -> str:
        """What was held back, once no token follows."""
        return "" if self.stopped else self._show(final=True)

    @property
    def text(self) -> str:
        """All that was shown so far."""
        return self._sent

    @property
    def ids(self) -> list[int]:
        """The tokens whose text is wholly shown; where some is held back or cut off, fewer than were added."""
        kept = len(self._ids)
        while kept and len(self._tokenizer.decode(self._ids[:kept]).strip()) > len(self._sent):
            kept -= 1
        return self._ids[:kept]

    def _show(self, final: bool) -> str:
        text = self._tokenizer.decode(self._ids).lstrip()
        cuts = [start for stop in self._stops if (start := text.find(stop)) >= 0]
        if cuts:
            self.stopped = True
            text = text[: min(cuts)].rstrip()
        elif final:
            text = text.rstrip()
        else:
            text = text.rstrip(REPLACEMENT)
            text = text[: len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)].rstrip()
        piece = text[len(self._sent) :]
        self._sent += piece
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class Conversation:
    """Turns about one RGB image, or about none (None): `count` of them came to their ends, and `answers` has their
    answers, but for those of `add`.

    `prefix` holds the keys and values of what was read; without one, those of the image are read when a turn needs
    them.
    """

    def __init__(self, engine: "Engine", image: Image.Image | None, prefix: KVCache | None = None):
        self.engine, self.image = engine, image
        self.answers: list[Answer] = []
        self.count = 0
        self._prefix = prefix
        self._unread: list[int] = []  # ids of earlier turns that are not in the prefix
        self._pieces: tuple[str, ...] = () if image is None else engine.template.open()

    def ask(self, question: str, stops: tuple[str, ...] = ()) -> "Turn":
        """The next turn, to be answered by the engine. Raises PromptError or CheckpointError."""
        engine, first = self.engine, self.count == 0
        alone = self.image is None and first
        asked = engine.template.ask_alone(question) if alone else engine.template.ask(question, first=first)
        ids = [*self._unread, *engine.tokenizer.encode_pieces(asked, begins=alone), *engine.tokenizer.suffix]
        turn = Turn(self, (*self._pieces, *asked), ids, StreamDecoder(engine.tokenizer, (*stops, engine.template.stop)))
        limit = engine.model.config.decoder.max_positions
        if turn.prompt_length >= limit:
            raise PromptLengthError(
                f"The question makes the prompt {turn.prompt_length} tokens long, and {engine.name} reads {limit}. "
                f"Ask a shorter question{'' if first else ' or begin a new chat'}."
            )
        return turn

    @property
    def prefix_length(self) -> int:
        """Positions of the prefix, read or not."""
        return self.engine.prefix_length(self.image) if self._prefix is None else self._prefix.length

    @property
    def is_read(self) -> bool:
        """Whether the prefix was read before."""
        return self._prefix is not None

    @property
    def cache_bytes(self) -> int:
        """Bytes of the prefix, 0 if it was not read."""
        return 0 if self._prefix is None else self._prefix.nbytes

    def prefix(self) -> KVCache:
        """The prefix, read if it was not yet. Raises MemoryLimitError."""
        return self.engine.read_prefix(self.image) if self._prefix is None else self._prefix

    def add(self, question: str, answer: str) -> None:
        """Add a turn that was answered before, of which there is the text only. Raises as `ask`.

        The text is made tokens again: those that were generated, unless a model spelled a word in another way.
        """
        turn = self.ask(question)
        text, encode = answer.strip(), self.engine.tokenizer.encode
        self._advance(turn, encode(self.engine.template.answer + text, begins=False) if text else [])

    def close(self, turn: "Turn", answer: Answer, cache: KVCache | None) -> None:
        """Take an answered turn into the conversation, and the cache that holds it, where it was the only row."""
        kept, suffix = turn.reply.ids, len(self.engine.tokenizer.suffix)
        self._advance(turn, kept)
        if cache is not None:
            # What a tokenizer wants after each prompt is no part of the conversation: before it the next turn goes on.
            cache.truncate(turn.prompt_length - suffix if suffix else turn.prompt_length + len(kept))
            self._unread = kept[max(0, cache.length - turn.prompt_length) :]
            self._prefix = cache
        self.answers.append(answer)

    def _advance(self, turn: "Turn", kept: list[int]) -> None:
        """Let the next turn follow this one, with the tokens that are kept of its answer."""
        suffix = len(self.engine.tokenizer.suffix)
        self._unread = [*turn.ids[: len(turn.ids) - suffix], *kept]
        # Not the text: a stop string can cut within a token, and the next prompt tells what was read.
        self._pieces = (*turn.pieces, self.engine.tokenizer.decode(kept))
        self.count += 1


class Turn:
    """One question of a conversation, and the reply that grows: a row of a batch. `answer` is there at its end."""

    def __init__(self, conversation: Conversation, pieces: tuple[str, ...], ids: list[int], reply: StreamDecoder):
        self.conversation, self.pieces, self.ids, self.reply = conversation, pieces, ids, reply
        self.prefix_length = conversation.prefix_length
        self.prompt_length = self.prefix_length + len(ids)
        self.number = conversation.count
        self.look_seconds = 0.0  # of an image that was read before
        self.tokens, self.finish, self.done = 0, "length", False
        self.likeliest: int | None = None  # how many tokens beside each of the answer's are scored; None scores none
        self._scores: list[tuple[Tensor, Tensor, Tensor]] = []
        self.answer: Answer | None = None

    def take(self, token: int, stop_ids: frozenset[int], limit: int) -> str:
        """Add a generated token; return what can be shown now, and set `done` at a stop or at `limit` tokens."""
        self.tokens += 1
        piece = "" if token in stop_ids else self.reply.add(token)
        if token in stop_ids or self.reply.stopped:
            self.finish, self.done = "stop", True
        elif self.tokens >= limit:
            self.done = True
        return piece + self.reply.finish() if self.done else piece

    def cancel(self) -> None:
        """End the answer after the step that is being computed; any thread may do so."""
        self.done = True

    def watch(self, scores: Tensor, token: Tensor) -> None:
        """Keep what `scores` needs of a step: logits, fp32 (vocab_size,), and the chosen token, int64 ()."""
        if self.likeliest is not None:
            logs = scores.log_softmax(dim=-1)
            self._scores.append((logs.take(token), *logs.topk(self.likeliest)))

    def scores(self, start: int = 0) -> list[TokenScore]:
        """Of the answer's tokens from `start` on whose text is shown, where `likeliest` was set before the stream."""
        ids = self.reply.ids[start:]
        return [
            TokenScore(id, own.item(), list(zip(tokens.tolist(), logs.tolist(), strict=True)))
            for id, (own, logs, tokens) in zip(ids, self._scores[start:], strict=False)
        ]

    def check(self) -> None:
        """Raise PromptError where the conversation got another answer since this question."""
        if self.number != self.conversation.count:
            raise PromptError("This chat got another answer since that question; ask the question again.")


class Engine:
    """Answers turns with one loaded model, for one thread at a time.

    `revision` and `dtype` are what its answers say of themselves.
    """

    def __init__(self, model: ImpModel, tokenizer: TextTokenizer, *, name: str, revision: str | None, dtype: str):
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.threads = Threads(model)
        self.template = TEMPLATES[model.config.family]
        control = tokenizer.control
        ends = (control.get(self.template.stop), control.get("<|endoftext|>"), *model.config.eos_token_ids)
        self.stop_ids = frozenset(id for id in ends if id is not None)
        self._revision, self.dtype, self.device = revision, dtype, str(model.device)
        self._opening = tokenizer.encode_pieces(self.template.open(), begins=True)
        self._prefix_cache: OrderedDict[bytes, KVCache] = OrderedDict()

    def prefix_length(self, image: Image.Image | None) -> int:
        """Positions of the system prompt and an image; none without an image."""
        return 0 if image is None else len(self._opening) + self.model.config.vision.num_patches

    @torch.inference_mode()
    def read_prefix(self, image: Image.Image | None) -> KVCache:
        """Keys and values of the system prompt and an RGB image; of nothing for None. Raises MemoryLimitError.

        Those of the images that were read last are kept, by what the model sees of them.
        """
        return self.model.new_cache(0) if image is None else self._read_pixels(*self._prepare(image))

    def _prepare(self, image: Image.Image) -> tuple[bytes, torch.Tensor]:
        """What the model sees of an image, float32 (3, image_size, image_size), and a key that tells it from others."""
        config = self.model.config
        pixels = to_pixels(image, config.vision.image_size, config.pad)
        return hashlib.sha256(pixels.numpy().tobytes()).digest(), pixels

    def _read_pixels(self, key: bytes, pixels: torch.Tensor) -> KVCache:
        model, config = self.model, self.model.config
        if key in self._prefix_cache:
            self._prefix_cache.move_to_end(key)
            return self._prefix_cache[key]
        with out_of_memory_errors("Looking at a picture"), self.threads.use(self.threads.count()):
            length = len(self._opening) + config.vision.num_patches
            capacity = min(length + PREFIX_HEADROOM, config.decoder.max_positions)
            size = config.decoder.kv_values_per_token * capacity * model.dtype.itemsize
            if size <= PREFIX_CACHE_BYTES:
                self._forget_until(size)
            cache = model.new_cache(capacity)
            model.decoder(model.splice([self._opening, model.encode(pixels[None])[0]]), cache)
        cache.truncate(length)
        if size <= PREFIX_CACHE_BYTES:
            self._prefix_cache[key] = cache
        return cache

    def _forget_until(self, size: int) -> None:
        """Forget the images read longest ago until `size` more bytes are within PREFIX_CACHE_BYTES."""
        kept = [cache.buffer.tensor.nbytes for cache in self._prefix_cache.values()]
        while kept and sum(kept) + size > PREFIX_CACHE_BYTES:
            self._prefix_cache.popitem(last=False)
            kept.pop(0)

    @torch.inference_mode()
    def stream(
        self, turns: Sequence[Turn], sampling: Sampling | Sequence[Sampling], indices: Sequence[int] = (0,)
    ) -> Iterator[list[str]]:
        """Answer turns whose prefixes are of one length; yield, step by step, the text that is new in each of them.

        It may be empty. `sampling` is one for all turns, or one for each. At the end each turn has its `answer` and is
        part of its conversation; a stream that is dropped leaves no trace. What is drawn depends on the seed and on a
        turn's index, not on the batch. Times are the batch's, divided by its rows.
        Raises PromptError, CheckpointError or MemoryLimitError.
        """
        samplings = [sampling] * len(turns) if isinstance(sampling, Sampling) else sampling
        new_tokens = max(each.max_new_tokens for each in samplings)

        def watch(rows: Sequence[int], scores: Tensor, tokens: Tensor) -> None:
            for row, row_scores, token in zip(rows, scores, tokens, strict=True):
                turns[row].watch(row_scores, token)

        for turn in turns:
            turn.check()
        what, rows = "This answer" if len(turns) == 1 else "These answers", len(turns)
        threads = self.threads.count(rows)
        start = time.perf_counter()
        with out_of_memory_errors(what), self.threads.use(threads):
            # Short rows go on where a long one has reached the limit.
            longest = max(len(turn.ids) for turn in turns)
            capacity = turns[0].prefix_length + longest + min(new_tokens, max(map(self._room, turns)))
            cache = self._gather(turns, capacity)
            if self.model.device.type == "cuda":
                torch.cuda.synchronize(self.model.device)
            looked = start if all(turn.conversation.is_read for turn in turns) else time.perf_counter()
            lengths = [len(turn.ids) for turn in turns]
            prompts = [self.model.splice([turn.ids])[0] for turn in turns]
            embeddings = pad_sequence(prompts, batch_first=True, padding_side="left")
            # At the left of the questions, after the prefix; questions of one length need none.
            pads = torch.tensor([max(lengths) - length for length in lengths], device=self.model.device)
            padding = Padding(pads, cache.length) if len(set(lengths)) > 1 else None
            ended: set[int] = set()
            scored = watch if any(turn.likeliest is not None for turn in turns) else None
            steps = generate(self.model, embeddings, cache, samplings, self.stop_ids, padding, ended, indices, scored)
        limits = [  # the last token is not read
            min(each.max_new_tokens, self._room(turn) + 1) for each, turn in zip(samplings, turns, strict=True)
        ]
        first, paused = None, 0.0  # while a reader of the stream does other things
        while True:
            with out_of_memory_errors(what), self.threads.use(threads):
                tokens = next(steps, None)
            if tokens is None:
                break
            first = first or time.perf_counter()
            pieces = [
                "" if turn.done or token is None else turn.take(token, self.stop_ids, limit)
                for turn, token, limit in zip(turns, tokens, limits, strict=True)
            ]
            ended.update(row for row, turn in enumerate(turns) if turn.done)
            handed = time.perf_counter()
            yield pieces
            paused += time.perf_counter() - handed
        end = time.perf_counter() - paused
        first = first or end
        for turn in turns:
            look = turn.look_seconds + (looked - start) / rows
            seconds = Seconds(look, (first - looked) / rows, (end - first) / rows)
            self._close(turn, seconds, cache if rows == 1 else None)

    def _close(self, turn: Turn, seconds: Seconds, cache: KVCache | None) -> None:
        """Give a turn that came to its end its answer, and make it part of its conversation. Raises PromptError."""
        turn.check()
        answer = turn.answer = Answer(
            text=turn.reply.text,
            token_ids=tuple(turn.reply.ids),
            prompt="".join(turn.pieces),
            checkpoint=self.name,
            revision=self._revision,
            device=self.device,
            dtype=self.dtype,
            finish=turn.finish,
            tokens=turn.tokens,
            seconds=seconds,
            peak_memory=peak_memory(self.model.device),
        )
        turn.conversation.close(turn, answer, cache)

    def answer(self, turns: Sequence[Turn], sampling: Sampling, indices: Sequence[int]) -> None:
        """Answer turns to their ends, those about an image apart from those about none. Raises as `stream`."""
        for rows in _by_prefix(turns):
            for _ in self.stream([turns[row] for row in rows], sampling, [indices[row] for row in rows]):
                pass

    @torch.inference_mode()
    def next_tokens(self, turn: Turn, count: int, begun: str, temperature: float) -> list[tuple[str, float]]:
        """The likeliest tokens of a turn's answer after the text `begun`; see `View.next_tokens`."""
        vocabulary = self.model.config.decoder.vocab_size
        whole = isinstance(count, Integral) and not isinstance(count, bool)
        if not whole or not 1 <= count <= vocabulary:
            raise SettingError(f"count is {count!r}; give a whole number from 1 to {vocabulary}.")
        if not isinstance(begun, str):
            raise SettingError(f"begun is {begun!r:.80}; give the text that the answer begins with.")
        sampling = Sampling(temperature=temperature)
        check_text("begun answer", begun)
        text = begun.lstrip()
        ids = [*turn.ids, *(self.tokenizer.encode(self.template.answer + text, begins=False) if text else [])]
        end, limit = turn.prefix_length + len(ids), self.model.config.decoder.max_positions
        if end > limit:
            raise PromptLengthError(
                f"Question and begun answer make the prompt {end} tokens long, and {self.name} reads {limit}. "
                "Begin the answer with a shorter text."
            )
        scores = self._next_scores(turn, ids)
        # By the scores: probabilities may be equal where scores are not. Of equal ones greedy takes the first, too.
        order = scores.argsort(descending=True, stable=True)[: int(count)]
        names = {id: token for token, id in self.tokenizer.control.items()}
        return [
            (names.get(id) or self.tokenizer.decode([id]), probability)
            for id, probability in zip(order.tolist(), sampling.probabilities(scores)[order].tolist(), strict=True)
        ]

    def _next_scores(self, turn: Turn, ids: Sequence[int]) -> Tensor:
        """The scores, fp32 (vocab_size,), after a turn's prefix and these ids."""
        with out_of_memory_errors("This question"), self.threads.use(self.threads.count()):
            cache = turn.conversation.prefix().fork(turn.prefix_length + len(ids))
            scores = self.model.decoder.logits(self.model.decoder(self.model.splice([ids]), cache)[0, -1])
        check_scores(scores, self.model.dtype)
        return scores

    @torch.inference_mode()
    def rank(self, turns: Sequence[Turn], answers: Sequence[str], per_token: bool) -> list[list[Candidate]]:
        """The answers to each turn, most probable first; see `Imp.rank`. All turns ask one question.

        Raises PromptError, CheckpointError or MemoryLimitError.
        """
        encoded = [self.tokenizer.encode(self.template.answer + answer, begins=False) for answer in answers]
        start, limit = max(turn.prompt_length for turn in turns), self.model.config.decoder.max_positions
        for answer, ids in zip(answers, encoded, strict=True):
            if start + len(ids) > limit:
                raise PromptLengthError(
                    f"With the answer {answer[:40]!r} the prompt is {start + len(ids)} tokens long, and {self.name} "
                    f"reads {limit}. Give a shorter answer."
                )
        lengths = torch.tensor([len(ids) + 1 for ids in encoded])
        ranked: list[list[Candidate]] = [[] for _ in turns]
        for rows in _by_prefix(turns):
            found = self._log_likelihoods([turns[row] for row in rows], encoded)
            chances = (found / lengths if per_token else found).double().softmax(dim=-1)
            for row, chance, likelihood in zip(rows, chances.tolist(), found.tolist(), strict=True):
                candidates = map(Candidate, answers, chance, likelihood, lengths.tolist())
                ranked[row] = sorted(candidates, key=lambda candidate: -candidate.probability)
        return ranked

    def _log_likelihoods(self, turns: Sequence[Turn], encoded: Sequence[list[int]]) -> Tensor:
        """Of each answer to each turn, fp32 (turns, answers); the turns' prompts have one length."""
        start = turns[0].prompt_length
        with out_of_memory_errors("Ranking answers"), self.threads.use(self.threads.count(len(turns))):
            parts = _parts(encoded, RANKED_TOKENS)
            cache = self._gather(turns, start + max(sum(map(len, part)) for part in parts))
            prompts = torch.cat([self.model.splice([turn.ids]) for turn in turns])
            scores = self.model.decoder.logits(self.model.decoder(prompts, cache)[:, -1])
            check_scores(scores, self.model.dtype)
            first = scores.log_softmax(dim=-1)
            found = [log_likelihoods(self.model, cache, first, part, self.stop_ids) for part in parts]
        return torch.cat(found, dim=1)

    def _room(self, turn: Turn) -> int:
        """Positions that the checkpoint has after a turn's prompt."""
        return self.model.config.decoder.max_positions - turn.prompt_length

    def _gather(self, turns: Sequence[Turn], end: int) -> KVCache:
        """One cache of the turns' prefixes that may be written up to `end`.

        A single turn goes on in its prefix's memory where that is free; rows are copied, one prefix after the other.
        """
        if len(turns) == 1:
            return turns[0].conversation.prefix().fork(end)
        cache = self.model.new_cache(end, len(turns))
        # A large Imp's prefixes are too many bytes to be kept, but no image of a batch is read twice.
        rows: dict[bytes, int] = {}
        for row, turn in enumerate(turns):
            conversation = turn.conversation
            if conversation.image is None or conversation.is_read:
                cache.fill_row(row, conversation.prefix())
                continue
            key, pixels = self._prepare(conversation.image)
            if key in rows:
                cache.fill_row(row, cache, rows[key])
            else:
                cache.fill_row(row, self._read_pixels(key, pixels))
                rows[key] = row
        return cache

    def answer_all(
        self,
        pairs: Sequence[tuple[Any, str]],
        batch_size: int,
        progress: bool,
        sampling: Sampling,
        stops: tuple[str, ...],
    ) -> list[Answer | ImpKitError]:
        """Answer (image, question) pairs; see `Imp.ask_many`."""

        def answer(turns: Sequence[Turn], indices: Sequence[int]) -> list[Answer | None]:
            self.answer(turns, sampling, indices)
            return [turn.answer for turn in turns]

        return self._in_batches(pairs, batch_size, progress, answer, sampling.max_new_tokens, stops)

    def rank_all(
        self, pairs: Sequence[tuple[Any, str]], batch_size: int, progress: bool, answers: Sequence[str], per_token: bool
    ) -> list[list[Candidate] | ImpKitError]:
        """Rank answers to one question about each of many images, as pairs; see `Imp.classify`."""

        def rank(turns: Sequence[Turn], _: Sequence[int]) -> list[list[Candidate]]:
            return self.rank(turns, answers, per_token)

        return self._in_batches(pairs, batch_size, progress, rank, RANKED_TOKENS)

    def _in_batches(
        self,
        pairs: Sequence[tuple[Any, str]],
        batch_size: int,
        progress: bool,
        run: Callable[[Sequence[Turn], Sequence[int]], Sequence],
        new_tokens: int,
        stops: tuple[str, ...] = (),
    ) -> list:
        """What `run` makes of the pairs' turns and their places in the list; errors are in their places."""
        size = read_batch_size(batch_size)
        results: list = []
        with tqdm(total=len(pairs), unit="answer", disable=not progress) as bar:
            for start in range(0, len(pairs), size):
                items = [self._open(pair) for pair in pairs[start : start + size]]
                results += self._run_batch(items, start, run, new_tokens, stops)
                bar.update(len(items))
        errors = [result for result in results if isinstance(result, ImpKitError)]
        if errors:
            warnings.warn(f"{len(errors)} of {len(pairs)} have no answer. The first: {errors[0]}", stacklevel=4)
        return results

    def _open(self, pair: Any) -> tuple[Image.Image | None, str] | ImpKitError:
        """A pair with its image open, or what is wrong with it."""
        try:
            try:
                image, question = pair
            except (TypeError, ValueError):
                raise PromptError(f"Each item is a pair of a picture and a question, not {pair!r:.80}.") from None
            check_order(image, question)
            check_question(question)
            opened = None if image is None else open_image(image)
            if opened and self.model.config.pad:
                check_square(opened)
        except ImpKitError as error:
            return error.bare()
        return opened, question

    def _run_batch(self, items: Sequence, start: int, run: Callable, new_tokens: int, stops: tuple[str, ...]) -> list:
        """What `run` makes of the items, in halves and halves of these where memory is short; errors stay."""
        results, turns = list(items), {}
        for row, item in enumerate(items):
            if isinstance(item, ImpKitError):
                continue
            image, question = item
            try:
                turns[row] = Conversation(self, image).ask(question, stops)
            except ImpKitError as error:
                results[row] = error.bare()
        if not turns:
            return results
        if len(turns) == 1 or self.fits(len(turns), new_tokens):
            try:
                found = run(list(turns.values()), [start + row for row in turns])
                for row, result in zip(turns, found, strict=True):
                    results[row] = result
                return results
            except (CheckpointError, MemoryLimitError) as error:
                if len(turns) == 1:  # what fails alone costs itself, not the others
                    (row,) = turns
                    results[row] = error.bare()
                    return results
        half = len(items) // 2
        return [
            answer
            for part, first in ((items[:half], start), (items[half:], start + half))
            for answer in self._run_batch(part, first, run, new_tokens, stops)
        ]

    def fits(self, rows: int, new_tokens: int) -> bool:
        """Whether a batch has room in the memory that is free now, about."""
        return rows * self._row_bytes(new_tokens) <= free_memory(self.model.device)

    def _row_bytes(self, new_tokens: int) -> int:
        """Memory that one row of a batch takes at most, about: keys and values twice, and the widest layer's work."""
        sizes, patches = self.model.config.decoder, self.model.config.vision.num_patches
        positions = min(sizes.max_positions, patches + QUESTION_TOKENS + new_tokens)
        values = 2 * sizes.kv_values_per_token * positions
        values += 4 * sizes.intermediate_size * (patches + QUESTION_TOKENS)
        return values * self.model.dtype.itemsize


def _by_prefix(turns: Sequence[Turn]) -> list[list[int]]:
    """The turns' places, those whose prefixes have one length together: those about an image, those about none."""
    lengths = dict.fromkeys(turn.prefix_length for turn in turns)
    return [[row for row, turn in enumerate(turns) if turn.prefix_length == length] for length in lengths]


def _parts(answers: Sequence[list[int]], most: int) -> list[list[list[int]]]:
    """The answers in order, in parts of at most `most` tokens; one that is longer is a part of its own."""
    parts: list[list[list[int]]] = []
    total = most
    for answer in answers:
        total += len(answer)
        if total > most:
            parts.append([])
            total = len(answer)
        parts[-1].append(answer)
    return parts
