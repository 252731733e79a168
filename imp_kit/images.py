"""Open any kind of image, upright and in RGB, and turn it into the vision tower's pixel tensor."""

import difflib
import io
import os
import re
import reprlib
import sys
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from imp_kit.errors import ImageError, ImageSizeError, PromptError
from imp_kit.image_files import JPEG, METADATA, ORIENTATION, PNG, explain_unreadable, read_orientation, strip_metadata

if TYPE_CHECKING:
    import torch

MAX_PIXELS = 100_000_000
MANY_FILES = 1000  # in a larger folder the kit does not search for a name similar to a missing one
PAD_COLOUR = (127, 127, 127)  # the grey nearest to 0 on the -1..1 scale, rounded down
UPRIGHT = {  # EXIF's orientation -> the operation that turns the stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DOWNLOAD = "the kit fetches nothing; download it first: curl -L -o picture.jpg URL"
ADDRESSES = {
    "file": "give the path alone, without 'file:'",
    "data": "give the bytes after the comma, decoded: base64.b64decode(text.partition(',')[2])",
    **dict.fromkeys(("http", "https", "ftp", "s3", "gs"), DOWNLOAD),
}


def open_image(source: Any, *, max_pixels: int = MAX_PIXELS, formats: Sequence[str] | None = None) -> Image.Image:
    """Return a new upright RGB image; a PIL image that is passed in stays as it was.

    `source` is one of
      * a path (`str`, `pathlib.Path` or another `os.PathLike`) or the content of an image file (`bytes`,
        `bytearray` or `memoryview`);
      * an open binary file (anything with `read`, such as `io.BytesIO`): it is read from its start, as PIL does, or
        from its current position if it cannot seek, then to its end, and stays open;
      * a `PIL.Image.Image` of any mode (of an animation, the current frame);
      * a numpy array, H x W or H x W x C with C = 1, 3 or 4: uint8, uint16, bool, or floats in 0..1;
      * a torch tensor of the same dtypes, on any device: H x W, C x H x W or H x W x C. Three dimensions
        count as channels first whenever the first of them is 1, 3 or 4.

    EXIF rotation (XMP's, where EXIF has none) is applied, transparent parts become white, and an animated file gives
    its first frame. Other metadata is not needed, so a file in which it is damaged or too large opens, too.
    16-bit values are divided by 257. PIL's modes I and F do not say which value is white: it is the smallest
    of 1 (mode F only), 255 and 65535 that no value exceeds.

    Raises `ImageError` for whatever cannot be opened, and its child `ImageSizeError` for more than `max_pixels` pixels;
    a file's size is read from its header, before anything is decoded. `formats` are PIL's names of the kinds of files
    that are opened, by default all.
    """
    name, limits = _describe(source), _Limits(max_pixels, formats)
    try:
        with warnings.catch_warnings():
            # PIL warns of its own limit of pixels, but MAX_PIXELS is the one used, and of metadata that is not needed.
            warnings.filterwarnings("ignore", module="PIL")
            image = _open(source, name, limits)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        claim = str(error).partition(" exceeds")[0]
        raise ImageSizeError(f"{name}: {claim} is over {max_pixels:,} pixels; shrink it first") from None
    except Exception as error:  # PIL raises almost anything on a damaged file
        reason = getattr(error, "strerror", None) or error  # an OSError's own text would repeat the path
        raise ImageError(f"{name}: cannot be opened ({reason}); is it complete and readable?") from error
    for key in METADATA:  # which would rotate the image again
        image.info.pop(key, None)
    return image


class _Limits(NamedTuple):
    pixels: int
    formats: Sequence[str] | None


def check_order(image: Any, question: Any) -> None:
    """Raise PromptError if the arguments are swapped: the question is an image, and the image a text."""
    image_is_text = isinstance(image, str) and not os.path.exists(image)
    if isinstance(question, str):
        question_is_image = os.path.isfile(question) or Path(question).suffix.lower() in Image.registered_extensions()
    else:
        question_is_image = isinstance(question, (os.PathLike, bytes, bytearray, Image.Image)) or hasattr(
            question, "shape"
        )
    if image_is_text and question_is_image:
        raise PromptError(f"The picture comes first: ask(picture, question). {image!r:.80} stands in its place.")


def to_pixels(image: Image.Image, size: int, pad: bool = False) -> "torch.Tensor":
    """Turn an RGB PIL image into a float32 tensor of shape (3, size, size) with values in -1..1; see `squash`."""
    import torch  # here, so that opening an image does not wait for torch

    squashed = np.asarray(squash(image, size, pad), dtype=np.float32)
    return torch.from_numpy(squashed / 127.5 - 1.0).permute(2, 0, 1).contiguous()


def squash(image: Image.Image, size: int, pad: bool = False) -> Image.Image:
    """An RGB PIL image as a square of `size` x `size` pixels (bicubic); one that is such a square stays as it is.

    With `pad` it is first centred on a grey square, which keeps its proportions. Raises `ImageSizeError` if that
    square would hold more than `MAX_PIXELS` pixels.
    """
    if pad:
        side = check_square(image)
        square = Image.new("RGB", (side, side), PAD_COLOUR)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    return image.resize((size, size), Image.Resampling.BICUBIC)


def check_square(image: Image.Image) -> int:
    """The side in pixels of the square that `squash` pads an image to. Raises `ImageSizeError` if it is too large."""
    side = max(image.size)
    _check_size(side, side, f"a {image.width} x {image.height} picture padded to a square")
    return side


def _describe(source):
    """Describe what was given, in a few words, for the error messages."""
    if isinstance(source, (str, os.PathLike)):
        text = os.fsdecode(source)
        return repr(text if len(text) <= 200 else text[:200] + "...")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{len(source)} bytes"
    if isinstance(source, Image.Image):
        return f"{source.mode} image of {source.width} x {source.height}"
    if hasattr(source, "read"):
        file = getattr(source, "name", None)  # a number, where a file was opened by one
        return f"{type(source).__name__} {file!r}" if isinstance(file, str) else type(source).__name__
    if hasattr(source, "shape") and hasattr(source, "dtype"):
        return f"{type(source).__name__} of shape {tuple(source.shape)} and dtype {source.dtype}"
    return f"{reprlib.repr(source)} ({type(source).__name__})"


def _open(source, name, limits):
    torch = sys.modules.get("torch")  # whoever holds a tensor has imported torch already
    if isinstance(source, Image.Image):
        _check_size(*source.size, name, limits.pixels)
        return _to_rgb(source, _orientation_in_memory(source), name)
    if isinstance(source, (str, os.PathLike)):
        with _find_file(source, name).open("rb") as file:
            return _read(file, name, limits)
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not source:
            raise ImageError(f"{name}: empty; give the whole content of a picture file")
        return _read(io.BytesIO(source), name, limits)
    if hasattr(source, "read"):
        return _read(io.BytesIO(_read_stream(source, name)), name, limits)
    if torch is not None and isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        source = source.float() if source.dtype == torch.bfloat16 else source  # numpy has no bfloat16
        channels_first = source.ndim == 3 and source.shape[0] in (1, 3, 4)
        source = (source.permute(1, 2, 0) if channels_first else source).numpy()
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source, name, limits), None, name)
    raise ImageError(f"{name}: give a path, bytes, an open file, a PIL image, a numpy array or a torch tensor")


