"""Questions and their exact answers, on scenes built by hand."""

import re

import numpy as np
import pytest

from imp_kit.boxes import read_box
from imp_kit.experiments.drawings import COLORS, KINDS, TWO_COLORED, Scene, Thing
from imp_kit.nano.training import lessons
from imp_kit.nano.training.lessons import (
    BESIDE,
    LESSONS,
    ONLY_DRAWINGS,
    OUTSIDE,
    READING,
    SHORT_SUFFIX,
    SKILLS,
    WORDINGS,
    Turn,
    conversation,
    outside_conversation,
    page_conversation,
    page_question,
    question,
    score,
    spans_of_things,
)
from imp_kit.nano.training.text import Line, Page, sample_page


def thing(kind, colors, column=1, row=1, holding=None):
    return Thing(kind, tuple(colors.split()), column, row, (0.1, 0.1, 0.3, 0.3), holding)


def scene(*things):
    return Scene(things, (224, 224))


TOWN = scene(thing("tree", "green", 0, 0), thing("bus", "red white", 1, 1), thing("cup", "orange", 2, 2))
PERSON = scene(thing("person", "blue", 0, 1, ("brown", "box")), thing("cat", "black", 2, 0))
IDLE = scene(thing("person", "orange", 0, 1), thing("star", "red", 1, 0), thing("star", "red", 2, 1))
STARS = scene(thing("star", "red", 0, 0), thing("cat", "black", 1, 1), thing("star", "blue", 2, 2))
ONE = scene(thing("circle", "pink"))
SCENES = (TOWN, PERSON, IDLE, STARS, ONE)


