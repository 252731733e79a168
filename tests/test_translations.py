"""The notebooks in other languages: made of the English ones and one file a language, by tests/tools/translate.py."""

import re
import warnings

import nbformat
import pytest
import translate
from first_cell import NOTEBOOKS
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_outputs import execute
from set_repository import repository
from translate import LANGUAGES, NOTICE, PAGE, REVIEW, digest, faults, open_texts, read, sources

NAMES = translate.names(NOTEBOOKS)
PAIRS = [pytest.param(name, language, id=f"{language}-{name}") for language in LANGUAGES for name in NAMES]
ONE_EACH = list(zip(NAMES, LANGUAGES, strict=False))
HERE = f"https://github.com/{repository()}/blob/main/notebooks/"
BADGES = (
    f"[![Colab](https://a.org/b.svg)](https://colab.research.google.com/github/{repository()}/blob/main/notebooks/00_a.ipynb)\n"
    f"[![Kaggle](https://a.org/k.svg)](https://kaggle.com/kernels/welcome?src={HERE}00_a.ipynb)\n\n"
)


# The notebooks of the project ------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_they_are_those_of_the_present_texts(language):
    wanted = translate.generated(language)
    there = {path: path.read_text("utf-8") for path in (NOTEBOOKS / language).glob("*.ipynb")}
    other = sorted(str(path) for path in wanted.keys() | there.keys() if wanted.get(path) != there.get(path))
    assert len(wanted) == len(NAMES) > 2
    assert other == [], "run: python tests/tools/translate.py"


@pytest.mark.parametrize(("name", "language"), PAIRS)
def test_their_code_is_the_english_one(name, language):
    english, other = (nbformat.read(folder / f"{name}.ipynb", 4).cells for folder in (NOTEBOOKS, NOTEBOOKS / language))
    assert [(cell.id, cell.cell_type) for cell in english] == [(cell.id, cell.cell_type) for cell in other]
    code = [[cell for cell in cells if cell.cell_type == "code"] for cells in (english, other)]
    assert code[0] == code[1] != []


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_translation_says_other_numbers_code_or_links(language):
    assert translate.all_faults(language) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_missing_or_stale_is_listed(language):
    """It fails nothing: the page shows the English text and says so; who improves that need not know the language."""
    if found := open_texts(language):
        warnings.warn("Texts to translate, see docs/translating.md:\n  " + "\n  ".join(found), stacklevel=1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "language"), ONE_EACH)
def test_they_run(name, language):
    """One of each language: their code is the English one, as tested above, and all English ones are run."""
    notebook = nbformat.read(NOTEBOOKS / language / f"{name}.ipynb", as_version=4)
    execute(notebook)


