"""Image files apart from their pixels: the orientation, a file without its metadata, and what cannot be opened.

Of the metadata only the orientation matters; no other entry, damaged or too large, may keep an image from opening.
"""

import re
import struct

ORIENTATION = 0x0112  # the tag in EXIF and TIFF
METADATA = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # keys of PIL's `info` that may hold it
INTEGERS = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l"}  # an entry's type -> its letter for `struct`
XMP_ORIENTATION = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])""")

PNG = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
JPEG = b"\xff\xd8\xff"
JPEG_ADOBE = re.compile(rb"\xff\xee..Adobe.{7}", re.DOTALL)  # says which colour space the numbers are in

# The first bytes of files that PIL does not open, and what to do about them. The first that fits is used.
UNREADABLE = [
    (re.compile(beginning, re.DOTALL | re.IGNORECASE), advice)
    for beginning, advice in (
        (rb".{4}ftyp(?:.{4}){0,8}avi[fs]", "an AVIF picture, which this Pillow does not open; pip install -U pillow"),
        (
            rb".{4}ftyp(?:.{4}){0,8}(?:hei[cfmsx]|hev[cmsx]|mif1|msf1)",
            "a HEIC picture; pip install pillow-heif and run `from pillow_heif import register_heif_opener; "
            "register_heif_opener()`, or export it as JPEG",
        ),
        (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture; pip install pillow-jxl-plugin and run `import pillow_jxl`"),
        (rb".{4}ftypcrx |FUJIFILMCCD-RAW|IIRO|IIU\0", "a camera's raw file; export it as JPEG"),
        (rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI ", "a video; save one of its frames as PNG"),
        (rb"%PDF", "a PDF document; save its page as PNG: pdftoppm -png FILE page"),
        (rb"(?:\xef\xbb\xbf)?\s*(?:<[?!][^>]*>[\s\]>]*)*<svg", "an SVG drawing, which has no pixels; export it as PNG"),
        (
            rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|body|\?xml|!--)",
            "a web page or a server's message instead of a picture; download the picture itself",
        ),
        (rb"version https://git-lfs", "a Git LFS pointer instead of the picture; fetch it: git lfs pull"),
        (rb"PK\x03\x04|\x1f\x8b", "an archive; unpack it first"),
        (
            rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF.{4}WEBP|II\*\0|MM\0\*",
            "damaged, or of a kind that PIL does not open; download it again or save it as PNG",
        ),
        (rb"", "not a picture that PIL can read; save it as JPEG or PNG first"),
    )
]


def explain_unreadable(head: bytes) -> str:
    """What a file is that PIL does not open, and what to do, from its first bytes (4,096 are enough)."""
    return next(advice for beginning, advice in UNREADABLE if beginning.match(head))


def read_orientation(info: dict) -> int | None:
    """EXIF's number for the pixels' orientation, from the `info` of a PIL image; that of XMP if EXIF has none.

    1 to 8 have a meaning, but a file may hold any number; None if there is none.
    """
    found = _read_exif(_find_exif(info))
    if found is not None:
        return found
    for key in ("xmp", "XML:com.adobe.xmp"):
        text = info.get(key, b"")
        text = text.encode() if isinstance(text, str) else text
        if isinstance(text, bytes) and (match := XMP_ORIENTATION.search(text)):
            return int(match[1])
    return None


def _find_exif(info):
    if isinstance(info.get("exif"), bytes):
        return info["exif"]
    try:  # a PNG of older programs: a line's end, a name, a length, and lines of hexadecimal digits
        return bytes.fromhex("".join(info.get("Raw profile type exif", "").split("\n")[3:]))
    except ValueError:
        return b""


def _read_exif(block):
    """The orientation in the first directory of an EXIF block; nothing else in it is read."""
    block = re.sub(rb"^(?:Exif\0\0)+", b"", block)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "L", block, 4)
        (count,) = struct.unpack_from(order + "H", block, start)
        for offset in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", block, offset)
            if tag == ORIENTATION and kind in INTEGERS:
                return struct.unpack_from(order + INTEGERS[kind], block, offset + 8)[0]
    except struct.error:  # the block ends too early
        pass
    return None


def strip_metadata(content: bytes) -> tuple[bytes, dict]:
    """A PNG or JPEG file reduced to what its pixels need, and its EXIF and XMP as `read_orientation` takes them.

    Of an animated PNG the first image is left.
    """
    return _strip_png(content) if content.startswith(PNG) else _strip_jpeg(content)


def _strip_png(content):
    """Source: Portable Network Graphics (PNG) Specification, section 5.3: length, type, data, checksum."""
    parts, info, offset = [PNG], {}, len(PNG)
    while len(head := content[offset : offset + 8]) == 8:
        length, kind = struct.unpack(">L4s", head)
        chunk = content[offset : offset + 12 + length]
        if kind in PNG_PIXELS:
            parts.append(chunk)
        elif kind == b"eXIf":
            info["exif"] = chunk[8:]
        elif kind == b"iTXt" and chunk[8:].startswith(b"XML:com.adobe.xmp\0\0"):  # never compressed, says XMP
            info["xmp"] = chunk
        offset += 12 + length
    return b"".join(parts), info


def _strip_jpeg(content):
    """Source: ITU-T T.81, annex B: 0xFF, a marker, and a length that counts itself; the pixels follow marker 0xDA."""
    info: dict[str, bytes] = {}
    parts, offset = [content[:2]], 2
    while content[offset : offset + 1] == b"\xff" and (marker := content[offset + 1 : offset + 2]) != b"\xda":
        end = offset + 2 + int.from_bytes(content[offset + 2 : offset + 4])
        segment = content[offset:end]
        if marker == b"\xe1":
            key = "exif" if segment[4:].startswith(b"Exif\0\0") else "xmp"
            info[key] = info.get(key, b"") + segment[4:]
        elif not (b"\xe0" <= marker <= b"\xef" or marker == b"\xfe") or JPEG_ADOBE.match(segment):
            parts.append(segment)
        offset = end
    return b"".join([*parts, content[offset:]]), info
