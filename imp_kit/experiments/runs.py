"""Runs cases through a model and keeps every answer: one line of JSON a sample, on disk as soon as it is there.

A run can be stopped at any moment and goes on where it was. What was answered is not asked again unless something
changed that can change the answer; what failed is asked again. Scores are made from the file alone.
"""

import codecs
import hashlib
import json
import os
import platform
import re
import shlex
import time
import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from imp_kit import __version__
from imp_kit.answers import Answer
from imp_kit.checkpoints.hub import NANO
from imp_kit.errors import EndpointError, RunError, Stopped
from imp_kit.experiments.files import ESCAPED, appending, disk_errors, only_writer, write_whole
from imp_kit.system import interrupts
from imp_kit.system.cpu_meter import CpuMeter
from imp_kit.system.extras import require

SAMPLES, HEAD, LOCK = "samples.jsonl", "run.json", "run.lock"
# Those that can change an answer, or a picture: faces come with matplotlib, photographs with scikit-image.
PACKAGES = ("torch", "transformers", "timm", "pillow", "numpy", "matplotlib", "scikit-image")
OWN = re.compile(r"\.|run\.|samples[-.]")  # names of a run's own files, or of an operating system's
BLANK = re.compile("[ \\t\\r\ufeff]*")  # around a record: an editor may put it there
BATCH = 8  # samples that are asked together
IN_A_ROW = 10  # failed samples, after which a run stops: something is wrong with more than a sample


@dataclass(frozen=True)
class Case:
    """One sample of an experiment before it is asked. `id` is its own; `factors` and `truth` are plain JSON values.

    `drawn` is the picture, None for a question without one, or a function that draws it, each time the same: a run of
    many thousands would not fit into memory.
    """

    id: str
    drawn: Image.Image | None | Callable[[], Image.Image | None]
    question: str
    factors: dict
    truth: dict
    seed: int

    @property
    def picture(self) -> Image.Image | None:
        return self.drawn() if callable(self.drawn) else self.drawn


@dataclass(frozen=True)
class Subject:
    """Who answers: a checkpoint, loaded only when something is to be asked, or any object with `ask`.

    `identity` is what can change an answer apart from the case: checkpoint, revision or the digest of its files, dtype,
    device, and whatever an object names in an `identity` of its own. `place` is what a command would call it after
    --checkpoint, or the command's options with their values; None for an object that no command can ask.
    """

    identity: dict
    get: Callable[[], object]
    place: str | dict | None = None

    @classmethod
    def of(cls, who, *, device: str = "auto", dtype: str = "auto", revision: str | None = None) -> "Subject":
        """A checkpoint by its name, id or folder, or an object.

        An object's `ask(picture, question, max_new_tokens=...)` gives a text or an Answer; the picture is RGB, or None
        for a question without one. Where several questions at once are better, `ask_many(pairs, batch_size=...)` gives
        a list, or `ask_each(pairs)` each pair's number and answer as they come. Its `place` is what a command would
        call it after --subject, or such options with their values.
        """
        if not hasattr(who, "ask"):
            # Imported where it is used: a run's file is read and scored without torch.
            from imp_kit.checkpoints.hub import locate
            from imp_kit.imp import identify, load

            identity = identify(who, device=device, dtype=dtype, revision=revision)
            # "auto" can depend on what is free just now; what was identified is what is loaded.
            settings = {"device": device, "dtype": identity["dtype"], "revision": revision}
            found = locate(who)
            local = not isinstance(found, str) and found.name != NANO  # a relative path would be another elsewhere
            return cls(identity, lambda: load(who, **settings), str(found.folder) if local else str(who))
        snapshot, model = getattr(who, "snapshot", None), getattr(who, "model", None)
        dtype, on = (getattr(who, "dtype", getattr(model, "dtype", None)), getattr(model, "device", None))
        identity = {
            "checkpoint": getattr(who, "name", type(who).__name__),
            "revision": getattr(snapshot, "revision", None),
            "files": snapshot.digest() if hasattr(snapshot, "digest") else None,
            "dtype": dtype and str(dtype).removeprefix("torch."),
            "device": on and str(on).partition(":")[0],
        }
        place = getattr(who, "place", None)
        if isinstance(place, str):
            place = {"subject": place}
        if snapshot is not None and not getattr(who, "quantize", None):  # no command asks a quantized one
            place = str(snapshot.folder) if identity["files"] and snapshot.name != NANO else snapshot.name
        return cls(identity | getattr(who, "identity", {}), lambda: who, place)


