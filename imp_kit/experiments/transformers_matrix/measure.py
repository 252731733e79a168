"""Which versions of transformers load Imp by its own code: each call tried in each version, in a process of its own."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from csv import DictReader, DictWriter
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.version import InvalidVersion, Version

from imp_kit.errors import ImpKitError, Stopped
from imp_kit.experiments.files import appending, disk_errors, only_writer, write_whole
from imp_kit.experiments.transformers_matrix.calls import CALLS, ERROR, NOT_RUN, SILENT, WORKS
from imp_kit.system.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEWEST = "newest"
VERSIONS = (
    *("4.36.2", "4.37.2", "4.39.3", "4.41.2", "4.44.2", "4.45.2", "4.48.3", "4.49.0", "4.50.3", "4.51.3"),
    *("4.53.3", "4.56.2", "4.57.6", "5.0.0", "5.23.0", "5.24.0"),
)
TABLE = Path(__file__).with_name("loading.csv")
SCRIPT = Path(__file__).with_name("calls.py")
RUNS = Path("runs") / "loading"
CHILDREN = 2  # processes at a time; each needs a core and up to 1 GB
PATIENCE = 300  # seconds for one call; on a slow machine most of it is the import of torch and transformers


@dataclass(frozen=True)
class Environment:
    """A version of transformers to try calls in.

    `folder` holds it and the packages that it needs, all but torch; None stands for the running interpreter's own.
    """

    version: str
    folder: Path | None


@dataclass(frozen=True)
class Row:
    """What one call did in one version of transformers, and beside which other versions.

    `outcome` is "works", "error" (the call's line raised `error_type`: `message`), "silently wrong" (no error and a
    wrong result) or "not run" (something else went wrong before the line was reached). `what` says what came: the
    module of the class, the module that was asked for, the state of a cache, what is wrong with a result.
    `digest` names the state of calls.py. `traceback` is not part of the table. As text, a row is the line that was run,
    the version, and what came.
    """

    version: str
    call: str
    outcome: str
    error_type: str
    message: str
    what: str
    python: str
    torch: str
    huggingface_hub: str
    tokenizers: str
    accelerate: str
    date: str
    digest: str
    traceback: str = ""

    def __str__(self) -> str:
        came = f"{self.error_type}: {self.message}" if self.error_type else f"{self.outcome}: {self.what}"
        return f">>> {CALLS[self.call].line}\n    transformers {self.version}: {came}"


COLUMNS = [field.name for field in fields(Row) if field.name != "traceback"]


def script_digest() -> str:
    """Twelve hexadecimal digits of the SHA-256 of calls.py."""
    return hashlib.sha256(SCRIPT.read_text("utf-8").encode()).hexdigest()[:12]


# ------------------------------------------------------------------------------------------------------------ the table


def read_table(csv: str | os.PathLike = TABLE) -> list[Row]:
    """The rows of a table, by version and then in the order of CALLS; without a path, those that come with the kit.

    A row that stands twice counts as it stands last, and a last line that was cut short is left out.
    Raises ImpKitError.
    """
    try:
        text = Path(csv).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ImpKitError(f"The table {csv} cannot be read ({error}).") from error
    table = DictReader(line for line in text.splitlines() if line.strip())
    lines, head = list(table), ",".join(COLUMNS)
    if table.fieldnames != COLUMNS and not head.startswith(text):  # a first line that was cut short is none
        raise ImpKitError(f"{csv} is no table of this experiment: its first line is not {head}.")
    if lines and not _is_whole(lines[-1]):
        lines.pop()
    for line in lines:
        if not _is_whole(line):
            name = f"{line['version']}, {line['call']}"
            raise ImpKitError(f"{csv}: the row of {name} is no row of this table. Delete it, and it is tried again.")
    rows = {(line["version"], line["call"]): Row(**line) for line in lines}
    order = list(CALLS)
    known = [row for row in rows.values() if row.call in CALLS]
    return sorted(known, key=lambda row: (Version(row.version), order.index(row.call)))


def _is_whole(line: dict) -> bool:
    """Whether a line has all columns, to the end of the last one."""
    has_all = None not in line and None not in line.values()
    return has_all and len(line["digest"]) == len(script_digest()) and _is_version(line["version"])


def write_table(rows: Iterable[Row], csv: Path) -> None:
    """Write a whole table; the one that stood there is replaced at once or not at all. Raises RunError."""
    write_whole(csv, ",".join(COLUMNS) + "\n" + "".join(map(_line, rows)))


def _line(row: Row) -> str:
    line = io.StringIO()
    DictWriter(line, COLUMNS, extrasaction="ignore", lineterminator="\n").writerow(asdict(row))
    return line.getvalue()


# ------------------------------------------------------------------------------------------------------- environments


def environment(version: str, folder: str | os.PathLike = RUNS) -> Environment:
    """A version of transformers, or "newest", to try calls in; pip puts it into a folder of its own under `folder`.

    The running interpreter's own is used as it is where that has the version. Raises ImpKitError.
    """
    if version == NEWEST:
        version = newest()
    version = str(_parsed(version))
    if version == own_version():
        return Environment(version, None)
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    target = Path(folder).absolute() / f"transformers-{version}-{python}"
    if not target.is_dir():
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        with disk_errors(partial):
            partial.mkdir(parents=True, exist_ok=True)
        _pip("install", "--quiet", "--target", str(partial), f"transformers=={version}")
        partial.rename(target)
    return Environment(version, target)


def newest() -> str:
    """The newest release of transformers that pip can find for this Python. Raises ImpKitError."""
    report = _pip(
        *("install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--report", "-", "transformers")
    )
    return json.loads(report)["install"][0]["metadata"]["version"]


def _parsed(version: str) -> Version:
    if not _is_version(version):
        raise ImpKitError(f"{version!r} is no version; give one such as 4.37.2, or {NEWEST!r}.")
    return Version(version)


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


def own_version() -> str | None:
    """The version of transformers that the running interpreter has, None without one; nothing is imported."""
    try:
        return metadata.version("transformers")
    except metadata.PackageNotFoundError:
        return None


def _pip(*arguments: str) -> str:
    # A notebook's kernel asks programs for colors, whose codes would stand in the error.
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-color", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        messages = done.stderr.strip().splitlines() or ["it said nothing"]
        reason = next((line for line in reversed(messages) if line.startswith("ERROR:")), messages[-1])
        raise ImpKitError(
            f"pip could not install {arguments[-1]} ({reason.removeprefix('ERROR: ').rstrip('.')}). "
            "Check the version and the network; a second run goes on where this one stopped."
        )
    return done.stdout


# --------------------------------------------------------------------------------------------------------- one attempt


def run_call(call: str, version_env: Environment) -> Row:
    """Try a call, an id of CALLS, in a fresh process with caches of its own, offline. Raises ImpKitError.

    Folders of this machine are left out of what the row says.
    """
    if call not in CALLS:
        raise ImpKitError(f"There is no call {call!r}; the calls are {', '.join(CALLS)}.")
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary).resolve()
        result, work = top / "result.json", top / "work"
        work.mkdir()
        # -P: the folder of this script must not stand where modules are looked for.
        command = [sys.executable, "-s", "-P", str(SCRIPT), call, str(result)]
        error = {"outcome": NOT_RUN, "what": "", "versions": {}}
        try:
            done = subprocess.run(
                command,
                cwd=work,
                env=_variables(version_env.folder, top / "cache"),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            found = error | {"error_type": "TimeoutExpired", "message": f"no end within {PATIENCE} s", "traceback": ""}
        else:
            if result.exists():
                found = json.loads(result.read_text("utf-8"))
            else:
                last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
                found = error | {"error_type": "CalledProcessError", "message": last, "traceback": done.stderr}
        folders = (temporary, top, version_env.folder, SCRIPT.parent, sys.prefix, sys.base_prefix)
        for key in ("message", "what", "traceback"):
            for folder in sorted({str(folder) for folder in folders if folder}, key=len, reverse=True):
                found[key] = found[key].replace(folder, "…")
    packages = found.pop("versions")
    return Row(
        version=version_env.version,
        call=call,
        outcome=found["outcome"],
        error_type=found["error_type"],
        message=" ".join(found["message"].split()),
        what=" ".join(found["what"].split()),
        **{name: packages.get(name, "") for name in ("python", "torch", "huggingface_hub", "tokenizers", "accelerate")},
        date=datetime.now(UTC).date().isoformat(),
        digest=script_digest(),
        traceback=_without_importlib(found["traceback"]),
    )


def _without_importlib(traceback: str) -> str:
    """A traceback without the frames of Python's own import, which say nothing about what was imported."""
    return re.sub(r'^  File "[^"\n]*\bimportlib\b[^\n]*\n(?:    .*\n)*', "", traceback, flags=re.MULTILINE)


