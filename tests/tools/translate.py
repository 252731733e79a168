"""The Japanese and Korean notebooks, made of the English ones and of one file a language: notebooks/ja.md, ko.md.

    python tests/tools/translate.py --todo [ja] [ko]   add to these files what is new in English, and mark what changed
    python tests/tools/translate.py                    write notebooks/ja/ and notebooks/ko/, and list what is missing

Code cells and outputs are the English ones. A cell of Markdown is translated by its id; where the translation is
missing, or the English text has changed since, the English cell is shown with a notice. docs/translating.md is for
translators.
"""

import calendar
import hashlib
import re
import sys
import unicodedata
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import nbformat
from first_cell import NOTEBOOKS
from nbformat import NotebookNode
from set_repository import repository

LANGUAGES = {"ja": "Japanese", "ko": "Korean"}
Key = tuple[str, str]  # of a text: the notebook's name without ending, and the cell's id

# What the pages say about themselves; translated as cells of a notebook `page`.
NOTICE = ("page", "notice")
REVIEW = ("page", "review")
PAGE = {
    NOTICE: "This part is not translated yet.",
    REVIEW: "No native speaker has read this translation yet. The text that counts is [the English one](ENGLISH).",
}
GLOSSARY = [
    "answer",
    "baseline",
    "bounding box",
    "caption",
    "cell (of a notebook)",
    "checkpoint",
    "chat",
    "confidence interval",
    "control (of an experiment)",
    "crop",
    "decode",
    "distortion",
    "exercise",
    "greedy decoding",
    "hub (Hugging Face)",
    "image",
    "load (a model)",
    "lure",
    "measure",
    "model",
    "parameters",
    "prefill",
    "probability",
    "prompt",
    "run (a cell)",
    "runtime (Colab)",
    "sample",
    "sampling",
    "score",
    "seed",
    "share (proportion)",
    "solution",
    "temperature",
    "token",
    "tokenizer",
    "vision tower",
    "weights",
]

MARK = re.compile(r"^<!-- (stale )?(\S+) (\S+) ([0-9a-f]{8})\n(.*?)\n-->\n", re.M | re.S)
BADGE = re.compile(r"\[!\[.*\]\(.*\)\n*")
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.M | re.S)
LINK = re.compile(r"""(\]\(|(?:src|href)=["'])([^)\s"']+)""")


@dataclass(frozen=True)
class Entry:
    """A translation, the English text that it was made of, and whether that has changed since."""

    key: Key
    digest: str
    english: str
    text: str = ""
    stale: bool = False

    def written(self) -> str:
        body = self.english.replace("-->", "--&gt;")
        stale = "stale " if self.stale else ""
        below = f"{self.text}\n\n" if self.text else "\n"
        return f"<!-- {stale}{' '.join(self.key)} {self.digest}\n{body}\n-->\n{below}"


@dataclass(frozen=True)
class Translation:
    """A file of one language: what stands above the entries, such as the glossary, and the entries."""

    top: str
    entries: dict[Key, Entry]

    def current(self, key: Key, english: str) -> str:
        """The translation of a text, "" where it is missing or stale."""
        entry = self.entries.get(key)
        return entry.text if entry and not entry.stale and entry.digest == digest(english) else ""


def digest(english: str) -> str:
    """What changes with a text; not with the address of the kit, which one command changes everywhere."""
    return hashlib.sha256(english.replace(repository(), "OWNER/NAME").encode()).hexdigest()[:8]


def names(folder: Path) -> list[str]:
    return [path.stem for path in sorted(folder.glob("*.ipynb"))]


def read_notebook(folder: Path, name: str) -> NotebookNode:
    return nbformat.read(folder / f"{name}.ipynb", as_version=4)


def without_badges(text: str) -> str:
    return BADGE.sub("", text)


