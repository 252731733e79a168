"""What the notebooks share: their first cell, pictures with text, the reader's own picture."""

import csv
import io
import os
import platform
import sys
import textwrap
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import imp_kit
from imp_kit.answers import Answer
from imp_kit.errors import SettingError
from imp_kit.images import open_image
from imp_kit.system.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

SHOWN = ("torch", "transformers")  # beside the kit and Python itself
REPLACED = ("transformers", "huggingface_hub", "tokenizers")  # what pip may have replaced under a running kernel
DPI = 80
LINE = 0.2  # inches
LINE_LENGTH = 50  # characters
MEASURED = Path(__file__).with_name("measured.csv")  # figures of docs/speed.md, which has their commands


def start() -> None:
    """Begin a notebook: say which versions are here, and show figures of matplotlib as pictures.

    Raises SettingError where a package that the notebooks use is missing, and where the kernel still uses another
    version of a package than the one that is installed now. Imports neither torch nor transformers.
    """
    require("notebooks", what="This notebook")
    check_restart()
    if shell := _shell():
        shell.run_line_magic("matplotlib", "inline")
    parts = [f"{name} {_installed(name) or 'not installed'}" for name in SHOWN]
    print(f"imp-kit {imp_kit.__version__}, Python {platform.python_version()},", ", ".join(parts))


def check_restart() -> None:
    """Raise SettingError where this kernel imported another version of a package than the one on the disk."""
    for name in REPLACED:
        loaded = getattr(sys.modules.get(name), "__version__", None)
        if loaded not in (None, _installed(name)):
            raise SettingError(
                f"{name} {_installed(name)} is installed, but this kernel still uses {loaded}. Restart it (Colab: "
                "Runtime > Restart session; Jupyter: Kernel > Restart) and run all cells again."
            )


def choose_image(choice: str | os.PathLike) -> Path:
    """Path of the reader's own image: `choice` itself, or of a file that they upload where it is "upload" (in Colab).

    The file is opened once, so that one which is no image raises ImageError here. Raises SettingError where nothing
    was uploaded, or where there is no dialog for it.
    """
    path = _upload() if choice == "upload" else Path(choice)
    open_image(path)
    return path


def _upload() -> Path:
    if "google.colab" not in sys.modules:
        raise SettingError(
            '"upload" works in Colab alone; elsewhere give the path of a file, such as "my_picture.jpg".'
        )
    from google.colab import files

    uploaded = list(files.upload())  # saved in the working directory
    if not uploaded:
        raise SettingError("No file was uploaded; run this cell again and choose a picture.")
    return Path(uploaded[0])


def show(image: Any, turns: Sequence[tuple[str, object]] = ()) -> None:
    """Show an image, as `open_image` takes it, with questions (grey) and answers (black) beside it."""
    lines: list[tuple[str, str]] = []
    for question, answer in turns:
        lines += [(line, "#777777") for line in textwrap.wrap(question, LINE_LENGTH)]
        lines += [(line, "black") for line in textwrap.wrap(str(answer), LINE_LENGTH)] + [("", "black")]
    height = max(2.6, LINE * len(lines))  # inches
    figure = _figure(8.5 if turns else 4.0, height)
    axes = figure.subplots(1, 2, width_ratios=(1, 1.3)) if turns else [figure.subplots()]
    axes[0].imshow(open_image(image))
    if turns:
        axes[1].set_ylim(height, 0)
        for row, (line, color) in enumerate(lines):
            # A dollar would begin a formula.
            text = line.replace("$", r"\$")
            axes[1].text(0.02, 0.1 + LINE * row, text, color=color, va="top", fontsize=10.5)
    _display(figure, axes)


def grid(chosen: Sequence[tuple[str, Any]], columns: int = 4) -> None:
    """Show images, each as `open_image` takes it, with a line of text above each."""
    columns = min(columns, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = _figure(2.3 * columns, 2.3 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (title, image) in zip(axes, chosen, strict=False):
        axis.imshow(open_image(image))
        axis.set_title(title.replace("$", r"\$"), fontsize=9)
    _display(figure, axes)


def costs(answers: Sequence[Answer]) -> "DataFrame":
    """What answers about one image cost here, and what the same cost on other machines, as docs/speed.md has it.

    A row for each machine: seconds to look at the image and to read a question (medians), tokens written a second, and
    the most memory so far in GB (1e9 bytes; of the GPU, else of this process), which was not recorded elsewhere.
    """
    require("notebooks", "pandas", what="The table of costs")
    from pandas import DataFrame

    if not answers:
        raise SettingError("There is no answer whose cost could be shown; give a list of answers.")
    seconds, peaks = [answer.seconds for answer in answers], [answer.peak_memory or 0 for answer in answers]
    first = answers[0]
    here = {
        "checkpoint": f"{first.checkpoint} {first.dtype}",
        "machine": f"this one, {first.device}",
        "look (s)": max(each.look for each in seconds),
        "read a question (s)": median(each.prefill for each in seconds),
        "tokens a second": median(answer.tokens_per_second for answer in answers),
        "memory (GB)": max(peaks) / 1e9 or None,
    }
    with MEASURED.open(encoding="utf-8", newline="") as file:
        texts, *others = csv.reader(file)
    rows = [here, *(dict(zip(here, [*row[:2], *map(float, row[2:])], strict=False)) for row in others)]
    return DataFrame(rows, columns=list(here)).round(3)


def _figure(width: float, height: float) -> "Figure":
    require("notebooks", "matplotlib", what="A picture with text")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _display(figure: "Figure", axes: Sequence[Any] = ()) -> None:
    """Show a figure at once, also from the middle of a cell; of `axes` only what is drawn in them."""
    from IPython.display import Image, display

    for axis in axes:
        axis.axis("off")
    content = io.BytesIO()
    figure.savefig(content, format="png")
    display(Image(content.getvalue()))


def _shell() -> Any:
    """IPython's shell, None in a plain Python."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython

    return get_ipython()


def _installed(package: str) -> str | None:
    """The version on the disk; nothing is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