def _find_file(source, name):
    """Return the `Path` of an existing, non-empty file, or raise an `ImageError` that says what to do."""
    source = os.fsdecode(source)
    # One slash, of either kind: Path("http://x") drops the other, and Windows turns it round.
    if address := re.match(rf"({'|'.join(ADDRESSES)}):", source, re.IGNORECASE):
        raise ImageError(f"{name}: {ADDRESSES[address[1].lower()]}")
    path = Path(os.path.expanduser(source))
    if not path.exists():
        raise ImageError(f"{name}: no such file; {_hint(path)}")
    if not path.is_file():
        raise ImageError(f"{name}: {'a folder' if path.is_dir() else 'not a plain file'}; give a picture")
    if path.stat().st_size == 0:
        raise ImageError(f"{name}: an empty file (0 bytes); download or save it again")
    return path


def _hint(path):
    """What to do about a path that does not exist: use an image in that folder with a similar name, if there is one."""
    if not path.parent.is_dir():
        return f"there is no folder {reprlib.repr(str(path.parent))}; check the path"
    with os.scandir(path.parent) as entries:  # in a folder of 100,000 images, the comparisons would take seconds
        names = [entry.name for entry in islice(entries, MANY_FILES + 1)]
    suffixes = Image.registered_extensions()
    wanted = path.stem.lower()
    files = {Path(name).stem.lower(): name for name in sorted(names) if Path(name).suffix.lower() in suffixes}
    # Names that differ only by their number are different images of a series.
    series = re.sub(r"\d", "", wanted)
    candidates = [stem for stem in files if stem == wanted or re.sub(r"\d", "", stem) != series]
    close = difflib.get_close_matches(wanted, candidates, n=1, cutoff=0.7) if len(names) <= MANY_FILES else ()
    return f"did you mean {str(path.with_name(files[close[0]]))!r}?" if close else "check the path"