def sources(folder: Path) -> dict[Key, str]:
    """The English texts to translate: of the pages themselves, and of each cell of Markdown, without badges."""
    cells = [(name, cell) for name in names(folder) for cell in read_notebook(folder, name).cells]
    return PAGE | {(name, cell.id): without_badges(cell.source) for name, cell in cells if cell.cell_type == "markdown"}


# The file of a language ------------------------------------------------------------------------------------


def read(file: Path) -> Translation:
    """Raises ValueError for an entry that cannot be read or stands there twice, and for an open conflict of git."""
    text = file.read_text("utf-8")
    if conflict := re.search(r"^(?:<{7}|>{7}) ", text, re.M):
        line = text.count("\n", 0, conflict.start()) + 1
        raise ValueError(f"{file.name}, line {line}: git left a conflict here; choose one of the two texts.")
    marks = list(MARK.finditer(text))
    entries: dict[Key, Entry] = {}
    for mark, end in zip(marks, [*(mark.start() for mark in marks), len(text)][1:], strict=True):
        stale, name, cell, found, english = mark.groups()
        translated = text[mark.end() : end].strip("\n")
        line = text.count("\n", 0, mark.start()) + 1
        if "<!--" in translated:
            raise ValueError(f"{file.name}: the entry after the one in line {line} does not begin as the others do.")
        if (name, cell) in entries:
            raise ValueError(f"{file.name}, line {line}: {name} {cell} stands there twice.")
        entries[name, cell] = Entry((name, cell), found, english.replace("--&gt;", "-->"), translated, bool(stale))
    top = text[: marks[0].start()] if marks else text
    if re.search(r"^<!-- ", top, re.M):
        raise ValueError(f"{file.name}: the first entry does not begin as the others do.")
    return Translation(top, entries)


def new_file(language: str) -> str:
    rows = "".join(f"| {term} | |\n" for term in GLOSSARY)
    return (
        f"# {LANGUAGES[language]}\n\nThe texts of the notebooks; docs/translating.md says how to work here.\n\n"
        f"## Glossary\n\n| English | {LANGUAGES[language]} |\n| --- | --- |\n{rows}\n## Texts\n\n"
    )


def update(language: str, folder: Path = NOTEBOOKS) -> None:
    """Add to a language's file what is new in English, and mark what changed; nothing that is translated is lost."""
    file = folder / f"{language}.md"
    if not file.exists():
        file.write_text(new_file(language), "utf-8")
    translation, wanted = read(file), sources(folder)
    left = {key: entry for key, entry in translation.entries.items() if key not in wanted and entry.text}
    entries = []
    for key, english in wanted.items():
        moved = next((each for each in left.values() if each.digest == digest(english)), None)
        entry = translation.entries.get(key) or moved or Entry(key, digest(english), english)
        if entry is moved:
            del left[entry.key]
        changed = entry.digest != digest(english)
        stale = bool(entry.text) and (entry.stale or changed)
        entries.append(replace(entry, key=key, digest=digest(english), english=english, stale=stale))
    entries += left.values()  # of cells that are gone
    file.write_text(translation.top + "".join(entry.written() for entry in entries).rstrip("\n") + "\n", "utf-8")


def open_texts(language: str, folder: Path = NOTEBOOKS) -> list[str]:
    """What is missing or stale in a language, and what no notebook has any more: a line for each notebook."""
    translation, wanted = read(folder / f"{language}.md"), sources(folder)
    found: dict[tuple[str, str], list[str]] = {}
    for (name, cell), english in wanted.items():
        if not translation.current((name, cell), english):
            entry = translation.entries.get((name, cell))
            found.setdefault((name, "stale" if entry and entry.text else "missing"), []).append(cell)
    for (name, cell), entry in translation.entries.items():
        if (name, cell) not in wanted and entry.text:
            found.setdefault((name, "in no notebook any more"), []).append(cell)
    return [f"{language} {name}, {state}: {', '.join(cells)}" for (name, state), cells in found.items()]


# What can be wrong with a translation ------------------------------------------------------------------------

