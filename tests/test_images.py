"""Every kind of picture that `open_image` takes, every one that it refuses, and the parity of `to_pixels`."""

import gc
import io
import os
import random
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

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


def chunk(kind, content):
    """A chunk of a PNG."""
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def png_claiming(width, height):
    """A PNG of a few bytes whose header claims width x height grey pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def png_with(before=b"", behind=b""):
    """PICTURE as a PNG with these chunks before and behind its pixels."""
    content = file_bytes(PICTURE)
    return content[:33] + before + content[33:-12] + behind + content[-12:]


def jpeg_with(marker, content, file=None):
    """A JPEG with one more segment in front of all others."""
    file = file or file_bytes(PICTURE, "JPEG", quality=95)
    return file[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content + file[2:]


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
        pytest.param(memoryview(file_bytes(PICTURE)), id="memoryview"),
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


def test_entry_of_a_folder(tmp_path):
    PICTURE.save(tmp_path / "picture.png")
    with os.scandir(tmp_path) as entries:
        assert np.array_equal(np.asarray(open_image(next(entries))), PIXELS)


class Unseekable:
    """What gives its bytes once, such as a server's answer."""

    def __init__(self, content):
        self.read = io.BytesIO(content).read


def test_open_files(tmp_path):
    """From the start, as PIL does, wherever they stand; they stay open, at their end."""
    PICTURE.save(tmp_path / "picture.png")
    content = (tmp_path / "picture.png").read_bytes()
    with (
        (tmp_path / "picture.png").open("rb") as buffered,
        (tmp_path / "picture.png").open("rb", buffering=0) as raw,
        tempfile.SpooledTemporaryFile() as spooled,
    ):
        spooled.write(content)
        for file in (buffered, raw, spooled, io.BytesIO(content)):
            for place in (0, 5, len(content)):
                file.seek(place)
                assert np.array_equal(np.asarray(open_image(file)), PIXELS)
                assert not file.closed
                assert file.tell() == len(content)


def test_open_files_that_cannot_go_back():
    content = file_bytes(PICTURE)
    assert np.array_equal(np.asarray(open_image(Unseekable(content))), PIXELS)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe:
        with os.fdopen(writing, "wb") as file:
            file.write(content)
        assert np.array_equal(np.asarray(open_image(pipe)), PIXELS)
        assert "empty, or already read to its end" in refusal(pipe)


def test_open_files_that_are_refused(tmp_path):
    path = tmp_path / "picture.png"
    PICTURE.save(path)
    with path.open() as file:
        message = refusal(file)
        assert repr(str(path)) in message
        assert "opened as text; open it with mode 'rb'" in message
    with tempfile.NamedTemporaryFile("w+", encoding="utf-8") as file:
        Path(file.name).write_bytes(file_bytes(PICTURE))
        assert "opened as text" in refusal(file)
    assert "opened as text" in refusal(io.StringIO("text"))
    with path.open("rb") as file:
        pass
    assert "closed; open it again" in refusal(file)
    assert "BytesIO: empty; give the whole content" in refusal(io.BytesIO())
    with (tmp_path / "new").open("wb") as file:
        assert "cannot be opened (read)" in refusal(file)
    silent = Unseekable(b"")
    silent.read = lambda: None
    assert "its read() gives NoneType" in refusal(silent)


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


@pytest.mark.gpu
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


# Entries of a TIFF's or an EXIF block's directory: tag, type, content. ORIENTATION is in their middle.
SIZES_OF_TYPES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 11: 4}
TURNED = noise(12, 20)  # as stored; orientation 6


def numbers(order):
    """What writes 16-bit and what writes 32-bit numbers."""
    return (lambda *values, letter=letter: struct.pack(f"{order}{len(values)}{letter}", *values) for letter in "HL")


def entries(order, orientation=6, kind=3):
    short, long = numbers(order)
    number = {1: lambda value: bytes([value]), 2: lambda value: b"%d\0" % value, 3: short, 4: long}[kind]
    return [
        (0x010E, 2, b"a description\0"),
        (0x010F, 2, b"a maker\0"),
        (ORIENTATION, kind, number(orientation)),
        (0x011A, 5, long(72, 1)),
        (0x011B, 5, long(72, 1)),
        (0x0128, 3, short(2)),
        (0x0131, 2, b"a program\0"),
        (0x0132, 2, b"2020:01:01 00:00:00\0"),
        (0x8298, 2, b"a name\0"),
        (0x8769, 4, long(8)),
        (0x8825, 4, long(8)),
    ]


