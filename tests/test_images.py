"""Every kind of picture that `open_image` takes, every one that it refuses, and the parity of `to_pixels`."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imp_kit.errors import ImageError
from imp_kit.images import open_image, to_pixels

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
ORIENTATION = 0x0112  # the EXIF tag


def noise(height, width, channels=3):
    """Random uint8 array of shape (height, width, channels)."""
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def file_bytes(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_claiming(width, height):
    """A PNG of a few bytes whose header claims width x height grey pixels."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def refusal(source):
    """The message of the `ImageError` that `source` raises: one line, short enough to read."""
    with pytest.raises(ImageError) as caught:
        open_image(source)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


# Sources: the same 5 x 7 picture (height x width), given in every way.

PIXELS = noise(5, 7)
PICTURE = Image.fromarray(PIXELS)
TENSOR = torch.from_numpy(PIXELS)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(file_bytes(PICTURE), id="bytes"),
        pytest.param(bytearray(file_bytes(PICTURE)), id="bytearray"),
        pytest.param(PICTURE, id="pil"),
        pytest.param(Image.open(io.BytesIO(file_bytes(PICTURE))), id="pil-not-yet-decoded"),
        pytest.param(PIXELS, id="uint8"),
        pytest.param(np.asfortranarray(PIXELS), id="fortran-order"),
        pytest.param(PIXELS.astype(np.uint16) * 257, id="uint16"),
        pytest.param((PIXELS.astype(np.uint16) * 257).astype(">u2"), id="uint16-big-endian"),
        pytest.param(PIXELS.astype(np.float32) / 255, id="float32"),
        pytest.param(PIXELS / 255, id="float64"),
        pytest.param(np.dstack([PIXELS, np.full((5, 7), 255, np.uint8)]), id="opaque-alpha"),
        pytest.param(TENSOR, id="tensor-channels-last"),
        pytest.param(TENSOR.permute(2, 0, 1), id="tensor-channels-first"),
        pytest.param((TENSOR / 255).requires_grad_(), id="tensor-float-with-gradient"),
    ],
)
def test_sources(source):
    image = open_image(source)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize("kind", [str, Path])
def test_file(tmp_path, kind):
    path = tmp_path / "a picture.png"
    PICTURE.save(path)
    assert np.array_equal(np.asarray(open_image(kind(path))), PIXELS)


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    PICTURE.save(tmp_path / "picture.png")
    assert open_image("~/picture.png").size == (7, 5)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats(tmp_path, kind):
    path = tmp_path / "name.without.the.right.ending"
    path.write_bytes(file_bytes(PICTURE, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert np.array_equal(np.asarray(open_image(path)), PIXELS)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(PIXELS[..., 0], id="2d"),
        pytest.param(PIXELS[..., :1], id="one-channel"),
        pytest.param(TENSOR[..., 0], id="tensor-2d"),
        pytest.param(TENSOR[..., 0][None], id="tensor-one-channel"),
    ],
)
def test_grey_arrays(source):
    assert np.array_equal(np.asarray(open_image(source)), np.repeat(PIXELS[..., :1], 3, axis=2))


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_bool(convert):
    image = open_image(convert(np.array([[True, False]])))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [WHITE, (0, 0, 0)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensor_floats(dtype):
    assert open_image(torch.full((3, 2, 2), 0.5, dtype=dtype)).getpixel((1, 1)) == (128, 128, 128)


def test_three_rows_count_as_channels():
    assert open_image(torch.zeros(3, 6, 3)).size == (3, 6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensor_on_gpu():
    assert np.array_equal(np.asarray(open_image(TENSOR.cuda())), PIXELS)


# Modes.


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, WHITE),
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 255), (77, 77, 77)),
        ("LA", (77, 0), WHITE),
        ("PA", (0, 0), WHITE),
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("RGBa", (0, 0, 0, 0), WHITE),
        ("RGBX", (1, 2, 3, 0), (1, 2, 3)),
        ("CMYK", (0, 255, 255, 0), RED),
        ("YCbCr", (255, 128, 128), WHITE),
        ("HSV", (0, 255, 255), RED),
        ("I;16", 65535, WHITE),
        ("I;16", 257 * 100, (100, 100, 100)),
        ("I;16", 200, (1, 1, 1)),  # dark stays dark: mode I;16 says that white is 65535
        ("I;16B", 257 * 100, (100, 100, 100)),
        ("I", 200, (200, 200, 200)),
        ("I", 257 * 100, (100, 100, 100)),
        ("F", 1.0, WHITE),
        ("F", 200.0, (200, 200, 200)),
        ("F", 65535.0, WHITE),
    ],
)
def test_modes(mode, colour, expected):
    image = open_image(Image.new(mode, (3, 2), colour))
    assert (image.mode, image.size, image.getpixel((2, 1))) == ("RGB", (3, 2), expected)


