"""The drawn documents, each with one question and its exact truth: what is drawn is sampled as data first.

Every document is a square of SIDE pixels: Imp squashes any image to a square, which would stretch another one, and
boxes keep their fractions whether a checkpoint squashes or pads. Nothing here was ever trained on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imp_kit.errors import SettingError
from imp_kit.experiments.documents.strokes import Hand, curve, width_of, write
from imp_kit.experiments.drawings import OBJECTS, Scene, draw, sample_scene
from imp_kit.prompts import LOCATE
from imp_kit.system.extras import require

SIDE = 448
SHORT = "\nAnswer the question using a single word or phrase."  # LLaVA-1.5's request for short answers
CHART_TOLERANCE = 0.05  # of the true value, as in ChartQA's relaxed accuracy (arXiv 2203.10244)
INK, PAPER, GRID = (25, 25, 25), (255, 255, 255), (205, 205, 205)
COLORS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 140, 150))
PLAIN, BOLD, MONO = "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf"

GROUPS = {
    "Fruit sold": ("Apples", "Pears", "Plums", "Figs", "Limes", "Kiwis", "Grapes"),
    "Animals seen": ("Cats", "Dogs", "Foxes", "Hares", "Owls", "Frogs", "Ducks"),
    "Visitors": ("Oslo", "Rome", "Lima", "Cairo", "Paris", "Delhi", "Quito"),
}
YEARS = (2018, 2019, 2020, 2021, 2022, 2023)
TRENDS = {  # how an answer may say it
    "rises": ("rises", "rise", "rising", "rose", "increases", "increase", "increasing", "increased", "grows", "grow",
              "growing", "grew", "goes up", "going up", "up", "upward", "upwards", "climbs"),
    "falls": ("falls", "fall", "falling", "fell", "decreases", "decrease", "decreasing", "decreased", "declines",
              "decline", "declining", "declined", "drops", "goes down", "going down", "down", "downward", "downwards"),
    "stays the same": ("stays the same", "stay the same", "the same", "constant", "flat", "steady", "stable",
                       "unchanged", "level"),
}  # fmt: skip
ITEMS = ("bread", "milk", "cheese", "apples", "coffee", "tea", "butter", "eggs", "rice", "soap", "pasta", "honey")
SHOPS = ("Corner Shop", "Green Market", "City Foods", "Mill Bakery")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")  # fmt: skip
WORDS = ("buy", "lemons", "call", "anna", "bring", "keys", "meet", "noon", "water", "plants", "fix", "lamp", "send",
         "letter", "feed", "dog", "wash", "jeans", "book", "quiet", "zoo", "visit", "box", "of", "grey",
         "paper")  # fmt: skip
HEADINGS = ("my garden", "our team", "good food", "old maps", "blue lake", "book club")
LINKS = ("home", "about", "shop", "news", "help", "contact")
BUTTONS = ("send", "search", "join", "buy now", "sign in")


@dataclass(frozen=True)
class Page:
    """A document, a question about it, and the truth: "rule" (see answers.py), "answer" and what a rule needs.

    The image is drawn when it is asked for: the questions of a long run are known before its images.
    """

    drawn: Callable[[], Image.Image]
    question: str
    truth: dict

    @cached_property  # since drawing uses up random numbers
    def image(self) -> Image.Image:
        """RGB, SIDE x SIDE."""
        return self.drawn()


@lru_cache(maxsize=64)
def face(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A face of matplotlib's wheel, shaped by PIL itself, so that no other library changes it."""
    require("measure", "matplotlib", what="A drawn document")
    import matplotlib

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", name)
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def _sheet(color: tuple[int, int, int] = PAPER) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (SIDE, SIDE), color)
    return image, ImageDraw.Draw(image)


def _pick(rng: np.random.Generator, options: Sequence, count: int) -> list:
    return [options[i] for i in rng.permutation(len(options))[:count]]


def _number(value: float, tolerance: float = 0.0) -> dict:
    return {"rule": "number", "answer": value, "tolerance": tolerance}


# Charts ------------------------------------------------------------------------------------------------------

LEFT, TOP, RIGHT, BOTTOM = 58, 60, SIDE - 14, SIDE - 48  # of a chart's axes, in pixels