SCALES = {
    **{"thousand": 10**3, "million": 10**6, "billion": 10**9},
    **{"千": 10**3, "万": 10**4, "百万": 10**6, "億": 10**8, "천": 10**3, "만": 10**4, "백만": 10**6, "억": 10**8},
}
AMOUNT = re.compile(rf"(\d+(?:,\d{{3}})*(?:\.\d+)?)(?:\s?({'|'.join(sorted(SCALES, key=len, reverse=True))}))?")
# What English spells and a translation may write with digits: numbers, months; and 1, as in 1枚の画像 for "the image".
SPELLED: dict[str, float] = {
    **{"no": 0, "none": 0, "zero": 0, "second": 2, "two": 2, "twice": 2, "both": 2, "pair": 2, "half": 2, "neither": 2},
    **{"three": 3, "third": 3, "four": 4, "quarter": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9},
    **{"ten": 10, "tenth": 10, "tenths": 10, "eleven": 11, "twelve": 12, "hundred": 100, "thousand": 1000},
}
MONTHS = {name.lower(): number for number, name in enumerate(calendar.month_name) if name}


def amounts(text: str) -> set[float]:
    """The numbers in a text that are written with digits: 8.3 million and 830万 are the same."""
    text = unicodedata.normalize("NFKC", text)
    return {round(float(digits.replace(",", "")) * SCALES.get(scale, 1), 6) for digits, scale in AMOUNT.findall(text)}


def faults(english: str, text: str) -> list[str]:
    """What a translation has that its English text has not, or the other way: numbers, code, links, headings."""
    found = []
    prose, translated = (re.sub(r"\]\([^)]*\)", "]", CODE.sub("", each)) for each in (english, text))
    wanted, given = amounts(prose), amounts(translated)
    words = re.findall(r"[a-z]+", prose.lower())
    spelled = {1} | {known[word] for known in (SPELLED, MONTHS) for word in words if word in known}
    if lost := wanted - given:
        found.append(f"numbers of the English text are missing: {shown(lost)}")
    if added := given - wanted - spelled:
        found.append(f"numbers that the English text has not: {shown(added)}")
    for what, pattern in (
        ("code", CODE),
        ("links", re.compile(r"(?:\]\(|(?:src|href)=[\"'])([^)\s\"']+)")),
        ("headings", re.compile(r"^(#+) ", re.M)),
        ("tags", re.compile(r"</?[a-z]+>")),
    ):
        before, after = (Counter(pattern.findall(each)) for each in (english, text))
        if what == "headings" and pattern.findall(english) != pattern.findall(text) or before != after:
            found.append(f"other {what}: {', '.join(sorted((before - after) + (after - before)))}")
    if english.count("\n\n</details>") != text.count("\n\n</details>"):
        found.append("an empty line is missing before </details>")
    if broken := re.search(r".{,8}[\u3000-\u9fff]\n[\u3000-\u9fff].{,8}", translated):
        found.append(f"a page shows this line break as a space: {broken[0]!r}")
    return found + unshown_emphasis(text)


def unshown_emphasis(text: str) -> list[str]:
    """Asterisks that stay asterisks: CommonMark wants **「word」** followed by a space or a punctuation mark."""

    def kind(character: str) -> str:
        category = unicodedata.category(character)
        return "mark" if category[0] in "PS" else "space" if character.isspace() else "letter"

    text = CODE.sub(lambda code: "x" * len(code[0]), text)
    opened: set[str] = set()
    found = []
    for stars in re.finditer(r"(?<![\\*])\*+", text):
        before, after = (kind(each) for each in (text[: stars.start()][-1:] or " ", text[stars.end() :][:1] or " "))
        if before == after == "space":
            continue  # a product, or the point of a list
        inner, outer = (before, after) if stars[0] in opened else (after, before)
        if inner == "space" or (inner == "mark" and outer == "letter"):
            found.append(f"not shown as bold or italic: {text[max(0, stars.start() - 10) : stars.end() + 5]!r}")
        opened ^= {stars[0]}
    return found + [f"{stars} has no end" for stars in sorted(opened)]


