"""Seeded images of clean printed text: codes, words and short sentences; the position of every character is known.

Nothing here is distorted: turned, warped, crossed or crowded characters belong to the reading probe, which would
otherwise measure what imp-nano was taught instead of what it makes of something new. Nor does any of the probe's
captions appear here, though their words do, in other sentences.
"""

import re
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from imp_kit.experiments.captcha.codes import CHARSET, SIZE, STRIP, face
from imp_kit.experiments.drawings import (
    COLORS,
    Scene,
    any_of,
    background,
    draw,
    sample_canvas,
    sample_color,
    sample_scene,
)

FACES = (
    "DejaVuSans.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf", "DejaVuSansMono-Oblique.ttf", "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf", "STIXGeneral.ttf", "STIXGeneralBol.ttf", "STIXGeneralItalic.ttf",
    "cmr10.ttf", "cmss10.ttf", "cmtt10.ttf", "cmb10.ttf",
)  # fmt: skip
LONGEST = 8  # characters of a code or word
_WORDS = """
a i me we go up in on at no yes sun sea sky cat dog car bus cup box bag map key pen hat egg tea red two six ten one day
man boy old new big hot tree door bird fish milk cake book hand foot road rain snow wind fire moon star ship boat lamp
desk wall roof park city farm lake hill rose leaf king ball four five nine blue pink gray gold long tall fast cold warm
open stop left look read show find love home food time week year name word line page apple bread water house chair table
plate spoon knife phone clock shirt shoes green white black brown seven eight three happy small large light night paper
music horse mouse sheep train plane truck river beach stone glass grass cloud storm world smile dance sweet fresh orange
yellow purple window garden flower summer winter spring animal rabbit monkey bridge street school doctor friend family
mother father sister dinner coffee butter cheese potato tomato carrot banana cherry pencil letter number picture
kitchen morning evening weekend station airport library teacher student brother chicken dolphin giraffe machine holiday
science history country village diamond rainbow balloon blanket elephant notebook sandwich tomorrow
building computer children birthday football painting mountain question
"""
WORDS = tuple(_WORDS.split())
# Sentences for lines below a code: "n" stands for a noun, "v" for a verb, "d" for a digit, "c" for a color, "p" for a
# plural. The probe's captions are not among them.
SENTENCES = (
    "The n is c.", "This n is very old.", "A c n is here.", "Please look at the n.", "The p are c.", "I have d p.",
    "We v the n every day.", "My n is new.", "Read this line, please.", "There are d p in the n.", "Two p and one n",
    "The n contains d p.", "This picture is new.", "They v the c n.", "d p for the n", "Can you see the n?",
    "Her n has d p.", "All p are c.", "He said: the n is c.", "No p today", "Open the n at d.", "a c n and a c n",
    "The picture shows a n.", "Some characters are c.", "d characters in a story",
)  # fmt: skip
NOUNS = ("house", "garden", "box", "cup", "tree", "door", "cat", "bus", "book", "table", "window", "school", "river",
         "station", "letter", "train", "shop", "ship", "car", "road", "picture", "line", "sun", "kitchen")  # fmt: skip
PLURALS = ("roses", "cups", "boxes", "books", "birds", "trees", "letters", "words", "lines", "cars", "eggs", "people",
           "doors", "pictures", "stars", "apples", "characters")  # fmt: skip
VERBS = ("see", "paint", "clean", "like", "find", "need", "open", "visit", "draw", "know")
PROBE_CAPTION = re.compile("picture contains . characters")
LEAST_CONTRAST = 70  # of 255, between the lightness of ink and ground
LEAST_GLYPH = (0.028, 0.06)  # of the image: mean width and capital's height below which a text is too small to read
MOST_GLYPH = (0.17, 0.42)  # the same for the largest text
PLAIN_EM = 50  # pixels, on the probe's canvas
LOWER_CASE, LOWER_CASE_HARD = 0.12, 0.3  # shares of texts that are words in lower case, half of them capitalized
_CONSONANTS, _VOWELS = "BCDFGHJKLMNPRSTVWYZ", "AEIOU"


@dataclass(frozen=True)
class Line:
    """One line of text and its position; all numbers are fractions of the image."""

    text: str
    box: tuple[float, float, float, float]  # x0, y0, x1, y1, from the top of capitals to the baseline
    edges: tuple[float, ...]  # where each character begins, and where the last one ends
    sentence: bool  # a caption, and no code or word


@dataclass(frozen=True)
class Page:
    """What an image with text shows: lines from top to bottom, and things beside them if there are any."""

    lines: tuple[Line, ...]
    scene: Scene


