"""Images with questions and answers to learn from: read, checked, and turned into token ids and image features."""

import csv
import os
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imp_kit.checkpoints.tokenizer import TextTokenizer
from imp_kit.errors import ImageError, ImpKitError, PromptError, SettingError
from imp_kit.images import open_image, to_pixels
from imp_kit.model.config import ImpConfig
from imp_kit.model.imp import ImpModel
from imp_kit.model.memory import free_memory
from imp_kit.prompts import TEMPLATES, Control, check_question, is_blank

COLUMNS = ("image", "question", "answer")
CACHE_SHARE = 4


class Example(NamedTuple):
    """An image (whatever `open_image` takes), a question and its answer; `where` names it in messages."""

    image: Any
    question: str
    answer: str
    where: str

    @property
    def key(self) -> Hashable:
        """What tells its image from others: examples that share one share its features, too."""
        return os.fspath(self.image) if isinstance(self.image, (str, os.PathLike)) else id(self.image)


class EncodedExample(NamedTuple):
    """An example as the decoder reads it: `ids` follow the image, and from `start` on they are learned."""

    example: Example
    ids: list[int]
    start: int


def read_examples(examples: str | os.PathLike | Iterable[tuple[Any, str, str]]) -> list[Example]:
    """Examples from a CSV file with the columns image, question and answer, or from such tuples.

    The path of an image in a file is relative to the file's folder. Raises SettingError where there are no examples,
    ImageError or PromptError for the first one that cannot be used.
    """
    if isinstance(examples, (str, os.PathLike)):
        found = _read_csv(Path(examples))
    else:
        found = [_from_tuple(item, number) for number, item in enumerate(_items(examples), 1)]
    if not found:
        raise SettingError(f"{_name(examples)}: there are no examples; give at least one image, question and answer.")
    for example in found:
        _check(example)
    return found


def _name(examples: Any) -> str:
    return os.fspath(examples) if isinstance(examples, (str, os.PathLike)) else "examples"


def _items(examples: Any) -> list:
    try:
        return list(examples)
    except TypeError:
        raise SettingError(
            f"examples is {examples!r:.80}; give the path of a CSV file, or a list of (image, question, answer)."
        ) from None


def _from_tuple(item: Any, number: int) -> Example:
    try:
        if isinstance(item, (str, Mapping)):
            raise TypeError("its parts are letters or names")
        image, question, answer = item
    except (TypeError, ValueError):
        raise SettingError(f"Example {number} is {item!r:.80}; give (image, question, answer).") from None
    return Example(image, question, answer, f"Example {number}")


def _read_csv(file: Path) -> list[Example]:
    found = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened, strict=True)  # else a quotation mark without its pair takes the rows below
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            missing = [column for column in COLUMNS if column not in reader.fieldnames]
            if missing:
                names = ", ".join(map(repr, reader.fieldnames)) or "none"
                raise SettingError(
                    f"{file} has no column {' and no column '.join(map(repr, missing))}; its columns are {names}. "
                    f"The first line names them: {','.join(COLUMNS)}."
                )
            twice = [column for column in COLUMNS if reader.fieldnames.count(column) > 1]
            if twice:
                raise SettingError(f"{file} has the column {twice[0]!r} more than once; keep the one that is meant.")
            for row in reader:
                image, question, answer = (row[column] or "" for column in COLUMNS)
                where = f"{file}, line {reader.line_num}"
                if None in row:
                    raise SettingError(
                        f"{where} has more values than the first line has names: put a text with a comma in quotes."
                    )
                if not image.strip():
                    raise ImageError(f"{where}: the column 'image' is empty; give the path of an image.")
                found.append(Example(file.parent / image.strip(), question, answer, where))
    except FileNotFoundError:
        raise SettingError(f"There is no file {file}; give a CSV with the columns {', '.join(COLUMNS)}.") from None
    except UnicodeDecodeError as error:
        raise SettingError(f"{file} is not in UTF-8 ({error}); save it as 'CSV UTF-8'.") from None
    except (OSError, csv.Error) as error:
        raise SettingError(f"{file} cannot be read as CSV ({error}).") from error
    return found


