"""The held-out drawings of other origins, their questions and truths, and tests/tools/origins.py, which asks them."""

import json
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from origin_images import (
    INSTALL,
    PACKAGE,
    SHAPES,
    Drawing,
    IconFonts,
    OriginError,
    Thing,
    icon_fonts,
    icons,
    patches,
    shapes,
)
from origin_questions import (
    BUS_REGION,
    COLORS,
    COVERED,
    KINDS,
    KIT,
    NUMBERS,
    PLURALS,
    SKILLS,
    Asked,
    Question,
    absent_kinds,
    ask_about,
    kit_questions,
    origins,
    right_colors,
    right_counts,
    right_decisions,
    right_names,
    samples,
    wrong_colors,
)
from origins import CELL, COLUMNS, Reply, ask_all, digest, is_right, record, sheet, table
from PIL import Image

import imp_kit
from imp_kit.prompts import CAPTION, DESCRIBE_REGION, LOCATE
from imp_kit.system.extras import has

ROOT = Path(__file__).parents[1]
MAKERS = {
    "shapes": shapes,
    "icons": pytest.param(icons, marks=pytest.mark.skipif(not has(PACKAGE), reason=INSTALL)),
    "patches": patches,
}
every_origin = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
WORDS = {**{word: word for word in (*KINDS, *COLORS, "white")}, **{f"{kind}s": kind for kind in KINDS}}
WORDS |= {many: one for one, many in PLURALS.items()}


@pytest.fixture(scope="module")
def nano():
    return imp_kit.load("imp-nano", device="cpu", dtype="fp32")


def named(text, among):
    """Kinds or colors that a text names, in its order."""
    found = [WORDS[word] for word in re.findall(r"\w+", text.lower()) if word in WORDS]
    return [word for word in found if word in among]


@cache
def drawings(make):
    """Each group of one, two and equal things, twice."""
    return make(26)


def asked_of(made, shirts=True):
    return [
        Asked(str(index), drawing.image, "", ask_about(drawing, (1, index), shirts))
        for index, drawing in enumerate(made)
    ]


@every_origin
def test_a_drawing_is_a_function_of_its_number(make):
    some = drawings(make)
    assert digest(asked_of(make(9))) == digest(asked_of(some[:9]))
    assert len({drawing.image.tobytes() for drawing in some}) == len(some)


@every_origin
def test_truths_agree_with_what_is_drawn(make):
    """Each truth is judged once more, from the words of its question and the things of the drawing alone."""
    seen = Counter()
    for index, drawing in enumerate(drawings(make)):
        things = {thing.kind: thing.color for thing in drawing.things}
        for question in ask_about(drawing, (1, index)):
            kinds, colors = named(question.text, KINDS), named(question.text, (*COLORS, "white"))
            kinds += ["person"] if "shirt" in question.text and not kinds else []
            truth, case = question.right[0], question.skill
            if question.skill == "naming":
                (kind,) = [kind for kind, color in things.items() if not colors or color == colors[0]]
                assert truth == f"It is a {kind}"
            elif question.skill == "color":
                (color,) = {things[kind] for kind in kinds or things}
                assert named(truth, (*COLORS, "white")) == [color]
            elif question.skill == "count":
                number = sum(thing.kind == kinds[0] for thing in drawing.things)
                assert truth.split()[2] == NUMBERS[number]
                case = number
            else:
                yes = kinds[0] in things and colors in ([], [things.get(kinds[0])])
                assert truth.startswith("Yes" if yes else "No")
                case = f"{'color' if colors else 'kind'} {yes}"
            seen[case] += 1
    assert {"naming", "color", 1, 2, 3, 4, 5} <= seen.keys()
    assert min(seen[case] for case in ("kind True", "kind False", "color True", "color False")) >= 2