@pytest.mark.parametrize("transparency", [{}, {"transparency": 0}, {"transparency": b"\x00\xff"}])
def test_palette(tmp_path, transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", **transparency)
    opened = open_image(tmp_path / "palette.png")
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [WHITE if transparency else RED, BLUE]


def test_rgb_with_transparent_colour(tmp_path):
    Image.new("RGB", (2, 2), RED).save(tmp_path / "key.png", transparency=RED)
    assert open_image(tmp_path / "key.png").getpixel((0, 0)) == WHITE


def test_16_bit_png(tmp_path):
    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    expected = np.arange(256).reshape(16, 16)
    assert np.array_equal(np.asarray(open_image(tmp_path / "deep.png"))[..., 1], expected)


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=95)
    assert np.allclose(open_image(tmp_path / "print.jpg").getpixel((8, 8)), RED, atol=4)


# What the EXIF orientation says about the stored rows and columns, and how numpy undoes it.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    PICTURE.save(tmp_path / "turned.png", exif=exif)
    image = open_image(tmp_path / "turned.png")
    assert np.array_equal(np.asarray(image), UPRIGHT[orientation](PIXELS))
    assert np.array_equal(np.asarray(open_image(image)), np.asarray(image))  # not turned a second time


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animation_gives_first_frame(tmp_path, kind):
    frames = [Image.new("RGB", (8, 6), colour) for colour in (RED, BLUE, WHITE)]
    content = file_bytes(frames[0], kind, save_all=True, append_images=frames[1:])
    image = open_image(content)
    assert image.size == (8, 6)
    assert np.allclose(image.getpixel((4, 3)), RED, atol=4)


def test_caller_keeps_the_image():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = Image.open(io.BytesIO(file_bytes(Image.new("RGBA", (4, 2), (9, 8, 7, 100)), exif=exif)))
    before = image.tobytes()
    opened = open_image(image)
    opened.putpixel((0, 0), BLUE)
    assert (image.mode, image.size, image.tobytes()) == ("RGBA", (4, 2), before)
    assert image.getexif()[ORIENTATION] == 6


@pytest.mark.parametrize("given", [PICTURE, PIXELS, TENSOR])
def test_result_shares_no_memory(given):
    open_image(given).paste(BLUE, (0, 0, 7, 5))
    assert np.array_equal(np.asarray(given), noise(5, 7))


# Refusals.


@pytest.mark.parametrize("asked", ["cat.png", "CAT.jpg", "catt.jpg"])
def test_missing_file_with_a_hint(tmp_path, asked):
    PICTURE.save(tmp_path / "cat.jpg")
    message = refusal(tmp_path / asked)
    assert asked in message
    assert f"did you mean {str(tmp_path / 'cat.jpg')!r}" in message


@pytest.mark.parametrize("asked", ["xyz.png", "no/such/folder/cat.jpg", "nul\0byte.png"])
def test_missing_file_without_a_hint(tmp_path, asked):
    PICTURE.save(tmp_path / "cat.jpg")
    assert "no such file; check the path" in refusal(str(tmp_path / asked))


@pytest.mark.parametrize("source", ["http://example.org/cat.jpg", "HTTPS://example.org/cat.jpg"])
@pytest.mark.parametrize("kind", [str, Path])
def test_url(source, kind):
    assert "download it first" in refusal(kind(source))


