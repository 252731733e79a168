"""How experiments write files: whole or not at all, and one writer at a time."""

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from imp_kit.errors import RunError

try:
    import fcntl
except ModuleNotFoundError:  # on Windows
    import msvcrt

ESCAPED = "backslashreplace"  # half a character (a lone surrogate) as JSON writes it, which UTF-8 cannot hold


@contextmanager
def disk_errors(file: str | os.PathLike) -> Iterator[None]:
    """A RunError in place of an OSError: which file, why, and how to go on."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{file} cannot be written ({error.strerror or error}). What was saved before is kept. Free disk space, or "
            "choose another folder, and run the same again."
        ) from None


def write_whole(file: str | os.PathLike, content: str | bytes) -> None:
    """Replace a file, or make it, at once: whatever happens meanwhile, it has its old content or the new one.

    Text is written as UTF-8. Raises RunError.
    """
    data = content.encode(errors=ESCAPED) if isinstance(content, str) else content
    target = Path(os.path.realpath(file))  # a link stays one
    partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
    try:
        with disk_errors(file):
            with partial.open("xb", buffering=0) as out:
                _write(out, data)
            partial.replace(target)
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def appending(file: Path) -> Iterator[Callable[[str], None]]:
    """A function that adds text to a file, as UTF-8, and returns once it is on disk. Raises RunError."""
    with disk_errors(file):
        out = file.open("ab", buffering=0)
    with out:

        def append(text: str) -> None:
            with disk_errors(file):
                _write(out, text.encode(errors=ESCAPED))

        yield append


def _write(out: FileIO, data: bytes) -> None:
    """Without a buffer: one that could not be emptied would fail again when the file is closed."""
    rest = memoryview(data)
    while rest:
        rest = rest[out.write(rest) :]
    os.fsync(out.fileno())


@contextmanager
def only_writer(lock: Path, what: str | os.PathLike) -> Iterator[None]:
    """Keep every other process from writing `what` until the block ends. Raises RunError where another one does.

    `lock` is the file that the operating system locks: the lock ends with its process, however that ends, and a file
    that was left behind locks nothing.
    """
    out = _lock(lock, what)
    try:
        yield
    finally:
        if out:
            with suppress(OSError):  # Windows removes no open file
                lock.unlink()
            out.close()


def _lock(lock: Path, what: str | os.PathLike) -> BinaryIO | None:
    """The lock's file, locked; None in a folder that can only be read: whoever has to write there fails by itself."""
    while True:
        try:
            out = lock.open("ab")
        except OSError:
            return None
        if not _is_locked(out):
            out.close()
            raise RunError(
                f"Another process is writing to {what}. Wait until it has ended, or choose another folder; nothing was "
                "changed here."
            )
        with suppress(OSError):
            if os.path.samestat(os.fstat(out.fileno()), lock.stat()):
                return out
        out.close()  # its last owner removed it between the two steps


def _is_locked(out: BinaryIO) -> bool:
    """Lock an open file; False where another process has. Where a file system knows no locks, nobody has."""
    try:
        if os.name == "nt":
            msvcrt.locking(out.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True