def test_nothing_disputable_is_asked():
    def absent(kind):
        return set(absent_kinds([Thing(kind, "red")]))

    assert not {"door", "box", *SHAPES} & absent("house")  # its door, its roof, its walls
    assert not {"circle", "triangle"} & absent("person")
    assert not {"box", "door", "square"} & absent("square")
    assert {"circle", "star", "bus", "cat"} <= absent("square")
    assert "brown" not in wrong_colors(Thing("tree", "green"))
    assert not {"red", "orange", "pink", "brown"} & set(wrong_colors(Thing("cup", "red")))
    person = Drawing(Image.new("RGB", (9, 9)), (Thing("person", "red"),), "")
    questions = [question for place in range(12) for question in ask_about(person, (1, place), shirts=False)]
    assert {question.skill for question in questions} == {"naming", "count", "yes/no"}
    assert not [question for question in questions if "shirt" in question.text]


@pytest.mark.slow
@pytest.mark.skipif(not has(PACKAGE), reason=INSTALL)
def test_each_origin_has_enough_of_each_skill():
    made = origins()
    assert len(made) == 4
    for origin, asked in made.items():
        counts = Counter(question.skill for each in asked for question in each.questions)
        least = 20 if origin == "sample images" else 60
        assert all(counts[skill] >= least for skill in SKILLS), (origin, counts)
        assert len({each.name for each in asked}) == len(asked)


def test_samples_have_all_skills_and_the_kits_own_questions():
    found = samples()
    assert {question.skill for each in found for question in each.questions} == {*SKILLS, KIT}
    for each in found:
        assert len({(question.skill, question.before, question.text) for question in each.questions}) == len(
            each.questions
        )


CALLS = {  # questions that the kit makes of a call, and the call, as a notebook's file has it
    CAPTION: "caption",
    LOCATE.format("the bus"): r"imp.locate(bus, \"the bus\")",
    LOCATE.format("the door"): r"imp.locate(picture, \"the door\")",
    DESCRIBE_REGION.format(BUS_REGION): "imp.describe(bus, box)",
}


def test_the_kits_own_questions_stand_where_they_are_said_to():
    for question in (question for some in kit_questions().values() for question in some):
        assert question.found_in
        for file in question.found_in:
            for text in (*question.before, question.text):
                assert CALLS.get(text, text) in (ROOT / file).read_text("utf-8"), (file, text)
    assert str(COVERED) in (ROOT / "notebooks/01_captioning.ipynb").read_text("utf-8")


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("There are three stars.", True),
        ("there are 3 stars", True),
        ("three", True),
        ("3", True),
        ("three gray stars", True),
        ("There are three grey stars.", True),
        ("There are three red stars.", False),
        ("There are two stars.", False),
        ("three or four", False),
        ("There are three squares.", False),
        ("", False),
    ],
)
def test_an_answer_is_right_in_the_taught_form_or_short(answer, right):
    question = Question("count", "How many stars are there?", right_counts(3, "star", "gray"))
    assert is_right(question, answer, (300, 300)) == right


@pytest.mark.parametrize(
    ("skill", "good", "bad"),
    [
        ("naming", ("It is a star.", "star", "A red star.", "The picture shows a red star."),
         ("It is a square.", "The picture shows a green star.", "It is red.", "I only know drawings.")),
        ("color", ("The star is red.", "red", "It is red"), ("The star is blue.", "The square is red.", "star")),
        ("yes/no", ("No, there is no bus.", "No.", "There is no bus.", "no, there are no buses"),
         ("Yes.", "Yes, there is a bus.", "No, there is no cat.", "There is a bus.")),
    ],
)  # fmt: skip
def test_answers_of_each_skill(skill, good, bad):
    star = Thing("star", "red")
    no_bus = right_decisions(False, ("there is no bus", "there are no buses"))
    question = Question(skill, "", {"naming": right_names(star), "color": right_colors(star), "yes/no": no_bus}[skill])
    assert [answer for answer in good if not is_right(question, answer, (9, 9))] == []
    assert [answer for answer in bad if is_right(question, answer, (9, 9))] == []