def test_other_addresses():
    assert "download it first" in refusal("data:image/png;base64," + "A" * 100_000)
    assert "download it first" in refusal("s3://bucket/cat.jpg")
    assert "give the path alone" in refusal("file:///tmp/cat.jpg")


def test_very_long_string():
    assert "cannot be opened" in refusal("A" * 100_000)


@pytest.mark.parametrize("source", ["", "."])
def test_folder(source):
    assert "a folder" in refusal(source)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_named_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "not a plain file" in refusal(tmp_path / "pipe")


def test_unreadable_file(tmp_path, monkeypatch):
    (tmp_path / "secret.png").write_bytes(file_bytes(PICTURE))

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "Permission denied" in refusal(tmp_path / "secret.png")


def test_empty_file(tmp_path):
    (tmp_path / "empty.png").touch()
    assert "empty file (0 bytes)" in refusal(tmp_path / "empty.png")


@pytest.mark.parametrize("source", [b"", bytearray()])
def test_empty_bytes(source):
    assert "0 bytes: empty" in refusal(source)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_truncated_file(tmp_path, kind):
    content = file_bytes(Image.fromarray(noise(64, 64)), kind)
    (tmp_path / "half").write_bytes(content[: len(content) // 2])
    assert "half'" in refusal(tmp_path / "half")


@pytest.mark.parametrize("content", [b"plain text", b"%PDF-1.7\n", b"<svg></svg>", b"\x89PNG\r\n\x1a\n", b"\0"])
def test_file_that_is_no_picture(tmp_path, content):
    (tmp_path / "notes.png").write_bytes(content)
    assert "notes.png" in refusal(tmp_path / "notes.png")
    assert f"{len(content)} bytes: " in refusal(content)


@pytest.mark.parametrize(
    ("width", "height"),
    [(50_000, 50_000), (12_000, 12_000), (10_001, 10_000)],
    ids=["PIL-error", "PIL-warning", "over"],
)
@pytest.mark.filterwarnings("error")
def test_bomb(tmp_path, width, height):
    content = png_claiming(width, height)
    assert len(content) < 200
    (tmp_path / "bomb.png").write_bytes(content)
    for source in (content, tmp_path / "bomb.png"):
        assert "over 100,000,000 pixels" in refusal(source)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(np.broadcast_to(np.uint8(0), (10_001, 10_000, 3)), id="array"),
        pytest.param(torch.zeros(1, dtype=torch.uint8).expand(3, 10_001, 10_000), id="tensor"),
    ],
)
def test_huge_array(source):
    assert "10000 x 10001 is over" in refusal(source)


@pytest.mark.parametrize("source", [None, 5, 0.5, [1, 2], [[0] * 1000] * 1000, {"a": 1}, object(), io.BytesIO(b"")])
def test_wrong_type(source):
    message = refusal(source)
    assert type(source).__name__ in message
    assert "give a path" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.1, 1.5, 255.0])
@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy, Image.fromarray])
def test_floats_out_of_range(value, convert):
    array = np.full((4, 4), 0.5, np.float32)
    array[1, 2] = value
    if convert is Image.fromarray and value > 1 and np.isfinite(value):
        assert open_image(convert(array)).mode == "RGB"  # mode F may hold 0..255 too
    else:
        assert f"{value:.1f}" in refusal(convert(array)).replace("-0.10", "-0.1")


@pytest.mark.parametrize("value", [-1, 65_536])
def test_mode_i_out_of_range(value):
    assert str(value) in refusal(Image.new("I", (2, 2), value))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0, 3), (0, 0, 4)])
@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_no_pixels(shape, convert):
    assert "no pixels" in refusal(convert(np.zeros(shape, np.uint8)))


def test_no_pixels_in_a_pil_image():
    assert "no pixels (0 x 5)" in refusal(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("shape", [(), (5,), (5, 5, 2), (3, 5, 5), (5, 5, 0), (1, 5, 5, 3)])
def test_wrong_array_shape(shape):
    message = refusal(np.zeros(shape, np.uint8))
    assert str(shape) in message
    assert "H x W" in message


@pytest.mark.parametrize("shape", [(), (5,), (2, 5, 5), (1, 3, 5, 5)])
def test_wrong_tensor_shape(shape):
    assert str(shape) in refusal(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint32, np.complex64, object, "U1", "M8[s]"])
