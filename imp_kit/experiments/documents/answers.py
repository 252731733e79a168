"""What an answer about a document is worth: rules that were there before the first answer.

One rule for each kind of truth. An answer gets a score from 0 to 1, and is right or not:

- number: one number, and the true one. "12.50", "12,50", "$12.5", "1,234", "1 234", "1.2 thousand" and "forty-five" are
  read. A number that the question names ("in 2019 it was 40") or that the answer denies ("not 30 but 40") does not
  count; nor what stands before the last "=". Several different ones are wrong, the true one among them or not. Charts
  allow 5 % of the truth (ChartQA's relaxed accuracy, arXiv 2203.10244); printed numbers allow nothing.
- date: one whole date, day, month and year, in any notation. One that can be read in two ways is two dates.
- choice: one of the options, in any of its forms, and no other. What is denied or stands after "than" does not count.
- text: the same words; letters' case and punctuation do not count. The score is ANLS (arXiv 1905.13648): the likeness
  by edits, 0 below one half. A quotation in the answer is taken for the text.
- html: elements with their texts. The score is F1 over them, whatever their order; right is all and nothing else.
- box: the score is the IoU with the true box; right from 0.5 on, as in RefCOCO.

An answer that gives nothing and says that it cannot be read, or is not there, is not right; it is counted apart.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from html.parser import HTMLParser

from imp_kit.boxes import Corners, read_box
from imp_kit.experiments.scores import edit_share

RIGHT_BOX = 0.5  # IoU from which a box counts as found
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
WORDS = dict(zip(UNITS, range(20), strict=True)) | dict(zip(TENS, range(20, 100, 10), strict=True))
TIMES = {"hundred": 100, "thousand": 1_000, "k": 1_000, "million": 1_000_000}

_DIGITS = (
    r"\d{1,3}(?:\.\d{3})+,\d{1,2}|"  # 1.234,50
    r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?:[ '’\u00a0\u202f]\d{3})+(?:[.,]\d{1,2})?|"  # 1,234.50 and 1 234,50
    r"\d+(?:\.\d+|,\d{1,2}(?!\d))?|\.\d+"
)
_ONES = f"(?:{'|'.join(UNITS[1:10])})"
_IN_WORDS = f"(?:{'|'.join(TENS)})(?:[- ]{_ONES})?|(?:{'|'.join(sorted(UNITS, key=len, reverse=True))})|a(?= hundred)"
NUMBER = re.compile(
    rf"(?<![\w.,])(?P<minus>(?<!\d)(?<!\d )[-−])?[$€£¥]?(?:(?P<digits>{_DIGITS})|(?P<words>{_IN_WORDS}))(?![\d])"
    rf"(?!(?:st|nd|rd|th)\b)(?:[ -]?(?P<times>{'|'.join(TIMES)})\b)?(?![a-z]+\d)",
    re.I,
)
DENIED = re.compile(
    r"(?:\b(?:not|no|never|nor|without|than|instead of)\b|n't\b)"
    r"(?: (?:an?|the|in|on|of|is|be|at|to|it|really|exactly|about|value|total|date|price))*[ \"'“$€£]*$",
    re.I,
)
REFUSED = re.compile(
    r"\b(?:can ?not|can't|could not|couldn't|unable to|not able to)\b|"
    r"\b(?:unreadable|illegible|unknown|unanswerable|unclear|n/a|i only know)\b|"
    r"\bnot (?:\w+ )?(?:readable|legible|visible|clear|given|shown|provided|possible|mentioned|present|there)\b|"
    r"n't (?:\w+ )?(?:readable|legible|visible|clear|given|shown|provided|possible|mentioned|present|there|see|read)\b|"
    r"\b(?:there is|i see|i have|with) no\b|\bno (?:image|picture|text|chart|receipt|table|date|number|total|answer)\b",
    re.I,
)
QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')
MARKED = re.compile(
    r"^.*?\b(?:reads?|says?|written(?: in this image)? is|texts? (?:is|are)|words? (?:is|are))\b:?", re.I
)


@dataclass(frozen=True)
class Judged:
    """What an answer gives, by the rule of its truth, and what that is worth."""

    extracted: str
    right: bool
    score: float  # 0 to 1; 0 or 1 for numbers, dates and choices
    refused: bool  # it gives nothing, and says so


def judge(reply: str, truth: dict, question: str = "") -> Judged:
    """Judge an answer by the rule of its truth, see the top of this file. `question` is what was asked."""
    text = unicodedata.normalize("NFC", reply).replace("’", "'").strip()
    found, score, right = RULES[truth["rule"]](text, truth, question)
    return Judged(found, right, score, not found and REFUSED.search(text) is not None)


def _one(found: Sequence[str], right: bool) -> tuple[str, float, bool]:
    """The result of a rule that asks for one answer: several different ones are wrong."""
    right = right and len(found) == 1
    return " | ".join(found), float(right), right


def _is_denied(text: str, at: int) -> bool:
    return DENIED.search(text[max(0, at - 60) : at]) is not None


# Numbers -----------------------------------------------------------------------------------------------------


def numbers(text: str) -> list[float]:
    """All numbers of a text, in order, but those that it denies."""
    return [value for value, at in _numbers(text) if not _is_denied(text, at)]


def _numbers(text: str) -> Iterator[tuple[float, int]]:
    for match in NUMBER.finditer(text):
        word = (match["words"] or "").lower()
        if word == "one" and not match["times"] and text.strip(" .!").lower() != "one":
            continue  # "this one", "the one on the left"
        value = _of_words(word) if word else _of_digits(match["digits"])
        value *= TIMES[match["times"].lower()] if match["times"] else 1
        yield (-value if match["minus"] else value), match.start()


def _of_words(words: str) -> float:
    return sum(WORDS.get(word, 1) for word in re.split("[- ]", words))  # a hundred is one hundred


def _of_digits(digits: str) -> float:
    whole = re.sub(r"[ '’\u00a0\u202f]", "", digits)
    if re.fullmatch(r"\d{1,3}(\.\d{3})+,\d{1,2}", whole):
        return float(whole.replace(".", "").replace(",", "."))
    if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", whole):
        return float(whole.replace(",", ""))
    return float(whole.replace(",", "."))


def _number(text: str, truth: dict, question: str) -> tuple[str, float, bool]:
    values = list(dict.fromkeys(numbers(text.rpartition("=")[2])))
    asked = {value for value, _ in _numbers(question)}
    values = [value for value in values if value not in asked] or values
    wanted = truth["answer"]
    near = [abs(value - wanted) <= truth["tolerance"] * abs(wanted) + 1e-9 for value in values]
    return _one([f"{value:.10g}" for value in values], all(near))


# Dates and choices -------------------------------------------------------------------------------------------

_MONTH = f"(?P<month>{'|'.join(MONTHS)})[a-z]*\\.?"
_DAY, _YEAR = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?", r"(?P<year>\d{4}|'?\d{2})(?!\d)"
DATES = tuple(
    re.compile(pattern, re.I)
    for pattern in (
        r"(?<!\d)(?P<year>\d{4})([-/. ])(?P<month>\d{1,2})\2(?P<day>\d{1,2})(?!\d)",
        r"(?<!\d)(?P<day>\d{1,2})([-/.])(?P<month>\d{1,2})\2(?P<year>\d{4}|\d{2})(?!\d)",
        r"(?<!\d)(?P<month>\d{1,2})([-/.])(?P<day>\d{1,2})\2(?P<year>\d{4}|\d{2})(?!\d)",
        rf"(?<!\d){_DAY}(?: of)?[ -]{_MONTH},?[ -]{_YEAR}",
        rf"\b{_MONTH} {_DAY},? {_YEAR}",
    )
)


def dates(text: str) -> set[date]:
    """All whole dates of a text that it does not deny; one that can be read in two ways gives both."""
    found = set()
    for pattern in DATES:
        for match in pattern.finditer(text):
            if not _is_denied(text, match.start()):
                found |= _as_date(match["year"].lstrip("'"), match["month"], match["day"])
    return found


def _as_date(year: str, month: str, day: str) -> set[date]:
    number = int(month) if month.isdigit() else MONTHS.index(month[:3].lower()) + 1
    try:
        return {date(int(year) + 2000 * (len(year) == 2), number, int(day))}
    except ValueError:  # the 31st of June, or a month 25
        return set()


def _date(text: str, truth: dict, question: str) -> tuple[str, float, bool]:
    found = sorted(day.isoformat() for day in dates(text))
    return _one(found, found == [truth["answer"]])


def _choice(text: str, truth: dict, question: str) -> tuple[str, float, bool]:
    terms = [(term.lower(), name) for name, forms in truth["options"].items() for term in forms]
    plain, found = text.lower(), set()
    for term, name in sorted(terms, key=lambda pair: -len(pair[0])):  # so that "goes up" is no "up"
        # Also in the singular: one of the "Apples" may be the "Apple" bar.
        for match in re.finditer(rf"(?<!\w){re.escape(term.removesuffix('s'))}(?:s|es)?(?!\w)", plain):
            if not _is_denied(plain, match.start()):
                found.add(name)
            plain = plain[: match.start()] + "#" * len(match[0]) + plain[match.end() :]
    return _one(sorted(found), found == {truth["answer"]})


# Text and HTML -----------------------------------------------------------------------------------------------


def anls(read: str, true: str) -> float:
    """1 - the share of edits, and 0 from one half of edits on (Biten and others, arXiv 1905.13648)."""
    share = edit_share(read, true)
    return 1 - share if share < 0.5 else 0.0


def _text(text: str, truth: dict, question: str) -> tuple[str, float, bool]:
    quoted = [next(filter(None, match.groups())) for match in QUOTED.finditer(text)]
    read = " ".join(quoted) if quoted else MARKED.sub("", text)
    read = " ".join(read.split())
    score = anls(read, truth["answer"])
    refused = score == 0 and REFUSED.search(text)
    return "" if refused else read, score, score == 1


ROLES = {"a": "link", "button": "button", "img": "image", "input": "field", "textarea": "field"}
ROLES |= {f"h{number}": "heading" for number in range(1, 7)}


class _Elements(HTMLParser):
    """The elements of ROLES, in order, each with the text within it; a field and an image have none."""

    def __init__(self):
        super().__init__()
        self.found: list[list[str]] = []
        self.open: list[list[str]] = []

    def handle_starttag(self, tag, attributes):
        role, given = ROLES.get(tag), dict(attributes)
        if tag == "input" and given.get("type") in ("submit", "button"):
            self.found.append(["button", given.get("value") or ""])
        elif role:
            self.found.append([role, ""])
            if role not in ("image", "field"):
                self.open.append(self.found[-1])

    def handle_endtag(self, tag):
        if ROLES.get(tag) in {role for role, _ in self.open}:
            while self.open.pop()[0] != ROLES[tag]:
                pass

    def handle_data(self, data):
        if self.open:  # the innermost one gets the text
            self.open[-1][1] += data


def elements(html: str) -> list[tuple[str, str]]:
    """The elements of a page that a sketch can have: role ("link", "heading", "image", "field", "button") and text.

    Those before the place where a page is so wrong that Python's parser gives up, such as "<![foo[".
    """
    parser = _Elements()
    with suppress(AssertionError):
        parser.feed(html)
        parser.close()
    return [(role, " ".join(text.lower().split())) for role, text in parser.found]


def f1(found: Sequence, wanted: Sequence) -> float:
    """F1 of a list against the true one, whatever the order; what is there twice counts twice."""
    common = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted)) if common else 0.0


def _html(text: str, truth: dict, question: str) -> tuple[str, float, bool]:
    found, wanted = elements(text), [(role, words) for role, words in truth["answer"]]
    score = f1(found, wanted)
    return json.dumps(found) if found else "", score, score == 1


# Boxes -------------------------------------------------------------------------------------------------------


def iou(one: Corners, other: Corners) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1, in the same unit (Jaccard, 1912)."""
    x0, y0, x1, y1 = (*map(max, one[:2], other[:2]), *map(min, one[2:], other[2:]))
    common = max(0.0, x1 - x0) * max(0.0, y1 - y0)
    both = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return common / (both - common)


def _box(text: str, truth: dict, question: str) -> tuple[str, float, bool]:
    box = read_box(text, (1, 1), pad=False)  # the drawn scenes are squares: padding leaves them as they are
    score = iou(box, truth["answer"]) if box else 0.0
    return ", ".join(f"{value:.2f}" for value in box) if box else "", score, score >= RIGHT_BOX


RULES = {"number": _number, "date": _date, "choice": _choice, "text": _text, "html": _html, "box": _box}