# One small notebook, in every state ------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Two notebooks in English, and no language yet."""
    shown = [new_output("stream", text="729\n")]
    for name in ("00_a", "01_b"):
        cells = [
            new_markdown_cell(BADGES.replace("00_a", name) + f"# Title of {name}\n\nA first text.", id="title"),
            new_code_cell("print(27 * 27)", id="code", outputs=shown),
            new_markdown_cell(
                f"There are 729 patches, see [next](01_b.ipynb), [the bus](../images/bus.png) of {name}.", id="text"
            ),
        ]
        nbformat.write(new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    return tmp_path


def write(folder, key, text):
    """As a translator does: a text below the English one."""
    file = folder / "ja.md"
    before = file.read_text("utf-8")
    after = re.sub(rf"(<!-- {' '.join(key)} .*?\n-->\n)", lambda mark: mark[0] + text + "\n", before, flags=re.S)
    assert before != after
    file.write_text(after, "utf-8")


def change(folder, old, new):
    path = folder / "00_a.ipynb"
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


def cells(folder, name="00_a"):
    translate.generate(folder)
    return {cell.id: cell for cell in nbformat.read(folder / "ja" / f"{name}.ipynb", 4).cells}


JAPANESE = "729個のパッチがあります。[次](01_b.ipynb)と[バス](../images/bus.png)を見てください。"


@pytest.fixture
def started(folder):
    translate.update("ja", folder)
    translate.update("ko", folder)
    return folder


def test_a_new_file_holds_every_text_and_the_glossary(started):
    file = read(started / "ja.md")
    assert {key: entry.english for key, entry in file.entries.items()} == sources(started)
    assert sources(started)["00_a", "title"] == "# Title of 00_a\n\nA first text."
    assert "| tokenizer | |" in file.top
    assert len(re.findall(r"^\| .* \| \|$", file.top, re.M)) >= 30
    assert open_texts("ja", started) == [
        "ja page, missing: notice, review",
        "ja 00_a, missing: title, text",
        "ja 01_b, missing: title, text",
    ]


def test_a_translated_cell_stands_among_the_english_code(started):
    write(started, ("00_a", "text"), JAPANESE)
    made = cells(started)
    assert made["text"].source == JAPANESE.replace("../images", "../../images")
    assert made["code"].outputs[0].text == "729\n"
    assert "ja 00_a, missing: title" in open_texts("ja", started)


def test_a_missing_text_is_english_with_a_notice_in_the_language(started):
    assert cells(started)["text"].source.startswith(
        f"*{PAGE[NOTICE]}*\n\nThere are 729 patches, see [next](01_b.ipynb)"
    )
    write(started, NOTICE, "まだです。")
    assert cells(started)["text"].source.startswith("*まだです。*\n\nThere are 729 patches")


def test_the_first_cell_opens_the_translated_notebook_and_links_to_the_english_one(started):
    write(started, REVIEW, "まだ。[英語版](ENGLISH)")
    write(started, ("00_a", "title"), "# 題")
    moved = BADGES.replace("notebooks/", "notebooks/ja/")
    assert cells(started)["title"].source == f"{moved}# 題\n\n*まだ。[英語版]({HERE}00_a.ipynb)*"


def test_a_changed_text_is_stale_until_the_translator_says_otherwise(started):
    write(started, ("00_a", "text"), JAPANESE)
    change(started, "There are 729", "It makes 729")
    assert "It makes 729" in cells(started)["text"].source  # also before --todo
    assert "ja 00_a, stale: text" in open_texts("ja", started)
    for _ in range(2):
        translate.update("ja", started)
        entry = read(started / "ja.md").entries["00_a", "text"]
        assert (entry.text, entry.stale) == (JAPANESE, True)
        assert entry.english.startswith("It makes 729")
        assert "It makes 729" in cells(started)["text"].source
    file = started / "ja.md"
    file.write_text(file.read_text("utf-8").replace("<!-- stale 00_a text", "<!-- 00_a text"), "utf-8")
    assert cells(started)["text"].source.startswith("729個")
    translate.update("ja", started)
    assert cells(started)["text"].source.startswith("729個")


def test_update_loses_nothing(started):
    for key in sources(started):
        write(started, key, f"{' '.join(key)} の729の訳\n\n- 点\n\n次の段落")
    file = started / "ja.md"
    file.write_text(file.read_text("utf-8").replace("| token | |", "| token | トークン |"), "utf-8")
    before = read(file)
    translate.update("ja", started)
    assert read(file) == before
    (started / "00_a.ipynb").unlink()
    translate.update("ja", started)
    after = read(file)
    assert after.top == before.top
    assert after.entries == before.entries
    assert open_texts("ja", started) == ["ja 00_a, in no notebook any more: title, text"]


def test_a_cell_that_moves_takes_its_translation_along(started):
    write(started, ("00_a", "text"), JAPANESE)
    change(started, '"id": "text"', '"id": "patches"')
    translate.update("ja", started)
    entries = read(started / "ja.md").entries
    assert entries["00_a", "patches"].text == JAPANESE
    assert ("00_a", "text") not in entries


def test_a_notebook_that_is_gone_is_removed(started):
    assert len(translate.generate(started)) == 4
    assert translate.generate(started) == []
    (started / "00_a.ipynb").unlink()
    changed = translate.generate(started)
    assert {"ja/00_a.ipynb", "ko/00_a.ipynb"} <= set(changed)
    assert not (started / "ja" / "00_a.ipynb").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<!-- 00_a text", "<!--00_a text", "the entry after"),
        ("<!-- 01_b text", "<!-- 00_a text", "twice"),
        ("<!-- page notice", "<!-- page", "the first entry"),
        ("<!-- 00_a text", "<<<<<<< HEAD\n<!-- 00_a text", "git left a conflict"),
    ],
)
def test_a_file_that_cannot_be_read_says_where(started, old, new, message):
    file = started / "ja.md"
    file.write_text(file.read_text("utf-8").replace(old, new), "utf-8")
    with pytest.raises(ValueError, match=message):
        read(file)


def test_another_address_of_the_kit_makes_nothing_stale():
    text = f"[docs](https://github.com/{repository()}/blob/main/docs/speed.md)"
    assert digest(text) == digest(text.replace(repository(), "OWNER/NAME"))
    assert digest(text) != digest(text + ".")


def test_a_comment_in_a_text_ends_no_entry(folder):
    change(folder, "A first text.", "Before <b>--></b> after.")
    translate.update("ja", folder)
    translate.update("ja", folder)
    assert read(folder / "ja.md").entries["00_a", "title"].english == "# Title of 00_a\n\nBefore <b>--></b> after."


@pytest.mark.parametrize(
    ("english", "text"),
    [
        ("729 patches, `x[0](1)`", "`x[0](1)`, 729個"),
        ("about 8.3 million numbers, 3 billion in all", "約830万個、合わせて30億個"),
        ("1,757 images", "1757장"),
        ("95 % of two images in September 2025", "2025年9月の2枚の画像の95％"),
        ("**Guess:** a * b", "**予想：** a * b"),
        ("* one\n* *two*", "* 一つ\n* *二つ*"),
        ("the image", "1枚の画像"),
        ("see [here](a.ipynb#part)", "[ここ](a.ipynb#part)を見る"),
    ],
)
def test_a_right_translation(english, text):
    assert faults(english, text) == []


@pytest.mark.parametrize(
    ("english", "text", "fault"),
    [
        ("729 patches", "792個", "missing: 729"),
        ("729 patches", "729個、3層", "has not: 3"),
        ("8.3 million", "83万", "missing: 8,300,000"),
        ("`a`", "`b`", "code"),
        ("```python\na = 1\n```", "```python\na = 2\n```", "code"),
        ("[a](b.md)", "[a](c.md)", "links"),
        ('<img src="b.png">', '<img src="c.png">', "links"),
        ("## A", "# A", "headings"),
        ("<details>\n\na\n\n</details>", "<details>\n\na\n</details>", "empty line"),
        ("<details>", "", "tags"),
        ("a word", "**「語」**は", "bold"),
        ("a word", "**語。**次", "bold"),
        ("a word", "**語", "no end"),
        ("One. Two.", "一つ。\n二つ。", "line break"),
    ],
)
def test_a_wrong_translation(english, text, fault):
    (found,) = [found for found in faults(english, text) if fault in found]
    assert found