def test_a_box_is_right_from_half_overlap():
    question = Question(KIT, "", boxes=((0.1, 0.1, 0.5, 0.5), (0.6, 0.6, 1.0, 1.0)))
    assert is_right(question, "[0.10, 0.10, 0.50, 0.45]", (640, 420))
    assert is_right(question, "[0.62, 0.60, 0.99, 0.99]", (640, 420))
    assert not is_right(question, "[0.10, 0.10, 0.90, 0.90]", (640, 420))
    assert not is_right(question, "There is no bus.", (640, 420))


def test_without_the_fonts_the_error_says_how_to_get_them(tmp_path):
    with pytest.raises(OriginError, match=re.escape(INSTALL)):
        icon_fonts("a_package_that_nobody_has")
    with pytest.raises(OriginError, match="version 1.4.2"):
        IconFonts(tmp_path).glyph("fa6:bus", 50)


@pytest.mark.slow
@pytest.mark.skipif(has(PACKAGE), reason=f"{PACKAGE} is installed")
def test_the_command_ends_with_one_sentence_where_the_fonts_are_missing():
    command = [sys.executable, "tests/tools/origins.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(f"it is missing: {INSTALL}.")
    assert "Traceback" not in done.stderr


def check_asked(nano, asked):
    replies = ask_all(nano, asked)
    assert len(replies) == sum(len(each.questions) for some in asked.values() for each in some)
    rows = {tuple(row.split(" | ")[:2]) for row in table(replies).splitlines()[2:]}
    assert rows == {(f"| {reply.origin}", reply.question.skill) for reply in replies}
    kept = json.loads(json.dumps(record(nano, asked, replies)))
    assert sum(cell["total"] for skills in kept["shares"].values() for cell in skills.values()) == len(kept["replies"])
    assert kept["sets_sha256"].keys() == asked.keys()
    return replies


def test_questions_are_asked_counted_and_recorded(nano):
    """Those of one image with other turns before them, and those of others, each get their own answer."""
    door = samples()[1]
    chats = [question for question in door.questions if question.before]
    assert {len(chat.before) for chat in chats} == {1, 2}
    plain = [question for question in door.questions if not question.before][-3:]
    asked = {"shapes": asked_of(drawings(shapes)[:2]), "samples": [Asked("door", door.image, "", (*chats, *plain))]}
    replies = check_asked(nano, asked)
    assert [reply.question for reply in replies] == [
        question for some in asked.values() for each in some for question in each.questions
    ]
    for reply in replies[-6:]:
        chat = nano.chat(door.image)
        assert [str(chat.say(text)) for text in (*reply.question.before, reply.question.text)][-1] == reply.answer


def test_a_sheet_shows_each_wrong_answer():
    asked = asked_of(drawings(shapes)[:6])
    wrong = [Reply("drawn", each.name, "", each.questions[0], "It is a bus.", False) for each in asked]
    page = sheet(asked, wrong)
    assert page.width == COLUMNS * CELL
    assert page.height > 2 * CELL  # six images, five in a row
    ground = page.getpixel((0, 0))
    for number in range(6):
        x, y = number % 5 * CELL, number // 5 * (page.height // 2)
        assert page.crop((x, y, x + CELL, y + CELL)).getcolors(1 << 20) != [(CELL * CELL, ground)]


@pytest.mark.slow
def test_a_sample_of_all_origins_is_asked(nano):
    asked = {"shapes": asked_of(shapes(13)), "patches": asked_of(patches(13)), "samples": samples()}
    if has(PACKAGE):
        asked["icons"] = asked_of(icons(13), shirts=False)
    replies = check_asked(nano, asked)
    right = sum(reply.right for reply in replies)
    assert right > len(replies) / 4  # far below what was ever measured: the questions reach the checkpoint
