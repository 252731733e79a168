"""Requests that wait, put together into the engine's batches by one thread that computes."""

import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence

from imp_kit.answers import TokenScore
from imp_kit.engine import Engine, Turn
from imp_kit.errors import ImpKitError, MemoryLimitError
from imp_kit.model.sampling import Sampling

GATHER_SECONDS = 0.02  # clients that were answered together ask again together, within a few milliseconds


class QueueFullError(ImpKitError):
    """As many requests wait as may wait."""


class StoppingError(ImpKitError):
    """The server is being stopped."""


class Job:
    """A turn to be answered. `notify` is called, by the thread that computes, with what is new in its answer.

    That is a text and the scores of its tokens, either may be empty; then, once, None at the end or an error.
    """

    def __init__(
        self, turn: Turn, sampling: Sampling, notify: Callable[[tuple[str, list[TokenScore]] | Exception | None], None]
    ):
        self.turn, self.sampling = turn, sampling
        self._notify, self._scored, self._over = notify, 0, False

    def take(self, piece: str) -> None:
        """Report a step of the turn, and its end."""
        if self._over:
            return
        scored = self.turn.likeliest is not None and (piece or self.turn.done)
        scores = self.turn.scores(self._scored) if scored else []
        self._scored += len(scores)
        if piece or scores:
            self._notify((piece, scores))
        if self.turn.done:
            self.end(None)

    def end(self, error: Exception | None) -> None:
        """Report the end, unless it was reported."""
        if not self._over:
            self._over = True
            self._notify(error)

    def cancel(self) -> None:
        """Nobody waits for the answer: report nothing more, and compute nothing more of it."""
        self._over = True
        self.turn.cancel()


class Batcher:
    """Answers jobs with one engine, as many at once as there are, up to `batch_size`; up to `queue` more may wait.

    A batch begins when the one before it has ended: a job waits as long as that takes. Jobs are taken as they came,
    but those about an image apart from those about none. All methods may be called from any thread.
    """

    def __init__(self, engine: Engine, batch_size: int, queue: int):
        self.engine, self.batch_size, self.queue = engine, batch_size, queue
        self.places = 0  # of jobs, from before their images are read until their answers are sent
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._expected = 1  # jobs that may come together: as many as were answered together
        self._thread = threading.Thread(target=self._work, name="imp-kit batches", daemon=True)
        self._thread.start()

    @property
    def stopping(self) -> bool:
        return self._stopping

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many jobs are being answered."""
        return len(self._running)

    def enter(self) -> None:
        """Take a place for one job, which `leave` gives back. Raises QueueFullError or StoppingError."""
        with self._changed:
            if self._stopping:
                raise _stopping()
            if self.places >= self.batch_size + self.queue:
                raise QueueFullError(f"{self.places} requests are being answered or wait; ask again later.")
            self.places += 1

    def leave(self, job: Job | None) -> None:
        """Give a place back; what is not yet answered of its job is not computed any more."""
        with self._changed:
            self.places -= 1
            if job is not None:
                job.cancel()
                if job in self._waiting:
                    self._waiting.remove(job)

    def submit(self, job: Job) -> None:
        """Let a job wait for its batch. Raises StoppingError."""
        with self._changed:
            if self._stopping:
                raise _stopping()
            self._waiting.append(job)
            self._changed.notify_all()

    def stop(self) -> None:
        """Refuse what waits and what comes; what is being answered goes on."""
        with self._changed:
            self._stopping = True
            for job in self._waiting:
                job.end(_stopping())
            self._waiting.clear()
            self._changed.notify_all()

    def abort(self) -> None:
        """End what is being answered after its step."""
        with self._changed:
            for job in self._running:
                job.end(_stopping())
                job.cancel()

    def close(self) -> None:
        """Stop, and wait until the thread has ended."""
        self.stop()
        self.abort()
        self._thread.join()

    def _work(self) -> None:
        while self._next():
            self._answer(self._running)
            with self._changed:
                self._running = []

    def _next(self) -> bool:
        """Take the jobs of the next batch, as soon as there are any; False at the end."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if len(self._waiting) < self._expected and not self._stopping:
                    self._changed.wait_for(
                        lambda: len(self._waiting) >= self._expected or self._stopping, GATHER_SECONDS
                    )
                if self._waiting or self._stopping:
                    break
            if not self._waiting:
                return False
            length = self._waiting[0].turn.prefix_length
            self._running = [job for job in self._waiting if job.turn.prefix_length == length][: self.batch_size]
            for job in self._running:
                self._waiting.remove(job)
            self._expected = min(self.batch_size, len(self._running) + len(self._waiting))
            return True

    def _answer(self, jobs: Sequence[Job]) -> None:
        """Answer jobs together; in halves, and halves of these, where memory is short."""
        turns, samplings = [job.turn for job in jobs], [job.sampling for job in jobs]
        try:
            if len(jobs) > 1 and not self.engine.fits(len(jobs), max(each.max_new_tokens for each in samplings)):
                raise MemoryLimitError("These answers need more memory than is free.")
            for pieces in self.engine.stream(turns, samplings, [0] * len(jobs)):
                for job, piece in zip(jobs, pieces, strict=True):
                    job.take(piece)
        except MemoryLimitError as error:
            if len(jobs) == 1 or any(turn.tokens for turn in turns):
                for job in jobs:
                    job.end(error)
                return
        except Exception as error:  # whatever it is, the next batch is answered
            if not isinstance(error, ImpKitError):
                traceback.print_exc()
            for job in jobs:
                job.end(error)
            return
        else:
            return
        # After the handler, whose error holds what the failed batch had in memory.
        half = len(jobs) // 2
        self._answer(jobs[:half])
        self._answer(jobs[half:])


def _stopping() -> StoppingError:
    return StoppingError("The server is being stopped.")