def _variables(packages: Path | None, cache: Path) -> dict[str, str]:
    """A child's environment variables: no network, no GPU, nothing of the user's own caches or settings of the hub."""
    ours = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "PYTORCH_TRANSFORMERS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    paths = [str(packages)] if packages else []
    if os.environ.get("PYTHONPATH"):
        paths.append(os.environ["PYTHONPATH"])
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HOME": str(cache),
        "HF_MODULES_CACHE": str(cache / "modules"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",  # what HF_HUB_OFFLINE was called before 4.38
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }


# -------------------------------------------------------------------------------------------------------- the whole run


def measure(
    versions: Sequence[str] = VERSIONS,
    csv: str | os.PathLike = RUNS / "loading.csv",
    environments: str | os.PathLike = RUNS,
) -> list[Row]:
    """Try every call in every version, with a progress bar, and return the whole table.

    A row is in the file `csv` as soon as it is known; what is there already, of the same version, call and script, is
    not tried again unless it could not be run. Raises ImpKitError.
    """
    from tqdm import tqdm

    csv = Path(csv)
    versions = list(dict.fromkeys(newest() if version == NEWEST else str(_parsed(version)) for version in versions))
    with disk_errors(csv):
        csv.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(csv.with_name(csv.name + ".lock"), csv):
        rows = read_table(csv) if csv.exists() else []
        write_table(rows, csv)  # with its first line, and without a line that was cut short
        done = _done(rows)
        open_calls = {version: [call for call in CALLS if (version, call) not in done] for version in versions}
        total = sum(map(len, open_calls.values()))
        with appending(csv) as append, tqdm(total=total, unit="call") as bar:
            for version, calls in open_calls.items():
                if not calls:
                    continue
                bar.set_description(f"transformers {version}")
                packages = environment(version, environments)
                executor = ThreadPoolExecutor(CHILDREN)
                try:
                    for future in as_completed([executor.submit(run_call, call, packages) for call in calls]):
                        append(_line(future.result()))
                        bar.update()
                except KeyboardInterrupt:
                    wanted = {(version, call) for version in versions for call in CALLS}
                    kept = len(wanted & _done(read_table(csv)))
                    raise Stopped(f"{kept} of {len(wanted)} calls were tried and are kept in {csv}") from None
                finally:
                    executor.shutdown(cancel_futures=True)
        rows = read_table(csv)
        write_table(rows, csv)
    return rows