def _check(example: Example) -> None:
    """Raise ImageError or PromptError for what can be seen without a checkpoint, and without opening the image."""
    image, answer, where = example.image, example.answer, example.where
    if image is None:
        raise ImageError(f"{where}: there is no image; give one.")
    if not isinstance(answer, str):
        raise PromptError(f"{where}: the answer is {answer!r:.80}; give a text.")
    if is_blank(answer):
        raise PromptError(f"{where}: the answer is empty; give the text that is to be learned.")
    try:
        answer.encode()
        check_question(example.question)
        if isinstance(image, (str, os.PathLike)) and not os.path.isfile(image):
            open_image(image)  # which says what is there instead
    except UnicodeEncodeError:
        raise PromptError(f"{where}: the answer {answer!r:.80} holds bytes that are no text; use UTF-8.") from None
    except ImpKitError as error:
        raise type(error)(f"{where}: {error}") from None


def opening_ids(tokenizer: TextTokenizer, family: str) -> list[int]:
    """Token ids before the image, those that begin each prompt."""
    return tokenizer.encode_pieces(TEMPLATES[family].open(), begins=True)


def encode_example(example: Example, config: ImpConfig, tokenizer: TextTokenizer) -> EncodedExample:
    """The ids of the question as `Imp.ask` reads it, of the answer, and of the token that ends an answer.

    Raises PromptError where they are more than the checkpoint reads.
    """
    template, limit = TEMPLATES[config.family], config.decoder.max_positions
    begun = [*tokenizer.encode_pieces(template.ask(example.question, first=True)), *tokenizer.suffix]
    answer = tokenizer.encode_pieces((template.answer + example.answer.strip(), Control(template.stop)))
    ids = [*begun, *answer]
    length = len(opening_ids(tokenizer, config.family)) + config.vision.num_patches + len(ids)
    if length > limit:
        raise PromptError(
            f"{example.where}: image, question and answer are {length} tokens long, and the checkpoint reads {limit}. "
            f"Shorten the answer, which takes {len(answer)}, or the question."
        )
    return EncodedExample(example, ids, len(begun))


class ImageFeatures:
    """What the decoder sees of images, (patches, hidden_size) in the model's dtype, without gradient.

    Those of the images that were prepared first are kept, up to `limit` bytes in all (a fourth of the free memory);
    those of other images are computed each time that they are asked for.
    """

    def __init__(self, model: ImpModel, limit: int | None = None):
        self.model = model
        self.limit = free_memory(torch.device("cpu")) // CACHE_SHARE if limit is None else limit
        self._kept: dict[Hashable, Tensor] = {}
        self._bytes = 0

    def prepare(self, example: Example) -> None:
        """Open an example's image, and keep its features if there is memory for them. Raises ImageError."""
        config, pixels = self.model.config, self._open(example)
        size = config.vision.num_patches * config.decoder.hidden_size * self.model.dtype.itemsize
        if example.key not in self._kept and self._bytes + size <= self.limit:
            self._kept[example.key] = self._encode(pixels).cpu()
            self._bytes += size

    def __call__(self, example: Example) -> Tensor:
        """The features of an example's image. Raises ImageError."""
        kept = self._kept.get(example.key)
        return self._encode(self._open(example)) if kept is None else kept.to(self.model.device)

    def _open(self, example: Example) -> Tensor:
        config = self.model.config
        try:
            return to_pixels(open_image(example.image), config.vision.image_size, config.pad)
        except ImpKitError as error:
            raise ImageError(f"{example.where}: {error}") from error

    @torch.no_grad()  # not inference_mode, whose tensors cannot be part of training
    def _encode(self, pixels: Tensor) -> Tensor:
        return self.model.encode(pixels[None])[0]