@dataclass(frozen=True)
class Style:
    """Which texts may be drawn, and how much their look may vary."""

    longest: int = LONGEST  # characters of a code or word
    exactly: bool = False  # always `longest` characters, not fewer
    variety: float = 1.0  # share of images with any ground, ink, face and size; the others are black on white
    hard: bool = False  # whether tiny texts and words in lower case, which are misread most, come more often, and long
    # texts no more often than short ones


def sample_page(rng: np.random.Generator, style: Style = Style(), kind: str | None = None) -> tuple[Page, Image.Image]:
    """Text and its image. `kind` is "one" line, "two" lines, "beside" a drawn thing (chance decides between them), or
    "full" of lines.
    """
    kind = kind or str(rng.choice(("one", "two", "beside"), p=(0.5, 0.38, 0.12)))
    if rng.random() >= style.variety:
        style = replace(style, variety=0.0)
    while True:
        drawn = {"one": _one, "two": _two, "beside": _beside, "full": _full}[kind](rng, style)
        if drawn is not None:
            return drawn


def sample_text(rng: np.random.Generator, style: Style) -> str:
    """A random code, a pseudo-word or a word."""
    # unless it is hard, in half of the cases the longer of two lengths: a long text has more to get wrong
    drawn = 1 if style.exactly or style.hard else rng.integers(1, 3)
    length = style.longest if style.exactly else int(rng.integers(1, style.longest + 1, drawn).max())
    lower_case = LOWER_CASE_HARD if style.hard else LOWER_CASE
    # stretched, so that the other kinds keep their proportions
    kind = rng.random() * ((1 - LOWER_CASE) / (1 - lower_case))
    if kind < 0.5:
        return "".join(rng.choice(list(CHARSET), length))
    if kind < 0.6:  # also with what the probe leaves out, but for 0, O, 1 and I, which some faces draw alike
        return "".join(rng.choice(list("23456789ABCDEFGHJKLMNPQRSTUVWXYZ"), length))
    if kind < 0.75:
        first = int(rng.integers(2))
        return "".join(any_of((_CONSONANTS, _VOWELS)[(first + i) % 2], rng) for i in range(length))
    words = [word for word in WORDS if len(word) == length]
    # One letter alone looks the same in both cases.
    word = any_of(words, rng)
    return word.upper() if length == 1 or kind < 1 - LOWER_CASE else any_of((word, word.capitalize()), rng)


def _sentence(rng):
    """A short sentence that is no caption of the reading probe."""
    while True:
        sentence = _filled(rng)
        if not PROBE_CAPTION.search(sentence):
            return sentence


def _filled(rng):
    words = str(any_of(SENTENCES, rng)).split(" ")
    slots = {"n": NOUNS, "p": PLURALS, "v": VERBS, "c": COLORS, "d": "23456789"}
    filled = []
    for word in words:
        core = word.rstrip(".,?")
        filled.append(word.replace(core, any_of(slots[core], rng)) if core in slots else word)
    return " ".join(filled)


def _one(rng, style):
    text = sample_text(rng, style)
    if not style.variety or rng.random() < 0.5:
        return _on_canvas(rng, text, "", style)
    size = sample_canvas(rng)
    image, ink = _ground(size, rng)
    line = _draw_line(image, text, ink, (0.02, 0.02, 0.98, 0.98), rng, style)
    return line and (Page((line,), Scene((), size)), image)


def _two(rng, style):
    upper, lower = sample_text(rng, style), _sentence(rng)
    if not style.variety or rng.random() < 0.6:
        return _on_canvas(rng, upper, lower, style)
    if rng.random() < 0.4:
        lower = sample_text(rng, style)
    size = sample_canvas(rng)
    image, ink = _ground(size, rng)
    cut = rng.uniform(0.35, 0.65)
    lines = [
        _draw_line(image, upper, ink, (0.02, 0.03, 0.98, cut - 0.03), rng, style),
        _draw_line(image, lower, ink, (0.02, cut + 0.03, 0.98, 0.97), rng, style),
    ]
    return None if None in lines else (Page(tuple(lines), Scene((), size)), image)


def _full(rng, style):
    """As many lines as fit, of different sizes."""
    size = sample_canvas(rng) if style.variety else SIZE
    image, ink = _ground(size, rng) if style.variety else _paper(size)
    lines, top = [], 0.01
    while top < 0.9:
        bottom = top + (rng.uniform(0.11, 0.32) if style.variety else 0.32)
        text = _sentence(rng) if style.variety and rng.random() < 0.3 else sample_text(rng, style)
        line = _draw_line(image, text, ink, (0.01, top, 0.99, min(bottom, 0.99)), rng, style)
        if line:
            lines.append(line)
            top = bottom
        else:
            top += 0.03
    return Page(tuple(lines), Scene((), size)), image