def _axes(title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Axes from 0 to 100, with a line each 10."""
    image, canvas = _sheet()
    canvas.text((SIDE // 2, 28), title, INK, face(BOLD, 22), anchor="mm")
    for value in range(0, 101, 10):
        canvas.line((LEFT, _y(value), RIGHT, _y(value)), INK if not value else GRID, 1)
        canvas.text((LEFT - 8, _y(value)), str(value), INK, face(PLAIN, 15), anchor="rm")
    canvas.line((LEFT, TOP, LEFT, BOTTOM), INK, 1)
    return image, canvas


def _y(value: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * value / 100


def bar_chart(skill: str, rng: np.random.Generator) -> Page:
    """Four or five bars of 20 to 95, one of them the highest by 10 at least. Skills: value, maximum."""
    title = str(rng.choice(list(GROUPS)))
    labels = _pick(rng, GROUPS[title], int(rng.integers(4, 6)))
    values = _values(len(labels), rng)
    drawn = partial(_draw_bars, title, labels, values, COLORS[rng.integers(len(COLORS))])
    if skill == "maximum":
        truth = {"rule": "choice", "answer": labels[int(np.argmax(values))], "options": {it: [it] for it in labels}}
        return Page(drawn, f"Which bar of the chart is the highest?{SHORT}", truth)
    place = int(rng.integers(len(labels)))
    question = f"What is the value of {labels[place]} in the chart?{SHORT}"
    return Page(drawn, question, _number(values[place], CHART_TOLERANCE))


def _draw_bars(title: str, labels: list[str], values: list[int], color: tuple[int, int, int]) -> Image.Image:
    image, canvas = _axes(title)
    step = (RIGHT - LEFT) / len(labels)
    for number, (label, value) in enumerate(zip(labels, values, strict=True)):
        middle = LEFT + step * (number + 0.5)
        canvas.rectangle((middle - 0.32 * step, _y(value), middle + 0.32 * step, BOTTOM - 1), color)
        canvas.text((middle, BOTTOM + 18), label, INK, face(PLAIN, 18), anchor="mm")
    return image


def _values(count: int, rng: np.random.Generator) -> list[int]:
    """Different multiples of 5, of which the largest is 10 above the second at least."""
    while True:
        values = [int(value) for value in 5 * _shuffled(np.arange(4, 20), rng)[:count]]
        low, high = sorted(values)[-2:]
        if high - low >= 10:
            return values


def _shuffled(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return values[rng.permutation(len(values))]


def line_chart(skill: str, rng: np.random.Generator) -> Page:
    """Six years of a value between 20 and 95. Skills: value, maximum (the year), trend."""
    values = _values(len(YEARS), rng)
    trend = list(TRENDS)[rng.integers(3)]
    if skill == "trend":
        values = [values[0]] * len(values) if trend == "stays the same" else sorted(values, reverse=trend == "falls")
    title = str(rng.choice(["Members", "Tickets", "Orders", "Points"]))
    drawn = partial(_draw_line, title, values, COLORS[rng.integers(len(COLORS))])
    if skill == "trend":
        truth = {"rule": "choice", "answer": trend, "options": {name: list(terms) for name, terms in TRENDS.items()}}
        return Page(drawn, f"Does the line of the chart rise, fall or stay the same over the years?{SHORT}", truth)
    if skill == "maximum":
        question = f"In which year was the value in the chart the highest?{SHORT}"
        return Page(drawn, question, _number(YEARS[int(np.argmax(values))]))
    place = int(rng.integers(len(YEARS)))
    question = f"What is the value of the chart in {YEARS[place]}?{SHORT}"
    return Page(drawn, question, _number(values[place], CHART_TOLERANCE))


def _draw_line(title: str, values: list[int], color: tuple[int, int, int]) -> Image.Image:
    image, canvas = _axes(title)
    step = (RIGHT - LEFT) / len(YEARS)
    points = [(LEFT + step * (number + 0.5), _y(value)) for number, value in enumerate(values)]
    canvas.line(points, color, 4, joint="curve")
    for (x, y), year in zip(points, YEARS, strict=True):
        canvas.ellipse((x - 6, y - 6, x + 6, y + 6), color)
        canvas.text((x, BOTTOM + 18), str(year), INK, face(PLAIN, 17), anchor="mm")
    return image


# Receipts and tables -----------------------------------------------------------------------------------------


def receipt(skill: str, rng: np.random.Generator) -> Page:
    """Three to five things with prices, their total, and a date. Skills: total, price, date."""
    names = _pick(rng, ITEMS, int(rng.integers(3, 6)))
    cents = [int(value) for value in rng.choice(np.arange(60, 2000, 5), len(names), replace=False)]
    day = date(int(rng.integers(2019, 2025)), int(rng.integers(1, 13)), int(rng.integers(13, 29)))  # no month is 13
    drawn = partial(_draw_receipt, str(rng.choice(SHOPS)), _written(day, rng), names, cents)
    if skill == "total":
        return Page(drawn, f"What is the total on the receipt?{SHORT}", _number(sum(cents) / 100))
    if skill == "date":
        return Page(drawn, f"What is the date on the receipt?{SHORT}", {"rule": "date", "answer": day.isoformat()})
    place = int(rng.integers(len(names)))
    question = f"What is the price of the {names[place]} on the receipt?{SHORT}"
    return Page(drawn, question, _number(cents[place] / 100))


def _draw_receipt(shop: str, day: str, names: list[str], cents: list[int]) -> Image.Image:
    image, canvas = _sheet((196, 190, 180))
    left, right, height = 64, SIDE - 64, 190 + 34 * len(names)
    top = (SIDE - height) // 2
    canvas.rectangle((left, top, right, top + height), (253, 253, 248))
    canvas.text((SIDE // 2, top + 30), shop, INK, face(BOLD, 22), anchor="mm")
    canvas.text((SIDE // 2, top + 62), day, INK, face(MONO, 18), anchor="mm")
    y = top + 104
    for name, price in zip(names, cents, strict=True):
        _row(canvas, left + 24, right - 24, y, name, price, MONO)
        y += 34
    canvas.line((left + 24, y - 8, right - 24, y - 8), INK, 2)
    _row(canvas, left + 24, right - 24, y + 16, "TOTAL", sum(cents), BOLD)
    return image


def _row(canvas: ImageDraw.ImageDraw, left: int, right: int, y: int, name: str, cents: int, kind: str) -> None:
    canvas.text((left, y), name, INK, face(kind, 19), anchor="lm")
    canvas.text((right, y), f"{cents / 100:.2f}", INK, face(kind, 19), anchor="rm")


def _written(day: date, rng: np.random.Generator) -> str:
    month = MONTHS[day.month - 1]
    forms = (day.isoformat(), f"{day.day} {month} {day.year}", f"{month} {day.day}, {day.year}",
             f"{day.day:02}/{day.month:02}/{day.year}")  # fmt: skip
    return forms[rng.integers(len(forms))]


def table(skill: str, rng: np.random.Generator) -> Page:
    """Four or five rows, three columns; every second table has values in thousands with a separator. Skill: cell."""
    rows = _pick(rng, GROUPS["Visitors"], int(rng.integers(4, 6)))
    first = int(rng.integers(0, 10))
    columns = MONTHS[first : first + 3]
    most = 9_000 if rng.random() < 0.5 else 900
    values = rng.choice(np.arange(most // 9, most), (len(rows), 3), replace=False)
    row, column = int(rng.integers(len(rows))), int(rng.integers(3))
    question = f"What is the value for {rows[row]} in {columns[column]} in the table?{SHORT}"
    return Page(partial(_draw_table, rows, columns, values), question, _number(int(values[row, column])))


def _draw_table(rows: Sequence[str], columns: Sequence[str], values: np.ndarray) -> Image.Image:
    image, canvas = _sheet()
    edges, height, line = (14, 112, 219, 326, SIDE - 14), 54, (120, 120, 120)
    top = (SIDE - height * (len(rows) + 1)) // 2
    canvas.rectangle((edges[0], top, edges[-1], top + height), (222, 230, 240))
    for number in range(len(rows) + 2):
        canvas.line((edges[0], top + number * height, edges[-1], top + number * height), line, 1)
    for x in edges:
        canvas.line((x, top, x, top + height * (len(rows) + 1)), line, 1)
    for x, x_next, month in zip(edges[1:], edges[2:], columns, strict=False):
        canvas.text(((x + x_next) // 2, top + height // 2), month, INK, face(BOLD, 16), anchor="mm")
    for number, (name, line_values) in enumerate(zip(rows, values, strict=True), 1):
        y = top + number * height + height // 2
        canvas.text((edges[0] + 12, y), name, INK, face(BOLD, 18), anchor="lm")
        for x, value in zip(edges[2:], line_values, strict=True):
            canvas.text((x - 14, y), f"{value:,}", INK, face(PLAIN, 19), anchor="rm")
    return image


# By hand -----------------------------------------------------------------------------------------------------


def handwriting(skill: str, rng: np.random.Generator) -> Page:
    """Three words below each other in one hand. Skill: text."""
    words = _pick(rng, WORDS, 3)
    truth = {"rule": "text", "answer": " ".join(words)}
    return Page(partial(_draw_words, words, rng), f"What is written in this image?{SHORT}", truth)


def _draw_words(words: list[str], rng: np.random.Generator) -> Image.Image:
    image, canvas = _sheet((252, 250, 240))
    for y in range(130, SIDE, 110):
        canvas.line((20, y, SIDE - 20, y), (190, 205, 225), 2)
    hand, size = Hand.sample(rng), min(52.0, (SIDE - 100) / max(map(width_of, words)))
    for number, word in enumerate(words):
        start = 40 + rng.uniform(0, max(1.0, SIDE - 110 - size * width_of(word)))
        write(image, word, (start, 130 + 110 * number), size, hand, rng)
    return image


def sketch(skill: str, rng: np.random.Generator) -> Page:
    """A website drawn by hand, from the top: links, a heading, an image, a field with a button. Skill: html."""
    elements = [["link", link] for link in _pick(rng, LINKS, int(rng.integers(2, 4)))]
    elements.append(["heading", str(rng.choice(HEADINGS))])
    elements += [[role, ""] for role in ("image", "field") if rng.random() < 0.7]
    elements.append(["button", str(rng.choice(BUTTONS))])
    question = (
        "This is a sketch of a website. Write its HTML with the elements h1, a, img, input and button, and the texts "
        "that are in the sketch. A box with a cross is an img, an empty box is an input."
    )
    return Page(partial(_draw_sketch, elements, rng), question, {"rule": "html", "answer": elements})


def _draw_sketch(elements: list[list[str]], rng: np.random.Generator) -> Image.Image:
    image, canvas = _sheet((252, 252, 252))
    hand = Hand.sample(rng)
    _frame(canvas, (12, 12, SIDE - 12, SIDE - 12), rng)
    x = 40.0
    for role, text in elements:
        if role == "link":
            end = x + 17 * width_of(text)
            write(image, text, (x, 60), 17, hand, rng)
            curve(canvas, [(x, 70), (end, 70 + rng.uniform(-2, 2))], 2, INK)
            x = end + 34
        elif role == "heading":
            write(image, text, (40, 140), 34, hand, rng)
        elif role == "image":
            x0, y0, x1, y1 = box = (40, 176, 40 + int(rng.integers(150, 300)), 310)
            _frame(canvas, box, rng)
            for ends in (((x0, y0), (x1, y1)), ((x0, y1), (x1, y0))):
                curve(canvas, [_near(point, rng) for point in ends], 3, INK)
        elif role == "field":
            _frame(canvas, (40, 346, 230, 396), rng)
        else:
            _frame(canvas, (250, 346, 410, 396), rng)
            write(image, text, (330 - 9.5 * width_of(text), 379), 19, hand, rng)
    return image


def _near(point: Sequence[float], rng: np.random.Generator) -> tuple[float, float]:
    return point[0] + rng.normal(0, 2), point[1] + rng.normal(0, 2)


def _frame(canvas: ImageDraw.ImageDraw, box: tuple[int, int, int, int], rng: np.random.Generator) -> None:
    """A box of four lines that a hand drew."""
    x0, y0, x1, y1 = box
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    for start, end in zip(corners, corners[1:], strict=False):
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        points = [_near(point, rng) for point in (start, middle, end)]
        curve(canvas, points, 3, INK)


# Scenes ------------------------------------------------------------------------------------------------------


def scene(skill: str, rng: np.random.Generator) -> Page:
    """A drawn scene with an object that is there once, and is no part of another. Skill: box."""
    while True:
        found = sample_scene(rng)
        kinds = [thing.kind for thing in found.things] + [thing.holding[1] for thing in found.things if thing.holding]
        single = [thing for thing in found.things if thing.kind in OBJECTS and kinds.count(thing.kind) == 1]
        # Houses and buses have doors.
        single = [thing for thing in single if thing.kind != "door" or not {"house", "bus"} & set(kinds)]
        if single and found.size[0] == found.size[1]:
            break
    thing = single[rng.integers(len(single))]
    image, drawn = draw(Scene(found.things, (SIDE, SIDE)), rng)
    (box,) = (each.box for each in drawn.things if each.kind == thing.kind)
    phrase = f"the {thing.kind}"
    return Page(lambda: image, LOCATE.format(phrase), {"rule": "box", "answer": list(box), "phrase": phrase})


KINDS: dict[str, tuple[Callable[[str, np.random.Generator], Page], tuple[str, ...]]] = {
    "bar chart": (bar_chart, ("value", "maximum")),
    "line chart": (line_chart, ("value", "maximum", "trend")),
    "receipt": (receipt, ("total", "price", "date")),
    "table": (table, ("cell",)),
    "handwriting": (handwriting, ("text",)),
    "sketch": (sketch, ("html",)),
    "scene": (scene, ("box",)),
}
SKILLS = tuple((kind, skill) for kind, (_, skills) in KINDS.items() for skill in skills)


def page(kind: str, skill: str, seed: int) -> Page:
    """The document of a kind with a question of a skill; the same for the same seed. Raises SettingError."""
    if (kind, skill) not in SKILLS:
        known = ", ".join(f"{each} ({', '.join(skills)})" for each, (_, skills) in KINDS.items())
        raise SettingError(f"There is no document {kind!r} with the question {skill!r}; choose of {known}.")
    if not isinstance(seed, int) or seed < 0:
        raise SettingError(f"The seed is {seed!r}; give a whole number from 0.")
    return KINDS[kind][0](skill, np.random.default_rng([seed, SKILLS.index((kind, skill))]))