@dataclass(frozen=True)
class Expected:
    """How long samples take. As text: seconds a sample, and the total in words."""

    seconds: float  # a sample
    samples: int  # that are left to ask

    @property
    def total(self) -> float:
        """Seconds for all."""
        return self.seconds * self.samples

    def __str__(self) -> str:
        if not self.samples:
            return "nothing is left to ask"
        return f"{self.seconds:.2f} s a sample, about {_duration(self.total)} for {self.samples:,}"


def expect(cases: Sequence[Case], who, *, settings: dict, answered: int = 0, batch_size: int = BATCH) -> Expected:
    """Time a batch of questions from all over `cases`, after one that is not timed, and keep no answer.

    `who` is a loaded checkpoint or any object with `ask`; `answered` is how many of the cases are answered already.
    Raises what asking raises.
    """
    left = max(0, len(cases) - answered)
    if not left:
        return Expected(0.0, 0)
    batch_size = max(batch_size, getattr(who, "concurrency", 1))
    few = cases[:: max(1, len(cases) // batch_size)][:batch_size]
    _announce(who, len(few) + 1, sum(case.picture is not None for case in (*few, cases[-1])))
    list(_replies(who, [cases[-1]], settings))  # the first answer of a process takes longer
    start = time.perf_counter()
    replies = [reply for _, reply in _replies(who, few, settings, batch_size)]
    seconds = (time.perf_counter() - start) / len(few)
    if all(isinstance(reply, Exception) for reply in replies):
        raise replies[0]
    return Expected(seconds, left)


def _duration(seconds: float) -> str:
    """A time in words, exact enough to wait for."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} hours"


def run(
    experiment: str,
    cases: Sequence[Case],
    subject: Subject,
    folder: str | os.PathLike,
    *,
    settings: dict | None = None,
    design: dict | None = None,
    batch_size: int = BATCH,
    score: Callable[[dict], dict] | None = None,
    ids: Container[str] = (),
    later: int = 0,
) -> list[dict]:
    """Ask what `folder` does not hold yet, and return the records of all cases in their order.

    `settings` are those of `Imp.ask`. `design` says how the cases were chosen, such as size and seed; run.json keeps it
    with what else must be the same for a run to go on. `score` gives what else to write into the record of an answer.
    Where `cases` are a part of a run, `ids` are those of all that it may ask in this folder, and `later` is how many
    samples come after these, for the expected time.
    Under torchrun or `accelerate launch` each process asks its share into a file of its own; the first process joins
    them. Raises RunError, also where another process writes to the folder; SettingError before anything is asked;
    EndpointError where an endpoint cannot be asked at all; and Stopped, a KeyboardInterrupt that says what is kept.
    """
    from imp_kit.settings import read_settings

    sampling, _ = read_settings(settings or {})
    # As JSON gives them back, which knows neither tuples nor numpy's numbers.
    settings = json.loads(json.dumps({key: getattr(sampling, key, value) for key, value in (settings or {}).items()}))
    if not cases:
        raise RunError(f"{experiment}: there are no samples to ask.")
    if len({case.id for case in cases}) < len(cases):
        raise RunError(f"{experiment}: two samples have the same id; results could not be told apart.")
    folder = Path(folder)
    state = _processes()
    head = {"experiment": experiment, **(design or {}), **subject.identity, "settings": settings}
    # Likewise: it is compared with what the file gives back.
    head = json.loads(json.dumps({**head, "imp-kit": __version__}))
    ids = ids or {case.id for case in cases}
    with _begun(folder, head, subject, ids) if state.is_main_process else nullcontext():
        state.wait_for_everyone()
        # Each picture is drawn for its part in the key, also those that were answered.
        drawn = tqdm(cases, desc="drawing", unit="picture", leave=False, disable=not state.is_main_process)
        keys, pictured = {}, set()
        for case in drawn:
            shown = replace(case, drawn=case.picture)
            keys[case.id] = _key(shown, subject.identity, settings)
            if shown.drawn:
                pictured.add(case.id)
        known = _answered(folder, keys)
        mine = [case for case in cases[state.process_index :: state.num_processes] if case.id not in known]
        name = SAMPLES if state.num_processes == 1 else f"samples-{state.process_index}.jsonl"
        try:
            if mine:
                with _writer(folder / name) as write:
                    left, images = len(mine) + later // state.num_processes, sum(case.id in pictured for case in mine)
                    write, score = _noticing(write, folder), score or (lambda answered: {})
                    _ask_all(mine, subject, settings, batch_size, keys, write, score, left, images)
        except KeyboardInterrupt:
            kept = f"{len(_answered(folder, keys))} of {len(cases) + later} samples are answered and kept in {folder}"
            raise Stopped(kept, command(read_head(folder), folder)) from None
        except EndpointError as error:
            kept = "What was answered is kept; when the cause is gone, run the same again."
            raise EndpointError(f"{error} {kept}") from None
        state.wait_for_everyone()
        if state.is_main_process:
            _join(folder)
        state.wait_for_everyone()
        records = {record["sample_id"]: record for record in read(folder)}
    return [records[case.id] for case in cases]


def read(folder: str | os.PathLike) -> list[dict]:
    """The newest record of each sample of a run, answered or failed, in the order of the run's cases.

    Records of earlier versions, which do not say their number, come first, in the order they were first answered.
    """
    records: dict[str, dict] = {}
    # What several processes wrote is newer than what earlier runs joined.
    for file in (Path(folder) / SAMPLES, *sorted(Path(folder).glob("samples-*.jsonl"))):
        for record in _lines(file):
            before = records.get(record["sample_id"])
            # An answer is never replaced by a later failure to get the same again.
            same = before is not None and before["status"] == "ok" and before["key"] == record["key"]
            if record["status"] == "ok" or not same:
                records[record["sample_id"]] = record
    # Not as they arrived: of a server with several requests at once, answers come in any order.
    return sorted(records.values(), key=_number)


def _number(record: dict) -> int:
    """The place of a record's case in its run; -1 where it does not say so."""
    number = record.get("number")
    return number if isinstance(number, int) else -1


def read_head(folder: str | os.PathLike) -> dict:
    """What a run is: experiment, design, checkpoint, settings, version. Raises RunError where there is no run."""
    file = Path(folder) / HEAD
    try:
        head = json.loads(file.read_text("utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        what = f"holds no run: there is no {HEAD}" if Path(folder).is_dir() else "is no folder"
        raise RunError(f"{folder} {what}. Name a folder that a probe wrote.") from None
    except OSError as error:
        raise RunError(f"{file} cannot be read ({error.strerror}).") from None
    except ValueError:
        head = None
    if not isinstance(head, dict) or "experiment" not in head:
        raise RunError(
            f"{file} cannot be read: it is empty or damaged, as a full disk or a crash can leave it. Delete this one "
            "file and run the same probe again; the answers beside it are kept."
        )
    return head


def command(head: dict, folder: Path) -> str | None:
    """What asks a run's samples in a shell, from what run.json holds; None for an object, which no command can ask."""
    if not head.get("place"):
        return None
    place = head["place"]
    options = {**place} if isinstance(place, dict) else {"checkpoint": place}
    options |= {"out": folder.absolute()}
    options |= {key: head.get(key) for key in ("revision", "size", "seed", "dtype", "device")}
    chosen = (f" --{key} {shlex.quote(str(value))}" for key, value in options.items() if value is not None)
    return f"python -m imp_kit probe {head['experiment']}{''.join(chosen)}"


@contextmanager
def _begun(folder: Path, head: dict, subject: Subject, ids: Container[str]) -> Iterator[None]:
    """A run's folder, made or found to be this run's, and nobody else's to write until the block ends."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder / LOCK, folder):
        _check_folder(folder, head, subject, ids)
        yield


def _check_folder(folder: Path, head: dict, subject: Subject, ids: Container[str]) -> None:
    """Write run.json, or check that the folder belongs to this run, or to one that never got a reply."""
    file = folder / HEAD
    records = read(folder)
    different = _differences(read_head(folder), head) if file.exists() else []
    if not file.exists():
        with disk_errors(file):
            others = [each for each in folder.iterdir() if not OWN.match(each.name)]
        asked = {name: head[name] for name in (*subject.identity, "settings")}
        if not all(record["sample_id"] in ids and record | asked == record for record in records):
            raise RunError(f"{folder} has no {HEAD}, and answers that this run does not ask for; choose a new folder.")
        if others and not records:
            raise RunError(f"{folder} holds files but no {HEAD}; choose a new folder for the run.")
    elif different and records:
        own = all(OWN.match(each.name) for each in folder.iterdir())
        unused = " No answer is in it yet, so it can be deleted." if own and not answered(folder) else ""
        raise RunError(
            f"{folder} holds another run, with another {', '.join(different)}. Name a new folder for this run; or, to "
            f"go on with that one, give the checkpoint and settings that it had.{unused}"
        )
    if different or not file.exists():
        # The place is kept for a report's commands.
        write_whole(file, json.dumps({**head, "place": subject.place}, indent=2, ensure_ascii=False) + "\n")


NAMES = {"files": "state of the checkpoint's files", "imp-kit": "version of imp-kit"}


def _differences(before: dict, head: dict) -> list[str]:
    """What differs in words: what run.json has, and what it would have now."""
    found = []
    for name, now in head.items():
        was = before.get(name, "not recorded")
        if was == now:
            continue
        if isinstance(was, dict) and isinstance(now, dict):
            none = dict.fromkeys(sorted(was.keys() | now.keys()), "not set")
            found += [f"setting of {each}" for each in _differences(none | was, none | now)]
        else:
            found.append(f"{NAMES.get(name, name)} ({_short(was)} there, {_short(now)} here)")
    return found


def _short(value) -> str:
    """A value as it is, but of a hash its beginning."""
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{40,64}", value):
        return f"{value[:8]}…"
    return "none" if value is None else str(value)


def _key(case: Case, identity: dict, settings: dict) -> str:
    """A hash of everything that can change the answer."""
    parts = [_digest(case.picture), case.question, identity, settings, __version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode(errors=ESCAPED)).hexdigest()


def _digest(picture: Image.Image | None) -> str | None:
    """SHA-256 of a picture's size, mode and pixels."""
    if picture is None:
        return None
    head = f"{picture.mode} {picture.width} {picture.height} ".encode()
    return hashlib.sha256(head + picture.tobytes()).hexdigest()


def _answered(folder: Path, keys: dict[str, str]) -> set[str]:
    return {id for id, key in answered(folder) if keys.get(id) == key}


def answered(folder: str | os.PathLike) -> set[tuple[str, str]]:
    """Which samples a folder holds answers of: their ids and keys."""
    return {(record["sample_id"], record["key"]) for record in read(folder) if record["status"] == "ok"}


def _ask_all(
    mine: list[Case],
    subject: Subject,
    settings: dict,
    batch_size: int,
    keys: dict,
    write,
    score,
    left: int,
    images: int,
) -> None:
    """Ask and write. `left` is how many samples there are with those of later parts of the run.

    `keys` are those of all the run's cases, in their order.
    """
    who = subject.get()
    interrupts.work()
    _announce(who, len(mine), images, left - len(mine))
    shared = {**subject.identity, "settings": settings, "versions": _versions()}
    numbers = {id: number for number, id in enumerate(keys)}
    failed, start, meter = 0, time.perf_counter(), CpuMeter()
    first = min(len(mine), max(batch_size, getattr(who, "concurrency", 1)))  # answers, after which the time is known
    with tqdm(total=len(mine), unit="sample") as bar, closing(_replies(who, mine, settings, batch_size)) as replies:
        for done, (number, reply) in enumerate(replies, 1):
            case = mine[number]
            record = {**_asked(case, keys[case.id], numbers[case.id]), **shared, **_outcome(reply)}
            write(record | score(record) if record["status"] == "ok" else record)
            failed = failed + 1 if isinstance(reply, Exception) else 0
            if failed == IN_A_ROW:
                raise RunError(
                    f"{IN_A_ROW} samples in a row failed, the last one with: {reply}. What was answered is kept; "
                    "when the cause is gone, run the same again."
                )
            bar.update()
            if done == first:
                each = (time.perf_counter() - start) / first
                bar.write(". ".join(filter(None, (str(Expected(each, left)), meter.warning()))))


def _announce(who, questions: int, images: int, later: int = 0) -> None:
    """Let a subject that sends images away say so before it does."""
    if hasattr(who, "announce"):
        who.announce(questions, images, later)


def _replies(who, cases: Sequence[Case], settings: dict, batch_size: int = BATCH) -> Iterator[tuple[int, object]]:
    """The number of each case with its answer, or the error in its place, as they come."""
    if hasattr(who, "ask_each"):
        yield from who.ask_each(((case.picture, case.question) for case in cases), **settings)
        return
    for first in range(0, len(cases), batch_size):
        yield from enumerate(_batch(who, cases[first : first + batch_size], settings), first)


def _batch(who, cases: Sequence[Case], settings: dict) -> list:
    """An answer or an error for each case; a batch that fails as a whole is asked one by one."""
    pairs = [(case.picture, case.question) for case in cases]
    if hasattr(who, "ask_many"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # failures are recorded one by one
                return who.ask_many(pairs, batch_size=len(pairs), progress=False, **settings)
        except Exception:  # a model of somebody else's may raise anything; one by one shows whose fault it is
            pass
    replies = []
    for picture, question in pairs:
        try:
            replies.append(who.ask(picture, question, **settings))
        except Exception as error:
            replies.append(error)
    return replies


def _noticing(write: Callable[[dict], None], folder: Path) -> Callable[[dict], None]:
    """`write`, with a warning where a server names another model than before in this run."""
    names = {record["served_model"] for record in read(folder) if record.get("served_model")}

    def written(record: dict) -> None:
        write(record)
        name = record.get("served_model")
        if name and names and name not in names:
            before = ", ".join(sorted(names))
            warnings.warn(f"The server now says that {name} answers, before it was {before}.", stacklevel=2)
        names.update({name} if name else ())

    return written


def _asked(case: Case, key: str, number: int) -> dict:
    return {
        "sample_id": case.id,
        "number": number,
        "key": key,
        "factors": case.factors,
        "truth": case.truth,
        "seed": case.seed,
        "picture_sha256": _digest(case.picture),
        "question": case.question,
    }


def _outcome(reply) -> dict:
    if isinstance(reply, Exception):
        return {"status": "error", "error": f"{type(reply).__name__}: {reply}"}
    outcome = {"status": "ok", "answer": str(reply)}
    if isinstance(reply, Answer):
        outcome |= {
            "prompt": reply.prompt,
            "prompt_sha256": hashlib.sha256(reply.prompt.encode(errors=ESCAPED)).hexdigest(),
            "token_ids": list(reply.token_ids),
            "tokens": reply.tokens,
            "finish": reply.finish,
            "seconds": reply.seconds.total,
        }
    elif hasattr(reply, "record"):
        outcome |= reply.record()
    return outcome


def _versions() -> dict:
    found = {"imp-kit": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _lines(file: Path) -> Iterator[dict]:
    """The records of a file; what is no whole record at its end is still being written, or was never finished."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunError(f"{file} cannot be read ({error.strerror}).") from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise RunError(f"{file} was saved as UTF-16; save it as UTF-8.")
    *lines, last = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        records, rest = _parse(line)
        if rest:
            raise RunError(
                f"{file}, line {number}, is no record. Delete the line, and its sample is asked again; or choose a new "
                "folder."
            )
        yield from records
    yield from _parse(last)[0]


def _parse(line: bytes) -> tuple[list[dict], int]:
    """The records of a line, one as a rule, and how many bytes at its end are none."""
    text = line.decode("utf-8", "surrogateescape")
    records, position = [], BLANK.match(text).end()
    while position < len(text):
        try:
            record, end = json.JSONDecoder().raw_decode(text, position)
            text[position:end].encode()
        except ValueError:  # also bytes that are no UTF-8
            break
        if not isinstance(record, dict) or not record.keys() >= {"sample_id", "status", "key"}:
            break
        if not (isinstance(record["sample_id"], str) and isinstance(record["key"], str)):
            break
        records.append(record)
        position = BLANK.match(text, end).end()
    return records, len(text[position:].encode("utf-8", "surrogateescape"))


@contextmanager
def _writer(file: Path) -> Iterator[Callable[[dict], None]]:
    """A function that puts a record on disk before it returns."""
    _end_line(file)
    with appending(file) as append:
        yield lambda record: append(json.dumps(record, ensure_ascii=False) + "\n")


def _end_line(file: Path) -> None:
    """Let the next record begin on a line of its own, after a process was killed while it wrote, or an editor saved."""
    content = file.read_bytes() if file.exists() else b""
    last = content[content.rfind(b"\n") + 1 :]
    if not last:
        return
    _, rest = _parse(last)
    if rest:
        warnings.warn(f"{file}: the last line was only half written; its sample is asked again.", stacklevel=4)
    with disk_errors(file), file.open("r+b", buffering=0) as out:
        out.truncate(len(content) - rest)
        if rest < len(last):
            out.seek(0, os.SEEK_END)
            out.write(b"\n")


def _join(folder: Path) -> None:
    """Put the files of several processes into one; killed in between, nothing is lost, since `read` takes both."""
    parts = sorted(folder.glob("samples-*.jsonl"))
    if not parts:
        return
    for part in parts:
        _end_line(part)
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in read(folder))
    write_whole(folder / SAMPLES, "".join(lines))
    for part in parts:
        with disk_errors(part):
            part.unlink()


class _Alone:
    """What accelerate's PartialState says, where there is only one process."""

    process_index, num_processes, is_main_process = 0, 1, True

    def wait_for_everyone(self) -> None:
        pass


def _processes():
    """This process's rank among those that torchrun or `accelerate launch` started."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return _Alone()
    require("official", "accelerate", what="A run of several processes")
    import torch
    from accelerate import PartialState

    # Without a GPU accelerate must know that, or each process believes that it is alone and asks everything.
    return PartialState(cpu=not torch.cuda.is_available())