def _beside(rng, style):
    """A short text in the emptiest part of a drawing."""
    image, scene = draw(sample_scene(rng), rng)
    free = []
    for _ in range(20):
        x0, y0 = rng.uniform(0.02, 0.5), rng.uniform(0.02, 0.75)
        area = (x0, y0, rng.uniform(x0 + 0.3, 0.98), rng.uniform(y0 + 0.15, min(0.98, y0 + 0.35)))
        if not any(
            area[0] < b[2] and b[0] < area[2] and area[1] < b[3] and b[1] < area[3]
            for b in (thing.box for thing in scene.things)
        ):
            free.append(area)
    if not free:
        return None
    area = max(free, key=lambda p: (p[2] - p[0]) * (p[3] - p[1]))
    # A label, so that the text needs no ground on which it can be read.
    width, height = scene.size
    label = tuple(round(v * (width, height)[i % 2]) for i, v in enumerate(area))
    ground, ink = _ground((label[2] - label[0], label[3] - label[1]), rng, plain=True)
    image.paste(ground, label[:2])
    line = _draw_line(image, sample_text(rng, style), ink, area, rng, style)
    return line and (Page((line,), scene), image)


def _on_canvas(rng, text, caption, style):
    """The canvas of the reading probe: a code above, a strip below that is blank without a caption."""
    image, ink = _ground(SIZE, rng) if rng.random() < 0.4 * style.variety else _paper(SIZE)
    strip = 1 - STRIP / SIZE[1]
    lines = [_draw_line(image, text, ink, (0.02, 0.03, 0.98, strip - 0.02), rng, style)]
    if caption:
        lines.append(_draw_line(image, caption, ink, (0.02, strip + 0.02, 0.98, 0.99), rng, style))
    return None if None in lines else (Page(tuple(lines), Scene((), SIZE)), image)


def _paper(size):
    return Image.new("RGB", size, "white"), (0, 0, 0)


def _ground(size, rng, plain=False):
    """A ground and an ink that is much lighter or much darker."""
    while True:
        ink = sample_color(str(rng.choice((*COLORS, *("black", "white") * 6))), rng)
        ground = Image.new("RGB", size, any_of(((255, 255, 255), (20, 20, 20)), rng))
        if not plain:
            ground = background(size, [ink], rng)[0]
        tones = np.asarray(ground.convert("L").resize((16, 16)), int)
        if abs(tones - np.asarray(Image.new("RGB", (1, 1), ink).convert("L"), int)).min() > LEAST_CONTRAST:
            return ground, ink


def _draw_line(image, text, ink, area, rng, style):
    """Draw a line of text somewhere in `area`, fractions of the image; None where it would be too small to read."""
    width, height = image.size
    x0, y0, x1, y1 = (v * image.size[i % 2] for i, v in enumerate(area))
    name = any_of(FACES if style.variety else FACES[:2], rng)
    sentence = " " in text
    # Of an em, between characters.
    tracking = 0.0 if sentence or rng.random() < 0.4 or not style.variety else rng.uniform(0, 0.25)
    unit = face(name, 100)
    long = (sum(unit.getlength(c) for c in text) + 100 * tracking * (len(text) - 1)) / 100
    capital = -unit.getbbox("H", anchor="ls")[1] / 100
    most = min((x1 - x0) / long, (y1 - y0) / (capital + 0.5))
    most = min(most, MOST_GLYPH[0] * width * len(text) / long, MOST_GLYPH[1] * height / capital)
    least = max(LEAST_GLYPH[0] * width * len(text) / long, LEAST_GLYPH[1] * height / capital, 8)
    if least > most:
        return None
    if rng.random() < 0.7:
        em = int(least + (most - least) * rng.random() ** (2 if style.hard else 1))
    else:
        em = int(rng.uniform(0.75, 1.0) * most)
    em = max(em if style.variety else min(PLAIN_EM, int(most)), int(np.ceil(least)))
    if em > most:
        return None
    font = face(name, em)
    advances = [font.getlength(c) + em * tracking for c in text]
    length = sum(advances) - em * tracking
    x = rng.uniform(x0, max(x0, x1 - length))
    if rng.random() < 0.5:
        x = (x0 + x1 - length) / 2
    top = rng.uniform(y0 + em * 0.2, max(y0 + em * 0.2, y1 - em * (capital + 0.25)))
    baseline = top + em * capital
    canvas = ImageDraw.Draw(image)
    edges = [x, *(x + np.cumsum(advances))]
    edges[-1] -= em * tracking
    for character, left in zip(text, edges, strict=False):
        canvas.text((left, baseline), character, ink, font, anchor="ls")
    box = (edges[0] / width, top / height, edges[-1] / width, baseline / height)
    return Line(text, box, tuple(edge / width for edge in edges), sentence)