def _read_stream(stream, name):
    """Return what an open file holds, or raise an `ImageError` that says what to do."""
    if getattr(stream, "closed", False):
        raise ImageError(f"{name}: closed; open it again")
    try:
        stream.seek(0)
        rewound = True
    except (AttributeError, OSError):  # such as a pipe, or a server's answer
        rewound = False
    try:
        content = stream.read()
    except UnicodeDecodeError:
        content = ""
    if isinstance(content, str):
        raise ImageError(f"{name}: opened as text; open it with mode 'rb'")
    if not isinstance(content, bytes):
        raise ImageError(f"{name}: its read() gives {type(content).__name__}; give a file whose read() gives bytes")
    if not content:
        why = "empty" if rewound else "empty, or already read to its end"
        raise ImageError(f"{name}: {why}; give the whole content of a picture file")
    return content


def _read(file, name, limits):
    """Return an open image file as `open_image` does, or raise an `ImageError` that says what else the file is."""
    try:
        return _decode_or_strip(file, name, limits)
    except UnidentifiedImageError:
        file.seek(0)
        raise ImageError(f"{name}: {explain_unreadable(file.read(4096))}") from None


def _decode_or_strip(file, name, limits):
    try:
        return _decode(file, name, limits)
    except (ImageError, Image.DecompressionBombError):
        raise
    except Exception:  # PIL raises almost anything, also for metadata
        file.seek(0)
        head = file.read(8)
        stripped = strip_metadata(head + file.read()) if head.startswith((PNG, JPEG)) else None
        if stripped is None:
            raise
    content, metadata = stripped
    return _decode(io.BytesIO(content), name, limits, metadata)


def _decode(file, name, limits, metadata=None):
    """Return an open image file as `open_image` does; `metadata` is what was removed from the file."""
    with Image.open(file, formats=limits.formats) as image:
        _check_size(*image.size, name, limits.pixels)
        if image.format == "TIFF":
            _decode_tiff(image)
            return _to_rgb(image, None, name)
        image.load()  # a PNG may have its metadata after its pixels
        return _to_rgb(image, read_orientation(image.info if metadata is None else metadata), name)


def _decode_tiff(image):
    """Decode a TIFF from no other entry than the orientation; PIL itself turns it upright while it decodes."""
    if not isinstance(image.info.get("xmp"), (str, bytes)):  # numbers, on which PIL fails
        image.info.pop("xmp", None)
    exif = image.getexif()
    for tag in set(exif) - {ORIENTATION}:  # such as the offset of a second directory, where there may be nothing
        del exif[tag]
    image.load()


def _orientation_in_memory(image):
    """The orientation of a PIL image that was given: as PIL has it, because the caller may have changed it."""
    image.load()
    try:
        return image.getexif().get(ORIENTATION)
    except Exception:  # PIL raises almost anything; a damaged block does not say how the image is rotated
        return None


def _check_size(width, height, name, most=MAX_PIXELS):
    if width * height == 0:
        raise ImageError(f"{name}: no pixels ({width} x {height}); give a picture of at least 1 x 1")
    if width * height > most:
        raise ImageSizeError(f"{name}: {width} x {height} is over {most:,} pixels; shrink it first")


def _from_array(array, name, limits):
    """Check an array and return it as a PIL image of mode L, RGB or RGBA."""
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"{name}: give H x W, or H x W x C with C = 1, 3 or 4, channels last")
    _check_size(array.shape[1], array.shape[0], name, limits.pixels)
    white = {"b1": 1, "u1": 255, "u2": 65535, "f2": 1, "f4": 1, "f8": 1}.get(array.dtype.str[1:])
    if white is None:
        raise ImageError(f"{name}: give uint8, uint16, bool, or floats in 0..1")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= white):  # NaN compares as false
        raise ImageError(f"{name}: values run from {low} to {high}; give finite floats in 0..1")
    return Image.fromarray(_to_uint8(array[..., 0] if array.shape[2:] == (1,) else array, white))


def _to_uint8(values, white):
    return np.rint(np.multiply(values, 255 / white, dtype=np.float32)).astype(np.uint8)


def _to_rgb(image, orientation, name):
    """Return a new upright RGB image."""
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    if image.mode == "La":  # premultiplied, as some filters leave it
        image = image.convert("LA")
    if image.mode.startswith(("I", "F")):  # I, F and I;16 in its byte orders: PIL's own way clips them at 255
        values = np.asarray(image)
        low, high = values.min(), values.max()
        whites = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
        white = next((white for white in whites if low >= 0 and high <= white), None)
        if white is None:
            raise ImageError(f"{name}: values run from {low} to {high}; scale them to 0..65535 first")
        hidden = image.info.get("transparency")  # one value, of a grey PNG with 16 bits
        values = values if hidden is None else np.where(values == hidden, white, values)
        return Image.fromarray(_to_uint8(values, white)).convert("RGB")
    if image.has_transparency_data:
        backdrop = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(backdrop, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