def test_wrong_array_dtype(dtype):
    array = np.zeros((2, 2), dtype)
    assert str(array.dtype) in refusal(array)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.complex64])
def test_wrong_tensor_dtype(dtype):
    assert str(dtype) in refusal(torch.zeros(2, 2, dtype=dtype))


def test_tensor_without_values():
    assert "cannot be opened" in refusal(torch.zeros(2, 2, device="meta"))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files the Linux way")
def test_no_file_stays_open(tmp_path):
    contents = [file_bytes(PICTURE), file_bytes(PICTURE)[:60], b"text", png_claiming(50_000, 50_000)]
    contents.append(file_bytes(PICTURE, "GIF", save_all=True, append_images=[Image.new("RGB", (7, 5))]))
    before = len(os.listdir("/proc/self/fd"))
    kept = []  # the pictures and errors, so that nothing is closed by chance when they are freed
    for number, content in enumerate(contents):
        path = tmp_path / str(number)
        path.write_bytes(content)
        try:
            kept.append(open_image(path))
        except ImageError as error:
            kept.append(error)
    assert [type(thing) for thing in kept].count(ImageError) == 3
    assert len(os.listdir("/proc/self/fd")) == before


# to_pixels.

SIZES = [
    (900, 300),
    (200, 777),
    (5, 3),
    (1, 1),
    (3, 2),
    (384, 384),
    (140, 141),
    (1500, 1100),
]  # width, height


@pytest.mark.parametrize("size", [384, 140])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_parity_with_transformers(width, height, size):
    from oracle import SiglipImageProcessor

    image = Image.fromarray(noise(height, width))
    processor = SiglipImageProcessor(size={"height": size, "width": size}, resample=3)
    # Told where the channels are, because it would take a picture of 1 or 3 rows for channels first.
    expected = processor(image, return_tensors="pt", input_data_format="channels_last").pixel_values[0]
    pixels = to_pixels(image, size)
    assert (pixels.dtype, pixels.shape) == (torch.float32, (3, size, size))
    assert pixels.is_contiguous()
    assert (pixels - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("size", [384, 140])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_pad(width, height, size):
    array = noise(height, width)
    side = max(height, width)
    square = np.full((side, side, 3), 127, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = array
    assert torch.equal(to_pixels(Image.fromarray(array), size, pad=True), to_pixels(Image.fromarray(square), size))


def test_pad_is_bounded():
    with pytest.raises(ImageError, match="1 x 20000 picture padded to a square"):
        to_pixels(Image.new("RGB", (1, 20_000)), 384, pad=True)


def test_range_and_caller_image():
    image = Image.fromarray(np.array([[[0, 255, 127]]], np.uint8))
    assert to_pixels(image, 1).flatten().tolist() == pytest.approx([-1, 1, -1 / 255])
    assert image.size == (1, 1)


def test_opening_a_picture_imports_no_torch(tmp_path):
    PICTURE.save(tmp_path / "picture.png")
    code = "import sys, imp_kit.images as i; i.open_image(sys.argv[1]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, str(tmp_path / "picture.png")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_a_damaged_exif_block_does_not_cost_the_picture():
    file = io.BytesIO()
    Image.new("RGB", (6, 4), "red").save(file, "PNG", exif=b"Exif\0\0this is no TIFF header")
    assert open_image(file.getvalue()).getpixel((0, 0)) == (255, 0, 0)


def test_premultiplied_grey_is_laid_on_white():
    grey = Image.new("LA", (2, 1))
    grey.putdata([(100, 255), (0, 0)])
    found = open_image(grey.convert("La"))
    assert [found.getpixel((x, 0)) for x in range(2)] == [(100,) * 3, (255,) * 3]


def test_the_transparent_value_of_a_grey_picture_with_16_bits_is_laid_on_white():
    picture = Image.fromarray(np.array([[1000, 30_000]], np.uint16))
    picture.info["transparency"] = 1000
    found = open_image(picture)
    assert [found.getpixel((x, 0))[0] for x in range(2)] == [255, 117]