def directory(order, entries, start, damaging=None, spared=()):
    """A directory that begins at byte `start`; `damaging` is the random generator that spoils some of its entries."""
    written, data = [], b""
    behind = start + 2 + 12 * len(entries) + 4
    for tag, kind, content in sorted(entries):
        place = content.ljust(4, b"\0")
        if len(content) > 4:
            place = struct.pack(order + "L", behind + len(data))
            data += content
        written.append([tag, kind, len(content) // SIZES_OF_TYPES[kind], place])
    for _ in range(damaging.randint(1, 3) if damaging else 0):
        entry = damaging.choice([entry for entry in written if entry[0] not in (ORIENTATION, *spared)])
        damage = damaging.randrange(4)
        if damage == 0:
            entry[1] = damaging.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 99, 65535])
        elif damage == 1:
            entry[2] = damaging.choice([0, 1, 2, 3, 5, 100, 10**6, 2**31, 2**32 - 1])
        elif damage == 2:
            entry[3] = struct.pack(order + "L", damaging.choice([0, 1, 5, 10**5, 2**31 - 1, 2**32 - 1]))
        else:  # a fraction of what stands at the beginning, most often with zero or nonsense below
            entry[1:] = damaging.choice([5, 10]), 1, struct.pack(order + "L", damaging.choice([0, start]))
    table = b"".join(struct.pack(order + "HHL", *entry[:3]) + entry[3] for entry in written)
    return struct.pack(order + "H", len(written)) + table + bytes(4) + data


def exif_block(order, *arguments):
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "L", 8)
    return b"Exif\0\0" + head + directory(order, *arguments)


def tiff(order, extra, damaging=None):
    """TURNED as a TIFF with these entries beside those that its pixels need."""
    short, long = numbers(order)
    pixels = TURNED.tobytes()
    needed = [
        (256, 3, short(20)),
        (257, 3, short(12)),
        (258, 3, short(8, 8, 8)),
        (262, 3, short(2)),
        (273, 4, long(8)),
        (277, 3, short(3)),
        (279, 4, long(len(pixels))),
    ]
    # What stands before the place of the pixels cannot be damaged alone: PIL reads no further.
    spared = [tag for tag, _, _ in needed] + [0x010E, 0x010F]
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "L", 8 + len(pixels))
    return head + pixels + directory(order, needed + extra, 8 + len(pixels), damaging, spared)


KINDS = {
    "JPEG": {"quality": 95},
    "MPO": {"quality": 95, "save_all": True, "append_images": [Image.new("RGB", (20, 12))]},
    "PNG": {},
    "WEBP": {"lossless": True},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_exif_entries_cost_neither_the_picture_nor_its_orientation(kind):
    picture = Image.fromarray(TURNED)
    stored = np.asarray(Image.open(io.BytesIO(file_bytes(picture, kind, **KINDS[kind]))).convert("RGB"))
    for seed in range(300):
        rng = random.Random(seed)
        order = rng.choice("<>")
        block = exif_block(order, entries(order), 8, rng)
        opened = open_image(file_bytes(picture, kind, exif=block, **KINDS[kind]))
        assert np.array_equal(np.asarray(opened), UPRIGHT[6](stored)), seed


@pytest.mark.filterwarnings("error")
def test_damaged_entries_of_a_tiff():
    for seed in range(1500):
        rng = random.Random(seed)
        order = rng.choice("<>")
        assert np.array_equal(np.asarray(open_image(tiff(order, entries(order), rng))), UPRIGHT[6](TURNED)), seed


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("kind", "value"), [(1, 6), (4, 6), (2, 6), (3, 0), (3, 9), (3, 65535)])
def test_orientations_of_a_wrong_type_or_value(order, kind, value):
    """A whole number counts whatever its width, unless it has no meaning; a text is none."""
    content = file_bytes(Image.fromarray(TURNED), exif=exif_block(order, entries(order, value, kind), 8))
    expected = UPRIGHT[6](TURNED) if (kind, value) in ((1, 6), (4, 6)) else TURNED
    assert np.array_equal(np.asarray(open_image(content)), expected)


