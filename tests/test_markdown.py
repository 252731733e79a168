"""Text in reports stands there as its letters, whatever renders it: two renderers show what a reader would see."""

import random
import re
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.util import find_spec

import mistune  # comes with Jupyter
import pytest
from planted import Planted

from imp_kit.experiments import plots
from imp_kit.experiments.captcha import probe as reading
from imp_kit.experiments.frames import frame_of
from imp_kit.experiments.japanese import probe as japanese
from imp_kit.experiments.markdown import block, plain, quoted, table
from imp_kit.experiments.report import write
from imp_kit.experiments.runs import Subject, run

# More than GitHub has, so that what is no markup there, but elsewhere, is none either.
EXTENSIONS = [
    *("table", "strikethrough", "url", "task_lists", "math", "mark", "superscript", "subscript", "insert"),
    *("footnotes", "def_list", "abbr", "spoiler", "ruby"),
]
RENDERERS: dict[str, Callable[[str], str]] = {"mistune": mistune.create_markdown(escape=False, plugins=EXTENSIONS)}
if find_spec("markdown_it"):  # comes with rich, which newer packages bring
    from markdown_it import MarkdownIt

    # CommonMark itself with GitHub's tables.
    RENDERERS["markdown-it"] = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render

ANSWERS = (
    *(
        "*L7_K_m*",
        "**b**",
        "_a_",
        "snake_case_name",
        "~~gone~~",
        "`code`",
        "``",
        "```",
        "`` ` ``",
        "==m==",
        "++i++",
        "^s^",
    ),
    *(
        "<unk>",
        "</s>",
        "<b>bold</b>",
        "<br>",
        "<!-- no -->",
        "<script>",
        "<https://x.de>",
        "a < b > c",
        "&amp;",
        "&#42;",
    ),
    *("[x](y)", "![x](y)", "[x]", "[x]: y", "[^1]", "x|y", "x\\|y", "|", "||", "| a | b |", "---", "| --- |"),
    *(
        "\\",
        "\\\\",
        "\\*",
        "a\\",
        "\\|",
        "\\\\|",
        "# head",
        "#",
        "- item",
        "+ item",
        "1. one",
        "2) two",
        "> quote",
        "- [ ] do",
    ),
    *(
        "a\nb",
        "\n",
        "\n\n# x\n\n",
        "a\r\nb",
        "\rx",
        "a  \nb",
        "    code",
        "\tcode",
        "lead ",
        " trail",
        "a  b",
        "   ",
        "\t",
    ),
    *(
        "http://a.de/x_y_z",
        "www.a.de",
        "https://a.de?b=*c*",
        "$x$",
        "$$x_1$$",
        "\\(x\\)",
        "$5 and $6",
        ":cat:",
        "@name",
        "#12",
    ),
    *(
        "日本語。「赤」",
        "赤い|青い",
        "\u3000全角\u3000",
        "a\u2028b",
        "é_è_",
        "{{x}}",
        "{x: y}",
        "a@b.de",
        "::: x",
        "!!! x",
        "K7XP",
        "",
    ),
)
MARKUP = "*_`|\\<>[]()#-+1.&;~$:@!\"'/={}^%?, \n\tahtpsw"


