"""Open whatever picture a user has, upright and in RGB, and turn it into the vision tower's pixel tensor."""

import difflib
import io
import os
import re
import reprlib
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from imp_kit.errors import ImageError

MAX_PIXELS = 100_000_000
PAD_COLOUR = (127, 127, 127)  # the grey nearest to 0 on the -1..1 scale, rounded down


def open_image(source) -> Image.Image:
    """Return a new upright RGB image; a PIL image that is passed in stays as it was.

    `source` is one of
      * a path (`str` or `pathlib.Path`) or the content of a picture file (`bytes` or `bytearray`);
      * a `PIL.Image.Image` of any mode (of an animation, the frame it stands at);
      * a numpy array, H x W or H x W x C with C = 1, 3 or 4: uint8, uint16, bool, or floats in 0..1;
      * a torch tensor of the same dtypes, on any device: H x W, C x H x W or H x W x C. Three dimensions
        count as channels first whenever the first of them is 1, 3 or 4.

    EXIF rotation is applied, transparency is laid on white, and an animated file gives its first frame.
    16-bit values are divided by 257. PIL's modes I and F do not say which value is white: it is the smallest
    of 1 (mode F only), 255 and 65535 that no value exceeds.

    Raises `ImageError` for whatever cannot be opened, and for more than `MAX_PIXELS` pixels; a file's size is
    read from its header, before anything is decoded.
    """
    name = _describe(source)
    try:
        with warnings.catch_warnings():
            # PIL warns from a bound of its own on; the one that counts here is MAX_PIXELS.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return _open(source, name)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not a picture that PIL can read; save it as JPEG or PNG first") from None
    except Image.DecompressionBombError as error:
        claim = str(error).partition(" exceeds")[0]
        raise ImageError(f"{name}: {claim} is over {MAX_PIXELS:,} pixels; shrink it first") from None
    except Exception as error:  # PIL raises almost anything on a damaged file
        reason = getattr(error, "strerror", None) or error  # an OSError's own text would repeat the path
        raise ImageError(f"{name}: cannot be opened ({reason}); is it complete and readable?") from error


def to_pixels(image, size, pad=False):
    """Turn an RGB PIL image into a float32 tensor of shape (3, size, size) with values in -1..1.

    The picture is squashed to a square (bicubic). With `pad` it is first centred on a grey square, which
    keeps its proportions. Raises `ImageError` if that square would hold more than `MAX_PIXELS` pixels.
    """
    import torch  # here, so that opening a picture does not wait for torch

    if pad:
        side = check_square(image)
        square = Image.new("RGB", (side, side), PAD_COLOUR)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    squashed = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
    return torch.from_numpy(squashed / 127.5 - 1.0).permute(2, 0, 1).contiguous()


def check_square(image):
    """The side in pixels of the square that `to_pixels` pads a picture to. Raises `ImageError` if it is too large."""
    side = max(image.size)
    _check_size(side, side, f"a {image.width} x {image.height} picture padded to a square")
    return side


def _describe(source):
    """Say in a few words what was given, for the error messages."""
    if isinstance(source, (str, Path)):
        text = str(source)
        return repr(text if len(text) <= 200 else text[:200] + "...")
    if isinstance(source, (bytes, bytearray)):
        return f"{len(source)} bytes"
    if isinstance(source, Image.Image):
        return f"{source.mode} image of {source.width} x {source.height}"
    if hasattr(source, "shape") and hasattr(source, "dtype"):
        return f"{type(source).__name__} of shape {tuple(source.shape)} and dtype {source.dtype}"
    return f"{reprlib.repr(source)} ({type(source).__name__})"


def _open(source, name):
    torch = sys.modules.get("torch")  # whoever holds a tensor has imported torch already
    if isinstance(source, Image.Image):
        return _to_rgb(source, name)
    if isinstance(source, (str, Path)):
        with _find_file(source, name).open("rb") as file, Image.open(file) as image:
            return _to_rgb(image, name)
    if isinstance(source, (bytes, bytearray)):
        if not source:
            raise ImageError(f"{name}: empty; give the whole content of a picture file")
        with Image.open(io.BytesIO(source)) as image:
            return _to_rgb(image, name)
    if torch is not None and isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        source = source.float() if source.dtype == torch.bfloat16 else source  # numpy has no bfloat16
        channels_first = source.ndim == 3 and source.shape[0] in (1, 3, 4)
        source = (source.permute(1, 2, 0) if channels_first else source).numpy()
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source, name), name)
    raise ImageError(f"{name}: give a path, bytes, a PIL image, a numpy array or a torch tensor")


def _find_file(source, name):
    """Return the `Path` of an existing, non-empty file, or raise an `ImageError` that says what to do."""
    # One slash, of either kind: Path("http://x") drops the other, and Windows turns it round.
    if address := re.match(r"(https?|ftp|s3|gs|file|data):", str(source), re.IGNORECASE):
        if address[1].lower() == "file":
            raise ImageError(f"{name}: give the path alone, without 'file:'")
        raise ImageError(f"{name}: the kit fetches nothing; download it first: curl -L -o picture.jpg URL")
    path = Path(os.path.expanduser(source))
    if not path.exists():
        files = {file.lower(): file for file in os.listdir(path.parent)} if path.parent.is_dir() else {}
        close = difflib.get_close_matches(path.name.lower(), files, n=1)
        hint = f"did you mean {str(path.with_name(files[close[0]]))!r}?" if close else "check the path"
        raise ImageError(f"{name}: no such file; {hint}")
    if not path.is_file():
        raise ImageError(f"{name}: {'a folder' if path.is_dir() else 'not a plain file'}; give a picture")
    if path.stat().st_size == 0:
        raise ImageError(f"{name}: an empty file (0 bytes); download or save it again")
    return path


def _check_size(width, height, name):
    if width * height == 0:
        raise ImageError(f"{name}: no pixels ({width} x {height}); give a picture of at least 1 x 1")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width} x {height} is over {MAX_PIXELS:,} pixels; shrink it first")


def _from_array(array, name):
    """Check an array and return it as a PIL image of mode L, RGB or RGBA."""
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"{name}: give H x W, or H x W x C with C = 1, 3 or 4, channels last")
    _check_size(array.shape[1], array.shape[0], name)
    white = {"b1": 1, "u1": 255, "u2": 65535, "f2": 1, "f4": 1, "f8": 1}.get(array.dtype.str[1:])
    if white is None:
        raise ImageError(f"{name}: give uint8, uint16, bool, or floats in 0..1")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= white):  # NaN compares as false
        raise ImageError(f"{name}: values run from {low} to {high}; give finite floats in 0..1")
    return Image.fromarray(_to_uint8(array[..., 0] if array.shape[2:] == (1,) else array, white))


def _to_uint8(values, white):
    return np.rint(np.multiply(values, 255 / white, dtype=np.float32)).astype(np.uint8)


def _to_rgb(image, name):
    """Return a new upright RGB image; the size is checked before `image` is decoded."""
    _check_size(*image.size, name)
    try:
        image.getexif()
    except Exception:  # PIL raises almost anything; a damaged block does not say how the picture stands
        pass
    else:
        image = ImageOps.exif_transpose(image)
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
