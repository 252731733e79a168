"""RefCOCO's format, for whoever has its files: phrases that name one thing in a photograph, with its true box.

A folder holds `refs.json`, `instances.json` and the images, in the folder itself or in one of its own, `images`. Both
files are those of RefCOCO, RefCOCO+ or RefCOCOg (github.com/lichengunc/refer), but there the first one is a pickle,
such as refs(unc).p. A pickle can run any code, so the kit opens none. Of one that you trust, this makes the file:
`json.dump(pickle.load(open("refs(unc).p", "rb")), open("refs.json", "w"))`.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from imp_kit.boxes import Corners
from imp_kit.errors import ImageError, SettingError
from imp_kit.experiments.documents.answers import RIGHT_BOX, iou
from imp_kit.experiments.stats import Share, share_of

if TYPE_CHECKING:
    from imp_kit.boxes import Box

REFS, INSTANCES = "refs.json", "instances.json"


@dataclass(frozen=True)
class Expression:
    """A phrase, the image's file, and the true box as fractions x0, y0, x1, y1 of the image."""

    image: Path
    phrase: str
    box: Corners


@dataclass(frozen=True)
class Found:
    """What `imp.locate` found of an expression."""

    expression: Expression
    box: "Box"

    @property
    def iou(self) -> float:
        """Intersection over union with the true box; 0 if nothing was found."""
        return iou(self.box.fractions, self.expression.box) if self.box.fractions else 0.0


def load(folder: str | os.PathLike, split: str = "val", most: int | None = None) -> list[Expression]:
    """The expressions of a split ("val", "testA", ...), the first `most` of them; each sentence is one.

    Raises SettingError for a folder without the files, files of another format, and a split that has nothing;
    ImageError where an image is missing.
    """
    folder = Path(folder)
    refs, instances = _read(folder / REFS), _read(folder / INSTANCES)
    try:
        splits = {ref["split"] for ref in refs}
        if split not in splits:
            known = ", ".join(sorted(splits)) or "another file: it has none"
            raise SettingError(f"{folder / REFS} has no split {split!r}; choose {known}.")
        images = {image["id"]: image for image in instances["images"]}
        boxes = {entry["id"]: entry["bbox"] for entry in instances["annotations"]}
        return [
            Expression(_find(folder, image["file_name"]), phrase, _fractions(boxes[ref["ann_id"]], image))
            for ref, phrase in islice(_phrases(refs, split), most)
            for image in [images[ref["image_id"]]]
        ]
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise SettingError(f"{folder} is not in RefCOCO's format ({type(error).__name__}: {error}).") from None


def _phrases(refs: list[dict], split: str) -> Iterator[tuple[dict, str]]:
    for ref in refs:
        if ref["split"] == split:
            for sentence in ref["sentences"]:
                yield ref, sentence["sent"]


def locate_all(imp: Any, expressions: Sequence[Expression], **settings: Any) -> list[Found]:
    """What `imp.locate` finds of each expression, with a progress bar. Raises as `locate`."""
    bar = tqdm(expressions, unit="phrase")
    return [Found(each, imp.locate(each.image, each.phrase, **settings)) for each in bar]


def accuracy(found: Sequence[Found]) -> Share:
    """The share of boxes with an IoU of 0.5 or more, RefCOCO's figure, with its interval. Raises SettingError."""
    return share_of([each.iou >= RIGHT_BOX for each in found])


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        pickled = sorted(each.name for each in file.parent.glob("refs*.p"))
        why = f", but {pickled[0]}: make a JSON file of it, if you trust it" if pickled and file.name == REFS else ""
        raise SettingError(f"{file.parent} has no {file.name}{why}.") from None
    except (OSError, ValueError) as error:
        raise SettingError(f"{file} cannot be read as JSON ({error}).") from None


def _find(folder: Path, name: str) -> Path:
    for place in (folder, folder / "images"):
        file = place / name
        if file.is_file() and file.resolve().is_relative_to(place.resolve()):  # not "../another"
            return file
    raise ImageError(f"{folder} has no image {name}, nor has its folder images.")


def _fractions(box: Sequence[float], image: dict) -> Corners:
    """COCO's x, y, width, height in pixels as corners in fractions of the image."""
    x, y, width, height = (float(value) for value in box)
    return x / image["width"], y / image["height"], (x + width) / image["width"], (y + height) / image["height"]