def _done(rows: Iterable[Row]) -> set[tuple[str, str]]:
    """Which calls need not be tried again in which version."""
    return {(row.version, row.call) for row in rows if row.digest == script_digest() and row.outcome != NOT_RUN}


# ---------------------------------------------------------------------------------------------------- what the rows say


def spans(rows: Sequence[Row], call: str) -> list[list[Row]]:
    """The rows of a call by version, cut where its outcome or its kind of error changes."""
    of_call = sorted((row for row in rows if row.call == call), key=lambda row: Version(row.version))
    return [list(run) for _, run in groupby(of_call, key=_kind)]


def _kind(row: Row | None) -> tuple[str, str]:
    """Outcome and error of a row; of no row, those of a call that was not run."""
    return (row.outcome, row.error_type) if row else (NOT_RUN, "")


def summary(rows: Sequence[Row]) -> str:
    """The table in words: a call, and under it what it does in which versions."""
    lines = []
    for call in CALLS.values():
        outcomes = []
        for run in spans(rows, call.id):
            first, last = run[0].version, run[-1].version
            outcomes.append(f"{_word(_kind(run[0]))} in {first if first == last else f'{first} to {last}'}")
        if outcomes:
            lines.append(f"{call.label}\n    {'; '.join(outcomes)}")
    return "\n".join(lines)


def _word(kind: tuple[str, str]) -> str:
    outcome, error_type = kind
    return error_type if outcome == ERROR else outcome


# Distinct for the color-blind, too: the colors differ in lightness as well as in hue.
COLORS = {WORKS: "#d5e6f2", ERROR: "#ee9a4d", SILENT: "#6b3d8f", NOT_RUN: "#ececec"}
GROUPS = {"name": "How the checkpoint is named", "code": "What else Imp's own code relies on"}