class Cells(HTMLParser):
    """The text of each cell of a page's tables, and the tags within them."""

    def __init__(self, page: str):
        super().__init__()
        self.rows, self.tags, self.inside = [], set(), False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True
        elif self.inside:
            self.tags.add(tag)
            if tag == "br":
                self.rows[-1][-1] += "\n"

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def lines(text: str) -> str:
    """Line ends of each kind are line ends."""
    return re.sub("\r\n|\r", "\n", text)


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("shown", [plain, quoted])
def test_a_text_in_a_cell_is_shown_as_its_letters(renderer, shown):
    rng = random.Random(0)
    texts = [*ANSWERS, *("".join(rng.choices(MARKUP, k=rng.randint(1, 14))) for _ in range(2000))]
    page = Cells(RENDERERS[renderer](table(["text", "end"], [[shown(text), "end"] for text in texts])))
    assert [row[0] for row in page.rows[1:]] == list(map(lines, texts))
    assert {row[1] for row in page.rows[1:]} == {"end"}
    assert page.tags == ({"br", "code"} if shown is quoted else {"br"})


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_text_in_a_heading_and_beside_a_picture_is_shown_as_its_letters(renderer):
    for text in ANSWERS:
        if text.strip() and "\n" not in lines(text):
            page = RENDERERS[renderer](f"# Probe: {plain(text)}\n\n![of {plain(text)}](a.png)\n")
            heading, alternative = re.search("<h1>(.*)</h1>", page)[1], re.search('alt="(.*?)"', page)[1]
            unmarked = HTMLParser(convert_charrefs=True)
            seen = []
            unmarked.handle_data = seen.append
            unmarked.feed(f"{heading}<hr>{alternative}<hr>")
            assert [each.strip() for each in seen] == [f"Probe: {text}".strip(), f"of {text}".strip()], page


def test_what_cannot_be_shown_is_shown_as_its_code():
    assert quoted("a\x00b\x1b[0m") == "<code>a&#92;x00b&#92;x1b&#91;0m</code>"
    assert quoted("\ud83d") == "<code>&#92;ud83d</code>"


def test_an_ordinary_answer_can_be_read_in_the_file_itself():
    for text in (
        "The bus is red and white.",
        'The text reads "K7XP", I think; 3/4 of it (50 %) - really?',
        "バスは赤いです。",
    ):
        assert quoted(text) == f"<code>{text}</code>"
    assert plain("imp-v1.5-3b") == "imp-v1.5-3b"


@pytest.mark.parametrize("renderer", RENDERERS)
def test_commands_are_shown_as_they_are(renderer):
    commands = ["python -m imp_kit report '/a b/`x`/```/$y$'", "<not> &amp; *this*"]
    page = RENDERERS[renderer](block(commands))
    assert page.startswith("<pre><code>")
    seen = []
    parser = HTMLParser(convert_charrefs=True)
    parser.handle_data = seen.append
    parser.feed(page)
    parser.close()
    assert "".join(seen).strip("\n") == "\n".join(commands)


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("name", ["captcha", "japanese"])
def test_answers_stand_in_a_report_as_they_were_given(tmp_path, name, renderer):
    experiment = {"captcha": reading, "japanese": japanese}[name]
    made = experiment.cases("smoke", 1)
    replies = dict(zip((case.id for case in made), ANSWERS[:: len(ANSWERS) // len(made)], strict=False))
    subject = Planted(made, lambda case, rng: replies[case.id], 0)
    subject.name = "my*check_point*|<b>"
    records = run(name, made, Subject.of(subject), tmp_path, design={"size": "smoke", "seed": 1})
    page = Cells(RENDERERS[renderer](write([tmp_path]).read_text("utf-8")))
    head = next(row for row in page.rows if "answer" in row)
    start = page.rows.index(head) + 1
    at = head.index("answer")
    seen = [row[at] for row in page.rows[start : start + 10] if len(row) == len(head)]
    shown = [record for record in records if record["truth"].get("code", True)]
    if name == "japanese":
        shown = [record for record in shown if record["factors"]["language"] != "English"]
    step = max(1, len(shown) // 10)
    assert seen == [lines(record["answer"]) for record in shown[::step][:10]]
    assert ["checkpoint", subject.name] in page.rows
    assert not page.tags & {"em", "strong", "b", "del", "script", "img"}


def test_a_name_in_a_picture_is_no_formula(tmp_path):
    for name in ("a$b$", "$\\none$", "_hidden"):
        figure = plots.ladder({name: frame_of([], {"experiment": "captcha"})})
        figure.savefig(tmp_path / "a.png")
        (axes,) = figure.axes
        assert axes.get_legend().get_texts()[0].get_text().replace("\\$", "$").strip() == name