def shown(numbers: set[float]) -> str:
    return ", ".join(f"{number:,g}" if number < 1e6 else f"{number:,.0f}" for number in sorted(numbers))


def all_faults(language: str, folder: Path = NOTEBOOKS) -> list[str]:
    """What is wrong with the translations that are shown."""
    translation = read(folder / f"{language}.md")
    return [
        f"{language} {' '.join(key)}: {fault}"
        for key, english in sources(folder).items()
        if (text := translation.current(key, english))
        for fault in faults(english, text)
    ]


# The notebooks ---------------------------------------------------------------------------------------------


def relocated(text: str, language: str, notebooks: list[str]) -> str:
    """Markdown with links as they are one folder further down; those to a notebook lead to the translated one."""
    here = f"{repository()}/blob/main/notebooks/"

    def moved(link: re.Match) -> str:
        target = link[2]
        if here in target and target.rpartition(here)[2].removesuffix(".ipynb") in notebooks:
            target = target.replace(here, f"{here}{language}/")
        elif not re.match(r"[a-z]+:|#", target) and target.partition("#")[0].removesuffix(".ipynb") not in notebooks:
            target = f"../{target}"
        return link[1] + target

    return "".join(part if CODE.fullmatch(part) else LINK.sub(moved, part) for part in CODE.split(text))


def translated(name: str, language: str, folder: Path = NOTEBOOKS) -> NotebookNode:
    """An English notebook with its cells of Markdown in another language."""
    translation, notebooks = read(folder / f"{language}.md"), names(folder)
    notebook = read_notebook(folder, name)
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type != "markdown":
            continue
        english = without_badges(cell.source)
        badges = cell.source[: len(cell.source) - len(english)]
        text = translation.current((name, cell.id), english)
        if not text:
            notice = translation.current(NOTICE, PAGE[NOTICE]) or PAGE[NOTICE]
            text = f"*{notice}*\n\n{english}"
        cell.source = relocated(badges + text, language, notebooks)
        if place == 0:
            review = translation.current(REVIEW, PAGE[REVIEW]) or PAGE[REVIEW]
            address = f"https://github.com/{repository()}/blob/main/notebooks/{name}.ipynb"
            cell.source += f"\n\n*{review.replace('ENGLISH', address)}*"
    return notebook


def generated(language: str, folder: Path = NOTEBOOKS) -> dict[Path, str]:
    """The files of one language and what they have to hold."""
    return {
        folder / language / f"{name}.ipynb": nbformat.writes(translated(name, language, folder)) + "\n"
        for name in names(folder)
    }


def generate(folder: Path = NOTEBOOKS) -> list[str]:
    """Write the notebooks of all languages; return which changed. One whose English notebook is gone is removed."""
    changed = []
    for language in LANGUAGES:
        files = generated(language, folder)
        (folder / language).mkdir(exist_ok=True)
        for path in (folder / language).glob("*.ipynb"):
            if path not in files:
                path.unlink()
                changed.append(f"{language}/{path.name}")
        for path, text in files.items():
            if not path.exists() or path.read_text("utf-8") != text:
                path.write_text(text, "utf-8")
                changed.append(f"{language}/{path.name}")
    return changed


def main(arguments: list[str]) -> int:
    """Return 1 where a translation is wrong; what is missing or stale is listed only."""
    if arguments[:1] == ["--todo"]:
        languages = arguments[1:] or list(LANGUAGES)
        for language in languages:
            update(language)
    elif arguments:
        print(__doc__)
        return 2
    else:
        languages = list(LANGUAGES)
        print("changed:", ", ".join(generate()) or "none")
    wrong = [fault for language in languages for fault in all_faults(language)]
    print(*(text for language in languages for text in open_texts(language)), *wrong, sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