def draw(rows: Sequence[Row], calls: Iterable[str] = CALLS) -> "Figure":
    """A chart of some calls, ids of CALLS: versions from left to right, calls from top to bottom.

    Neighbors with the same outcome and the same kind of error share a bar; where it is too short for the error's name,
    a letter stands for it. Made to be read at 900 pixels width. Raises ImpKitError.
    """
    require("measure", "matplotlib", what="The picture")
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    calls = [CALLS[call] for call in calls]
    versions = sorted({row.version for row in rows}, key=Version)
    if not versions:
        raise ImpKitError("There are no rows to draw.")
    groups = [group for group in GROUPS if any(call.group == group for call in calls)]
    # All of these are inches.
    width, left, right, top, bottom = 9.0, 2.8, 0.15, 1.0, 0.72
    row_height, heading, letter_width = 0.2, 0.3, 0.067
    height = top + bottom + row_height * len(calls) + heading * (len(groups) - 1)
    cell = (width - left - right) / len(versions)
    figure = Figure(figsize=(width, height), dpi=100)
    axes = figure.add_axes((left / width, bottom / height, cell * len(versions) / width, 1 - (top + bottom) / height))
    axes.set(xlim=(0, len(versions)), ylim=(height - top - bottom, 0))
    axes.axis("off")

    known = {(row.call, row.version): row for row in rows}
    letters: dict[str, str] = {}
    margin = -0.08 / cell
    y = -heading
    for group in groups:
        y += heading
        axes.text(margin, y - 0.1, GROUPS[group], fontsize=9, weight="bold", ha="right", va="center")
        for call in (call for call in calls if call.group == group):
            axes.text(margin, y + row_height / 2, call.label, fontsize=8, family="monospace", ha="right", va="center")
            x = 0
            for kind, run in groupby((known.get((call.id, version)) for version in versions), key=_kind):
                outcome, length, word = kind[0], len(list(run)), _word(kind)
                rectangle = (x, y + 0.015), length, row_height - 0.03
                axes.add_patch(Rectangle(*rectangle, facecolor=COLORS[outcome], linewidth=0))
                axes.vlines(x, y, y + row_height, color="white", linewidth=2)
                if outcome in (WORKS, NOT_RUN):
                    word = ""
                elif len(word) * letter_width > length * cell:
                    silent = outcome == SILENT
                    word = "≠" if silent else letters.setdefault(word, _letter(word, letters.values()))
                ink = "white" if outcome == SILENT else "black"
                axes.text(x + length / 2, y + row_height / 2, word, fontsize=7.5, color=ink, ha="center", va="center")
                x += length
            y += row_height
    for x, version in enumerate(versions):
        axes.vlines(x, 0, y, color="white", linewidth=0.5, alpha=0.7)
        axes.text(x + 0.45, -0.08, version, fontsize=8, rotation=60, ha="left", va="bottom", rotation_mode="anchor")

    title = "Which version of transformers loads Imp by its own code?"
    figure.text(0.015, 1 - 0.13 / height, title, fontsize=12, va="top", weight="bold")
    names = {WORKS: WORKS, ERROR: ERROR, SILENT: f"{SILENT} (≠)", NOT_RUN: NOT_RUN}
    seen = {_kind(known.get((call.id, version)))[0] for call in calls for version in versions}
    handles = [Patch(color=COLORS[outcome], label=name) for outcome, name in names.items() if outcome in seen]
    corner = (0.005, 0.34 / height)
    figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=corner, ncols=len(seen), fontsize=8.5, frameon=False
    )
    legend = "   ".join(
        f"{letter} {word}" for letter, word in sorted((letter, word) for word, letter in letters.items())
    )
    figure.text(1 - right / width, 0.45 / height, legend, fontsize=8, ha="right")
    beside = f"Python {_all(rows, 'python')}, torch {_all(rows, 'torch')}; tiny checkpoints that are built as Imp's are"
    figure.text(0.015, 0.14 / height, beside, fontsize=7.5, color="#555555")
    return figure


def _letter(word: str, taken: Iterable[str]) -> str:
    """The first letter of a word that stands for no other."""
    return next(letter for letter in word.upper() if letter not in taken)


def _all(rows: Sequence[Row], column: str) -> str:
    return ", ".join(sorted({getattr(row, column) for row in rows} - {""}))


def save_plot(rows: Sequence[Row], file: str | os.PathLike) -> None:
    """Draw the whole table into a file. Raises ImpKitError."""
    figure, image = draw(rows), io.BytesIO()
    try:
        figure.savefig(image, dpi=200, format=Path(file).suffix.removeprefix(".") or None)
    except ValueError as error:
        raise ImpKitError(f"The picture {file} cannot be written ({error}).") from error
    write_whole(file, image.getvalue())


save_picture = save_plot  # its earlier name