def test_an_exif_block_may_end_anywhere():
    block = exif_block("<", entries("<"), 8)
    for length in range(len(block)):
        opened = open_image(file_bytes(PICTURE, exif=block[:length]))
        assert opened.size in ((7, 5), (5, 7))


def xmp(orientation):
    return b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % orientation


XMP_CHUNK = b"XML:com.adobe.xmp\0\0\0\0\0"


@pytest.mark.parametrize("text", [xmp(6), xmp(6).replace(b'"', b"'"), b"<tiff:Orientation>6</tiff:Orientation>"])
def test_orientation_in_xmp(text):
    assert np.array_equal(np.asarray(open_image(png_with(chunk(b"iTXt", XMP_CHUNK + text)))), UPRIGHT[6](PIXELS))


def test_exif_counts_before_xmp():
    in_xmp = chunk(b"iTXt", XMP_CHUNK + xmp(8))
    for orientation in (1, 3, 6):
        in_exif = chunk(b"eXIf", exif_block(">", entries(">", orientation), 8)[6:])
        opened = open_image(png_with(in_xmp + in_exif))
        assert np.array_equal(np.asarray(opened), UPRIGHT[orientation](PIXELS))
        given = open_image(tiff(">", [*entries(">", orientation), (700, 1, xmp(8))]))
        assert np.array_equal(np.asarray(given), UPRIGHT[orientation](TURNED))


def test_orientation_in_the_text_of_older_programs():
    block = exif_block("<", entries("<"), 8)
    text = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n%8d\n%s\n" % (len(block), block.hex().encode()))
    assert np.array_equal(np.asarray(open_image(png_with(chunk(b"zTXt", text)))), UPRIGHT[6](PIXELS))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5, 6, 7, 8, 9, 11])
def test_xmp_of_any_type_in_a_tiff(order, kind):
    letter = {3: "H", 4: "L", 5: "LL", 8: "h", 9: "l", 11: "f"}.get(kind)
    numbers = [(value, 1) if kind == 5 else (value,) for value in xmp(3)]
    content = b"".join(struct.pack(order + letter, *number) for number in numbers) if letter else xmp(3)
    opened = open_image(tiff(order, [*entries(order), (700, kind, content)]))
    assert np.array_equal(np.asarray(opened), UPRIGHT[6](TURNED))


LARGE = zlib.compress(bytes(2_000_000))  # 2 kB, and twice what Pillow unpacks
EXIF_CHUNK = chunk(b"eXIf", exif_block("<", entries("<"), 8)[6:])


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param(chunk(b"zTXt", b"key\0\0" + LARGE), id="zTXt"),
        pytest.param(chunk(b"iTXt", b"key\0\1\0\0\0" + LARGE), id="iTXt"),
        pytest.param(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LARGE), id="XMP"),
        pytest.param(chunk(b"iCCP", b"profile\0\0" + LARGE), id="iCCP"),
        pytest.param(chunk(b"tEXt", b"key\0" + bytes(10**6)) * 70, id="over-MAX_TEXT_MEMORY"),
        pytest.param(chunk(b"iCCP", b"profile\0\1unknown"), id="iCCP-unknown-method"),
        pytest.param(chunk(b"iCCP", b"profile"), id="iCCP-short"),
        pytest.param(chunk(b"gAMA", b"\0"), id="gAMA-short"),
        pytest.param(chunk(b"pHYs", b"\0"), id="pHYs-short"),
        pytest.param(chunk(b"tEXt", b"key\0text")[:-1] + b"?", id="checksum"),
    ],
)
def test_damaged_or_large_metadata_of_a_png(metadata):
    for content in (png_with(metadata), png_with(metadata + chunk(b"iTXt", XMP_CHUNK + xmp(1)))):
        assert np.array_equal(np.asarray(open_image(content)), PIXELS)
    for content in (
        png_with(metadata + EXIF_CHUNK),
        png_with(metadata, EXIF_CHUNK),
        png_with(EXIF_CHUNK, metadata),
        png_with(metadata + chunk(b"iTXt", XMP_CHUNK + xmp(6))),
    ):
        assert np.array_equal(np.asarray(open_image(content)), UPRIGHT[6](PIXELS))