def random_scene(rng):
    things = []
    cells = sorted((int(cell) // 3, int(cell) % 3) for cell in rng.permutation(9)[: rng.integers(1, 5)])
    for column, row in cells:
        kind = KINDS[rng.integers(len(KINDS))]
        two = kind in TWO_COLORED and rng.random() < 0.4
        picked = sorted(rng.permutation(len(COLORS))[: 2 if two else 1])
        holds = kind == "person" and rng.random() < 0.5
        held = (COLORS[rng.integers(len(COLORS))], ("box", "cup")[rng.integers(2)]) if holds else None
        things.append(thing(kind, " ".join(COLORS[i] for i in picked), column, row, held))
    return scene(*things)


def answers(skill, where, meaning=None, tries=60):
    """All answers of a skill on a scene, over many seeds."""
    rng = np.random.default_rng(0)
    asks = [ask for _ in range(tries) for ask in LESSONS[skill](where, rng)]
    return {ask.answer for ask in asks if meaning in (None, ask.meaning)}


def page(*lines, things=()):
    written = tuple(Line(text, (0.1, 0.1, 0.9, 0.2), (0.1, 0.9), " " in text) for text in lines)
    return Page(written, scene(*things))


CODE, CAPTIONED = page("K7X"), page("K7X", "The cats are red.")


def sampled(count, wording="trained", seed=0):
    rng = np.random.default_rng(seed)
    return [turn for _ in range(count) for turn in conversation(random_scene(rng), rng, 4, wording)]


def read(count, wording="trained", seed=0):
    """Turns about pages, and about what is no drawing."""
    rng = np.random.default_rng(seed)
    pages = [CAPTIONED, CODE, page("X", things=(thing("cat", "black"), thing("bus", "red", 2, 2)))]
    turns = [turn for i in range(count) for turn in page_conversation(pages[i % 3], rng, 4, wording)]
    return turns + [turn for _ in range(count // 4) for turn in outside_conversation(rng, 2, wording)]


def test_captions():
    assert answers("describe", TOWN, "caption") == {
        "The picture shows a green tree, a red and white bus and an orange cup."
    }
    assert answers("describe", IDLE, "caption") == {"The picture shows a person in an orange shirt and two red stars."}
    assert answers("describe", PERSON, "caption_one") == {
        "The picture shows a person in a blue shirt holding a brown box.",
        "The picture shows a black cat.",
    }
    people = scene(thing("person", "red", 0), thing("person", "red", 1), thing("person", "red", 2, 1, ("red", "cup")))
    assert answers("describe", people, "caption") == {
        "The picture shows two people in red shirts and a person in a red shirt holding a red cup."
    }


def test_captions_in_detail():
    assert answers("describe", ONE, "detail") == {"There is one thing. A pink circle is in the center."}
    assert answers("describe", PERSON, "detail") == {
        "There are two things. A person in a blue shirt is on the left, holding a brown box. "
        "A black cat is at the top right."
    }


def test_colors():
    assert answers("color", TOWN) == {"The tree is green.", "The bus is red and white.", "The cup is orange."}
    assert answers("color", PERSON) == {"The shirt is blue.", "The cat is black."}
    assert answers("color", STARS) == {"The cat is black."}


def test_shapes():
    assert answers("shape", ONE) == {"It is a circle."}
    colored = {(ask.slots["c"], ask.answer) for ask in LESSONS["shape"](TOWN, None) if "c" in ask.slots}
    assert colored == {("green", "It is a tree."), ("orange", "It is a cup.")}
    placed = {ask.slots["place"]: ask.answer for ask in LESSONS["shape"](TOWN, None) if "place" in ask.slots}
    assert placed["at the top left"] == placed["on the left"] == "It is a tree."
    assert placed["in the center"] == "It is a bus."
    assert "at the top right" not in placed


def test_counts():
    stars = answers("count", STARS, tries=300)
    assert {
        "There are two stars.",
        "There is one cat.",
        "There are no buses.",
        "There are no people.",
    } <= stars
    assert {"There are three things.", "There is one red thing.", "There are no green things."} <= stars
    held = answers("count", PERSON, tries=300)
    assert not any(" boxes" in answer or "brown" in answer or "two things" in answer for answer in held)


def test_positions():
    assert answers("position", STARS) == {
        "The red star is at the top left.",
        "The cat is in the center.",
        "The blue star is at the bottom right.",
    }


def test_yes_and_no():
    town = answers("yes_no", TOWN, tries=400)
    assert {"Yes, there is a bus.", "No, there is no cat.", "Yes, the bus is red and white."} <= town
    assert {"No, the tree is green.", "Yes, the tree is to the left of the bus."} <= town
    assert {"No, the bus is to the right of the tree.", "Yes, the tree is above the cup."} <= town
    assert answers("yes_no", PERSON, "is_holding") == {
        "Yes, the person is holding a box.",
        "No, the person is holding a box.",
    }
    assert answers("yes_no", IDLE, "is_holding") == {"No, the person is holding nothing."}
    for ask in LESSONS["yes_no"](TOWN, np.random.default_rng(0)):
        assert ask.slots.get("c") not in ("red", "white")


def test_holding():
    assert answers("holding", PERSON) == {"The person is holding a brown box."}
    assert answers("holding", IDLE) == {"The person is holding nothing."}
    assert question(TOWN, "holding", np.random.default_rng(0)) is None


def test_short_answers():
    asked = [turn for s in SCENES for seed in range(800) for turn in conversation(s, np.random.default_rng(seed), 2)]
    short = {(turn.skill, turn.answer) for turn in asked if turn.question.endswith(SHORT_SUFFIX)}
    expected = {
        ("color", "red and white"),
        ("shape", "circle"),
        ("count", "two"),
        ("count", "zero"),
        ("position", "top left"),
    }
    assert expected | {("yes_no", "yes"), ("yes_no", "no"), ("holding", "brown box"), ("holding", "nothing")} <= short
    assert "describe" not in {skill for skill, _ in short}
    turns = [turn for turn in sampled(1500) if turn.skill not in ("describe", "locate", "region")]
    assert 0.12 < np.mean([SHORT_SUFFIX in turn.question for turn in turns]) < 0.18


def test_same_seed_same_conversation():
    runs = [[conversation(s, np.random.default_rng(7), 5) for s in SCENES] for _ in range(2)]
    assert runs[0] == runs[1]


def test_every_question_is_new_and_every_skill_is_asked():
    rng = np.random.default_rng(1)
    for _ in range(300):
        turns = conversation(random_scene(rng), rng, 4)
        assert len({turn.question for turn in turns}) == len(turns) == 4
    skills = [turn.skill for turn in sampled(1000) + read(100)]
    assert set(skills) == set(SKILLS) == {*LESSONS, *READING, "second_turn", OUTSIDE}


def normal(text):
    text = text.removesuffix(SHORT_SUFFIX).lower().replace("colour", "color")
    return " ".join(re.sub(r"[][.?,:]", " ", text).split())


def test_unseen_wordings_never_occur_in_training():
    openers = "|".join(normal(o) + " " for o in lessons.ASK_OPENERS + lessons.DO_OPENERS)
    inside = "(" + "|".join(sorted(set(lessons.INSIDE))) + ")"
    patterns = []
    for wording in WORDINGS.values():
        for core in wording["unseen"]:
            core = normal(core.replace("{in}", "INSIDE")).replace("inside", inside)
            core = core.replace("{pic}", "(image|picture|drawing|photo)")
            patterns.append(f"(?:{openers})?" + re.sub(r"\{\w+\}", "[a-z0-9' ]+", core))
    unseen = re.compile("|".join(f"(?:{p})" for p in patterns))
    found = [turn.question for turn in sampled(2500) + read(1000) if unseen.fullmatch(normal(turn.question))]
    assert found == []
    turns = sampled(300, "unseen") + read(100, "unseen")
    assert all(unseen.fullmatch(normal(turn.question)) for turn in turns)


def test_unseen_wordings_use_only_trained_words():
    known = {w for turn in sampled(4000) + read(1000) for w in normal(turn.question).split()}
    for meaning, wording in WORDINGS.items():
        assert len(wording["trained"]) >= 7
        assert len(wording["unseen"]) >= 2
        for core in wording["unseen"]:
            words = set(normal(re.sub(r"\{\w+\}", "", core)).split()) - {"'s"}
            assert words <= known, (meaning, words - known)


@pytest.fixture(scope="module")
def trained_questions():
    return {turn.question for turn in sampled(20000) + read(1000)}


@pytest.mark.parametrize(
    "exact",
    [
        "What are the colors of the bus in the image?",
        "Describe the image.",
        "Describe the image in detail.",
        "Describe the person in the image.",
        "What is this?",
        "What color is the bus?",
        "Which colour?",
        "How many objects are there?",
        "Please provide the bounding box coordinate of the region this sentence describes: the bus.",
        "Read the text.",
        "Read only the upper line.",
        "Ignore the caption. What is written?",
    ],
)
@pytest.mark.slow
def test_promised_wordings_are_trained(exact, trained_questions):
    assert exact in trained_questions


def test_yes_and_no_are_balanced():
    said = [turn.answer.lower().startswith("yes") for turn in sampled(5000) if turn.skill == "yes_no"]
    assert 0.45 < np.mean(said) < 0.55


def test_follow_ups_refer_to_the_turn_before():
    rng = np.random.default_rng(3)
    seen = 0
    for _ in range(500):
        where = random_scene(rng)
        turns = question(where, "second_turn", rng)
        if turns is None:
            continue
        seen += 1
        first, second = turns
        assert second.skill == "second_turn"
        asks_it = not re.search(r"\bthe (\w+)", normal(second.question).replace("the same question about ", "")) or (
            re.search(r" it\b", normal(second.question))
        )
        if asks_it and not second.question.endswith(SHORT_SUFFIX):
            name = re.match(r"The (\w+) is", second.answer).group(1)
            assert name in normal(first.question) + " " + normal(first.answer)
    assert seen > 100
    assert question(ONE, "second_turn", rng) is None


def test_boxes():
    assert answers("locate", ONE, tries=400) >= {"[0.10, 0.10, 0.30, 0.30]", "There is no bus."}
    rng = np.random.default_rng(2)
    for _ in range(300):
        where = random_scene(rng)
        for ask in LESSONS["locate"](where, rng):
            box = read_box(ask.answer, where.size, pad=False)
            named = [t for t in where.things if t.kind == ask.slots["x"].split()[-1]]
            if box is None:
                color = ask.slots["x"].split()[0]
                assert not named or all(color not in t.colors for t in named)
            else:
                assert named


def test_a_thing_that_could_be_two_has_no_box():
    assert {ask.slots["x"] for _ in range(50) for ask in LESSONS["locate"](IDLE, np.random.default_rng(_))
            if ask.answer.startswith("[")} == {"person"}  # fmt: skip


def test_regions():
    assert answers("region", PERSON) == {
        "The region shows a person in a blue shirt holding a brown box.",
        "The region shows a black cat.",
    }
    rng = np.random.default_rng(0)
    for ask in LESSONS["region"](TOWN, rng):
        assert np.abs(np.subtract(read_box(ask.slots["box"], (1, 1), False), (0.1, 0.1, 0.3, 0.3))).max() <= 0.026


def said(skill, where):
    return {(ask.meaning, ask.answer, ask.short) for ask in READING[skill](where, np.random.default_rng(0))}


def test_reading():
    assert said("read", CODE) == {("read", 'The text reads "K7X".', "K7X")}
    assert said("read", CAPTIONED) == {("read", 'The text reads "K7X" and "The cats are red.".', None)}
    upper, lower = 'The upper line reads "K7X".', 'The lower line reads "The cats are red.".'
    assert said("line", CAPTIONED) == {
        ("upper", upper, "K7X"),
        ("code", upper, "K7X"),
        ("lower", lower, "The cats are red."),
    }
    assert {meaning for meaning, *_ in said("line", page("K7X", "AB"))} == {"upper", "lower"}
    assert said("line", CODE) == set()
    assert page_question(CODE, "line", np.random.default_rng(0)) is None
    assert answers("no_text", TOWN) == {"There is no text."}


def test_questions_about_a_page():
    rng = np.random.default_rng(0)
    for seed in range(200):
        where, _ = sample_page(np.random.default_rng(seed))
        turns = page_conversation(where, rng, 4)
        assert 1 <= len(turns) <= 4
        assert len({turn.answer for turn in turns}) == len(turns)
        assert {turn.skill for turn in turns} <= ({*READING, *BESIDE} if where.scene.things else set(READING))


def test_answers_know_the_things_that_they_are_about():
    rng = np.random.default_rng(0)
    for name in ("color", "position", "locate", "region"):
        for ask in LESSONS[name](TOWN, rng):
            assert len(ask.things) == (0 if "There is no" in ask.answer else 1)
            assert not ask.things or name in ("locate", "region") or f" {ask.things[0].kind} is" in ask.answer
    caption = Turn(
        "describe", "?", "The picture shows a green tree, a red and white bus and an orange cup.", TOWN.things
    )
    parts = {thing.kind: caption.answer[start:end] for thing, start, end in spans_of_things(caption)}
    assert parts == {
        "tree": "The picture shows a green tree",
        "bus": ", a red and white bus",
        "cup": " and an orange cup",
    }
    (detail,) = {ask.answer for ask in LESSONS["describe"](PERSON, rng) if ask.meaning == "detail"}
    parts = {t.kind: detail[a:b] for t, a, b in spans_of_things(Turn("describe", "?", detail, PERSON.things))}
    assert parts["person"].endswith("A person in a blue shirt is on the left, holding a brown box.")
    assert parts["cat"] == " A black cat is at the top right."
    stars = Turn("describe", "?", "The picture shows two red stars.", IDLE.things[1:])
    assert [thing.kind for thing, _, _ in spans_of_things(stars)] == ["star"]


def test_what_is_no_drawing_has_one_answer():
    assert {turn.answer for turn in read(400) if turn.skill == OUTSIDE} == {ONLY_DRAWINGS}
    assert ONLY_DRAWINGS not in {turn.answer for turn in sampled(2000)}


def test_score():
    assert score(" the bus is Red. ", "The bus is red.")
    assert score("two", "two")
    assert not score("The bus is red and white.", "The bus is red.")
