"""What the notebooks share: their first cell, pictures with text, the reader's own picture."""

import csv
import io
import os
import platform
import sys
import textwrap
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from PIL import Image

import imp_kit
from imp_kit.answers import Answer
from imp_kit.errors import SettingError
from imp_kit.images import open_image, to_pixels
from imp_kit.system.extras import require
from imp_kit.system.faces import families

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from imp_kit.imp import Imp

SHOWN = ("torch", "transformers")  # beside the kit and Python itself
REPLACED = ("transformers", "huggingface_hub", "tokenizers")  # what pip may have replaced under a running kernel
DPI = 80
IMAGE_WIDTH, LOWEST = 3.7, 2.6  # inches, of an image and of the lowest picture with one
LINE = 0.2  # inches
LINE_LENGTH = 50  # characters
TITLE_LENGTH = 34  # characters of a line above bars
BAR = "#1f77b4"
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
    parts = [f"{name} {installed(name) or 'not installed'}" for name in SHOWN]
    print(f"imp-kit {imp_kit.__version__}, Python {platform.python_version()},", ", ".join(parts))


def check_restart() -> None:
    """Raise SettingError where this kernel imported another version of a package than the one on the disk."""
    for name in REPLACED:
        loaded = getattr(sys.modules.get(name), "__version__", None)
        if loaded not in (None, installed(name)):
            raise SettingError(
                f"{name} {installed(name)} is installed, but this kernel still uses {loaded}. Restart it (Colab: "
                "Runtime > Restart session; Jupyter: Kernel > Restart) and run all cells again."
            )


def installed(package: str) -> str | None:
    """The version of a package on the disk, None where it is not there; nothing is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def load_or_nano(checkpoint: str) -> "Imp":
    """Load a checkpoint, such as "imp-v1.5-3b-phi2", where a GPU and the hub are here for it, else imp-nano.

    A line says which, and why. Raises as `imp_kit.load`.
    """
    from imp_kit.device import choose_device
    from imp_kit.imp import choose_checkpoint, load

    name, why = choose_checkpoint(choose_device("auto"), checkpoint)
    print(f"imp-kit: {name}, because {why}.")
    return load(name)


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
    opened = open_image(image)
    lines: list[tuple[str, str]] = []
    for question, answer in turns:
        lines += [(line, "#777777") for line in textwrap.wrap(question, LINE_LENGTH)]
        lines += [(line, "black") for line in textwrap.wrap(str(answer), LINE_LENGTH)] + [("", "black")]
    wanted = min(IMAGE_WIDTH * opened.height / opened.width, IMAGE_WIDTH)
    height = max(LOWEST, wanted, LINE * len(lines))  # inches
    figure = _figure(2.3 * IMAGE_WIDTH if turns else IMAGE_WIDTH + 0.2, height)
    axes = list(figure.subplots(1, 2, width_ratios=(1, 1.3))) if turns else [figure.subplots()]
    axes[0].imshow(opened)
    if turns:
        axes[1].set_ylim(height, 0)
        for row, (line, color) in enumerate(lines):
            # A dollar would begin a formula.
            text = line.replace("$", r"\$")
            axes[1].text(0.02, 0.1 + LINE * row, text, color=color, va="top", fontsize=10.5, family=families())
    _display(figure, axes)


def next_tokens_plot(chosen: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> None:
    """Show probabilities as bars: a panel for each title, with the texts and probabilities of `View.next_tokens`."""
    figure = _figure(2.9 * max(len(chosen), 2), 0.7 + 0.24 * max(len(tokens) for _, tokens in chosen))
    for axis, (title, tokens) in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        shares = [probability for _, probability in tokens]
        bars = axis.barh(range(len(tokens)), shares, color=BAR)
        axis.bar_label(bars, [f"{share:.1%}" for share in shares], padding=3, fontsize=8)
        axis.set_yticks(range(len(tokens)), [_label(text) for text, _ in tokens])
        axis.set_title("\n".join(textwrap.wrap(title.replace("$", r"\$"), TITLE_LENGTH)), fontsize=9)
        axis.set(xlim=(0, 1.25), xticks=[], ylim=(len(tokens) - 0.4, -0.6))
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
    _display(figure)


def patches_plot(imp: "Imp", image: Any) -> None:
    """Show an image, as `open_image` takes it: the file, the square that the vision tower gets, and its patches.

    Pixels at the right and the lower edge that fill no patch are outside the lines: the model does not see them.
    """
    vision = imp.model.config.vision
    opened, side = open_image(image), vision.image_size // vision.patch_size
    square = ((to_pixels(opened, vision.image_size, imp.model.config.pad) + 1) / 2).permute(1, 2, 0).numpy()
    edges = [vision.patch_size * number - 0.5 for number in range(side + 1)]  # matplotlib's first pixel is at -0.5
    figure = _figure(9.5, 3.1)
    axes = figure.subplots(1, 3, width_ratios=(opened.width / opened.height, 1, 1))
    titles = (
        f"the file: {opened.width} x {opened.height}",
        f"the tower's square: {vision.image_size} x {vision.image_size}",
        f"{side} x {side} = {side * side} patches",
    )
    for axis, shown, title in zip(axes, (opened, square, square), titles, strict=True):
        axis.imshow(shown)
        axis.set_title(title, fontsize=10)
    for lines in (axes[2].hlines, axes[2].vlines):
        lines(edges, edges[0], edges[-1], color="black", linewidth=0.6, clip_on=False)
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


def plot(figure: "Figure") -> None:
    """Show a figure of few colors, such as a chart. With a palette its PNG has a third of the bytes."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    small = io.BytesIO()
    # Median cut, Pillow's default, gives colors of small areas away: the dark red of a heat map became black.
    palette = Image.open(content).convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    palette.save(small, "png", optimize=True)
    _display_png(small.getvalue())


def _label(text: str) -> str:
    """A token's text without the blank before its word; one of blanks alone as Python writes it."""
    return (text.strip() or repr(text)).replace("$", r"\$")


def _figure(width: float, height: float) -> "Figure":
    require("notebooks", "matplotlib", what="A picture with text")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _display(figure: "Figure", axes: Iterable[Any] = ()) -> None:
    """Show a figure at once, also from the middle of a cell; of `axes` only what is drawn in them."""
    for axis in axes:
        axis.axis("off")
    content = io.BytesIO()
    figure.savefig(content, format="png")
    _display_png(content.getvalue())


def _display_png(png: bytes) -> None:
    from IPython import display

    display.display(display.Image(png))


def _shell() -> Any:
    """IPython's shell, None in a plain Python."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython

    return get_ipython()