def test_a_bomb_in_metadata_is_not_unpacked():
    content = png_with(chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(10**8))))
    tracemalloc.start()
    assert open_image(content).size == (7, 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


@pytest.mark.parametrize(
    ("marker", "metadata"),
    [
        pytest.param(0xE0, b"JFIF\0", id="JFIF-short"),
        pytest.param(0xE1, b"Exif\0\0", id="EXIF-empty"),
        pytest.param(0xE2, b"ICC_PROFILE\0", id="ICC-short"),
        pytest.param(0xE2, b"MPF\0no directory", id="MPF"),
        pytest.param(0xED, b"Photoshop 3.0\x008BIM\3\xed", id="Photoshop-short"),
        pytest.param(0xEE, b"Adobe", id="Adobe-short"),
        pytest.param(0xE5, bytes(65533), id="large"),
        pytest.param(0xFE, bytes(65533), id="large-comment"),
    ],
)
def test_damaged_or_large_metadata_of_a_jpeg(marker, metadata):
    plain = file_bytes(PICTURE, "JPEG", quality=95)
    stored = np.asarray(Image.open(io.BytesIO(plain)))
    assert np.array_equal(np.asarray(open_image(jpeg_with(marker, metadata, plain))), stored)
    turned = jpeg_with(0xE1, exif_block("<", entries("<"), 8), plain)
    assert np.array_equal(np.asarray(open_image(jpeg_with(marker, metadata, turned))), UPRIGHT[6](stored))


def test_xmp_of_a_jpeg_that_is_opened_without_its_metadata():
    plain = file_bytes(PICTURE, "JPEG", quality=95)
    spoiled = jpeg_with(0xE0, b"JFIF\0", plain)
    for segment in (b"http://ns.adobe.com/xap/1.0/\0" + xmp(6), b"of another program"):
        spoiled = jpeg_with(0xE1, segment, spoiled)
    assert np.array_equal(np.asarray(open_image(spoiled)), UPRIGHT[6](np.asarray(Image.open(io.BytesIO(plain)))))


def test_colours_of_a_jpeg_that_is_opened_without_its_metadata():
    """Adobe's segment says that the numbers are CMYK, and how."""
    plain = file_bytes(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert b"Adobe" in plain
    spoiled = jpeg_with(0xE2, b"ICC_PROFILE\0", plain)
    assert np.array_equal(np.asarray(open_image(spoiled)), np.asarray(open_image(plain)))


def test_a_pil_image_stands_as_its_own_exif_says():
    image = Image.open(io.BytesIO(file_bytes(PICTURE, exif=exif_block("<", entries("<"), 8))))
    assert open_image(image).size == (5, 7)
    del image.getexif()[ORIENTATION]
    assert open_image(image).size == (7, 5)


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


@pytest.mark.parametrize("asked", ["img_0002.jpg", "script.png", "dog.png", "nosuch.png", "cats/cat.jpg"])
def test_no_senseless_hint(tmp_path, asked):
    """Not another number of a series, no file that is no picture, no name that shares only its ending."""
    for name in ("img_0001.jpg", "script.py", "notes.txt", "bus.png", "loc.png"):
        PICTURE.save(tmp_path / name, "PNG")
    assert "did you mean" not in refusal(tmp_path / asked)


def test_a_missing_folder_is_named(tmp_path):
    assert "there is no folder" in refusal(tmp_path / "cats" / "cat.jpg")


def test_a_hint_is_not_looked_for_among_many_files(tmp_path, monkeypatch):
    """As comparisons take time for each: beside 118,287 files, those of COCO, they took four seconds."""
    compared = []
    monkeypatch.setattr("difflib.get_close_matches", lambda word, names, **_: compared.append(len(names)) or [])
    for number in range(1200):
        (tmp_path / f"{chr(97 + number % 26) * (1 + number // 26)}.jpg").touch()
    assert "no such file; check the path" in refusal(tmp_path / "bus.jpg")
    assert compared == []


@pytest.mark.parametrize("asked", ["xyz.png", "nul\0byte.png"])
def test_missing_file_without_a_hint(tmp_path, asked):
    PICTURE.save(tmp_path / "cat.jpg")
    assert "no such file; check the path" in refusal(str(tmp_path / asked))


@pytest.mark.parametrize("source", ["http://example.org/cat.jpg", "HTTPS://example.org/cat.jpg"])
@pytest.mark.parametrize("kind", [str, Path])
def test_url(source, kind):
    assert "download it first" in refusal(kind(source))


def test_other_addresses():
    assert "base64.b64decode" in refusal("data:image/png;base64," + "A" * 100_000)
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


@pytest.mark.parametrize(
    "content", [b"plain text", b"%PDF-1.7\n", b"<svg></svg>", b"\x89PNG\r\n\x1a\n", b"\0", b"\xff\xd8\xff"]
)
def test_file_that_is_no_picture(tmp_path, content):
    (tmp_path / "notes.png").write_bytes(content)
    assert "notes.png" in refusal(tmp_path / "notes.png")
    assert f"{len(content)} bytes: " in refusal(content)


def ftyp(*brands):
    major, *others = (brand.encode() for brand in brands)
    return struct.pack(">L", 16 + 4 * len(others)) + b"ftyp" + major + bytes(4) + b"".join(others) + bytes(99)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (ftyp("heic", "mif1", "heic"), "a HEIC picture; pip install pillow-heif"),
        (ftyp("mif1", "miaf", "MiHB", "heic"), "from pillow_heif import register_heif_opener; register_heif_opener()"),
        (ftyp("msf1", "hevc"), "a HEIC picture"),
        (ftyp("isom", "iso2", "avc1", "mp41"), "a video; save one of its frames as PNG"),
        (ftyp("qt  "), "a video"),
        (b"\x1aE\xdf\xa3" + bytes(99), "a video"),
        (ftyp("crx ", "isom"), "a camera's raw file; export it as JPEG"),
        (b"\xff\x0a" + bytes(99), "a JPEG XL picture; pip install pillow-jxl-plugin"),
        (b"%PDF-1.7\n", "a PDF document; save its page as PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing, which has no pixels; export it as PNG"),
        (
            b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- a program -->\n<!DOCTYPE svg [ <!ENTITY a "b"> ]>\n<svg>',
            "an SVG drawing",
        ),
        (b"\n<!DOCTYPE html><html><body><svg></svg>", "a web page or a server's message"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "a web page or a server's message"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"PK\3\4" + bytes(99), "an archive; unpack it first"),
        (b"GIF89a", "damaged, or of a kind that PIL does not open"),
        (b"\x89PNG\r\n\x1a\n", "damaged, or of a kind that PIL does not open"),
        (b"plain text", "not a picture that PIL can read"),
        (b"<!a>" * 1000, "not a picture that PIL can read"),
    ],
)
def test_what_a_file_is_instead(tmp_path, content, what):
    (tmp_path / "picture.jpg").write_bytes(content)
    for source in (tmp_path / "picture.jpg", content, io.BytesIO(content), Unseekable(content)):
        assert what in refusal(source)


def test_avif_where_pillow_does_not_open_it(monkeypatch):
    monkeypatch.setattr("PIL.Image.open", lambda *_, **__: (_ for _ in ()).throw(UnidentifiedImageError))
    for content in (ftyp("avif", "mif1", "miaf"), ftyp("mif1", "avif", "heic")):
        assert "an AVIF picture, which this Pillow does not open; pip install -U pillow" in refusal(content)


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


@pytest.mark.parametrize("source", [None, 5, 0.5, [1, 2], [[0] * 1000] * 1000, {"a": 1}, object()])
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
    gc.collect()  # or what other tests left open would be closed meanwhile
    before = len(os.listdir("/proc/self/fd"))
    kept = []  # the pictures and errors, so that nothing is closed by chance when they are freed
    for number, content in enumerate(contents):
        path = tmp_path / str(number)
        path.write_bytes(content)
        try:
            kept.append(open_image(path))
        except ImageError as error:
            kept.append(error)
    assert [isinstance(thing, ImageError) for thing in kept].count(True) == 3
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
