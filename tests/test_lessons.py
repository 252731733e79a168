"""Questions and their exact answers, on scenes built by hand."""

import re
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from imp_kit.boxes import read_box
from imp_kit.errors import SettingError
from imp_kit.experiments.drawings import COLORS, KINDS, TWO_COLORED, Scene, Thing, sample_scene
from imp_kit.nano.training import lessons
from imp_kit.nano.training.lessons import (
    BESIDE,
    LESSONS,
    ONLY_DRAWINGS,
    OUTSIDE,
    READING,
    SHORT_SUFFIX,
    SKILLS,
    WHICH_ONE,
    WORDINGS,
    Turn,
    branches,
    outside_branches,
    page_branches,
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


def about_things(skill, where, meaning=None):
    """The answers that are about a thing that is there, and no question in return."""
    return {a for a in answers(skill, where, meaning) if not a.startswith("There is no ") and a != WHICH_ONE}


def page(*lines, things=()):
    written = tuple(Line(text, (0.1, 0.1, 0.9, 0.2), (0.1, 0.9), " " in text) for text in lines)
    return Page(written, scene(*things))


CODE, CAPTIONED = page("K7X"), page("K7X", "The cats are red.")


def sampled(count, wording="trained", seed=0):
    rng = np.random.default_rng(seed)
    return [turn for _ in range(count) for turns in branches(random_scene(rng), rng, 4, wording) for turn in turns]


def read(count, wording="trained", seed=0):
    """Turns about pages, and about what is no drawing."""
    rng = np.random.default_rng(seed)
    pages = [CAPTIONED, CODE, page("X", things=(thing("cat", "black"), thing("bus", "red", 2, 2)))]
    chats = [turns for i in range(count) for turns in page_branches(pages[i % 3], rng, 4, wording)]
    return [turn for turns in chats + outside_branches(rng, count // 2, wording) for turn in turns]


def test_captions():
    assert answers("describe", TOWN, "caption") == {
        "The picture shows a green tree, a red and white bus and an orange cup."
    }
    assert answers("describe", IDLE, "caption") == {"The picture shows a person in an orange shirt and two red stars."}
    assert about_things("describe", PERSON, "caption_one") == {
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
    assert about_things("color", TOWN) == {"The tree is green.", "The bus is red and white.", "The cup is orange."}
    assert about_things("color", PERSON) == {"The shirt is blue.", "The cat is black.", "The box is brown."}
    assert about_things("color", STARS) == {"The cat is black."}


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
    assert "There is one box." in held
    assert not any(" boxes" in answer or "brown" in answer or "two things" in answer for answer in held)
    both = scene(*PERSON.things, thing("box", "red", 2, 2))
    assert "There are two boxes." in answers("count", both, tries=300)


def test_positions():
    assert about_things("position", STARS) == {
        "The red star is at the top left.",
        "The cat is in the center.",
        "The blue star is at the bottom right.",
    }


def test_yes_and_no():
    town = answers("yes_no", TOWN, tries=400)
    assert {"Yes, there is a bus.", "No, there is no cat.", "Yes, the bus is red and white."} <= town
    assert {"No, the tree is green.", "Yes, the tree is to the left of the bus."} <= town
    assert {"No, the bus is to the right of the tree.", "Yes, the tree is above the cup."} <= town
    held = answers("yes_no", PERSON, tries=400)
    assert {
        "Yes, there is a box.",
        "Yes, there is a brown box.",
        "Yes, the box is brown.",
        "No, the box is brown.",
    } <= held
    assert not {"No, there is no box.", "No, there is no brown box."} & held
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
    rng = np.random.default_rng(0)
    asked = [turn for s in SCENES for _ in range(500) for turns in branches(s, rng, 2) for turn in turns]
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


def test_same_seed_same_conversations():
    runs = [[branches(s, np.random.default_rng(7), 5) for s in SCENES] for _ in range(2)]
    assert runs[0] == runs[1]


def test_every_question_is_new_and_every_skill_is_asked():
    rng = np.random.default_rng(1)
    for _ in range(300):
        turns = [turn for turns in branches(random_scene(rng), rng, 4) for turn in turns]
        first = [turn.question for turn in turns if turn.skill != "second_turn"]
        assert len(set(first)) == len(first) >= 2  # of a bare scene there is less to ask
        in_full = [turn.answer for turn in turns if SHORT_SUFFIX not in turn.question]
        assert len(set(in_full)) == len(in_full)
    skills = [turn.skill for turn in sampled(1000) + read(100)]
    assert set(skills) == set(SKILLS) == {*LESSONS, *READING, "second_turn", OUTSIDE}


def normal(text):
    text = text.removesuffix(SHORT_SUFFIX).lower().replace("colour", "color")
    return " ".join(re.sub(r"[][.?,:]", " ", text).split())


def template(core):
    """A template without case, punctuation, and the places for the image and its other names."""
    return normal(core.replace("{in}", "").replace("{pic}", "picture").replace("{", " SLOT").replace("}", ""))


def test_no_trained_template_is_an_unseen_one():
    cores = [core for wording in WORDINGS.values() for core in wording["trained"]]
    clauses = [core[1:] for core in cores if core.startswith("~")]
    trained = {template(core) for core in cores} | {
        template(f.replace("{}", c)) for f in lessons.LEADS for c in clauses
    }
    unseen = {template(core) for wording in WORDINGS.values() for core in wording["unseen"]}
    assert len(trained) > 1000
    assert not trained & unseen


def test_each_wording_is_listed_once():
    for meaning, wording in WORDINGS.items():
        for cores in wording.values():
            assert len(set(cores)) == len(cores), meaning


def test_a_question_has_one_meaning():
    """But for "it": a first question and a later one ask about another thing by the same words."""
    meanings = defaultdict(set)
    for meaning, wording in WORDINGS.items():
        for core in (*wording["trained"], *wording["unseen"]):
            for picture in lessons.PICTURES:
                for inside in lessons.INSIDE:
                    text = core.removeprefix("~").replace("{pic}", picture).replace("{in}", inside)
                    meanings[normal(text)].add(re.sub("^(it|alone)_", "", meaning))
    assert len(meanings) > 1000
    assert {text: found for text, found in meanings.items() if len(found) > 1} == {}


def test_unseen_wordings_never_occur_in_training():
    names = f"(({'|'.join(COLORS)}) )?(({'|'.join(COLORS)}) and )?(({'|'.join(COLORS)}) )?"
    slots = {"x": f"(person's shirt|{names}({'|'.join(KINDS)}))", "box": "[0-9 ]+"}
    slots["y"] = slots["x"]
    openers = "|".join(normal(o) + " " for o in lessons.ASK_OPENERS + lessons.DO_OPENERS)
    inside = "(" + "|".join(sorted(set(lessons.INSIDE))) + ")"
    patterns = []
    for meaning, wording in WORDINGS.items():
        opener = "" if meaning.startswith(("it_", "and_")) else f"(?:{openers})?"  # a follow-up has none
        for core in wording["unseen"]:
            core = normal(core.replace("{in}", "INSIDE")).replace("inside", inside)
            core = core.replace("{pic}", "(image|picture|drawing|photo)")
            for slot, pattern in slots.items():
                core = core.replace(f"{{{slot}}}", pattern)
            patterns.append(opener + re.sub(r"\{\w+\}", "[a-z0-9' ]+", core))
    unseen = re.compile("|".join(f"(?:{p})" for p in patterns))
    found = [turn.question for turn in sampled(2500) + read(1000) if unseen.fullmatch(normal(turn.question))]
    assert found == []
    turns = sampled(300, "unseen") + read(100, "unseen")
    assert all(unseen.fullmatch(normal(turn.question)) for turn in turns)


def test_unseen_wordings_use_only_trained_words():
    known = {w for turn in sampled(3000) + read(800) for w in normal(turn.question).split()}
    for meaning, wording in WORDINGS.items():
        assert len(wording["trained"]) >= 16
        assert len(wording["unseen"]) >= 4
        for core in wording["unseen"]:
            words = set(normal(re.sub(r"\{\w+\}", "", core)).split()) - {"'s"}
            assert words <= known, (meaning, words - known)


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
        "Count the cats.",
        "Color of the cat?",
        "Cat: where?",
        "color of the bus",
        "how many cats",
        "Number of trees?",
        "What color is it?",
        "Where is it?",
    ],
)
def test_promised_wordings_are_trained(exact):
    slots = {"in": f"(?:{'|'.join(lessons.INSIDE)})", "pic": f"(?:{'|'.join(lessons.PICTURES)})"}

    def becomes(core):
        parts = re.split(r"\{(\w+)\}", core.rstrip("?."))
        texts = [slots.get(part, ".+") if number % 2 else re.escape(part) for number, part in enumerate(parts)]
        return re.fullmatch("".join(texts), exact.replace("colour", "color").rstrip("?."), re.IGNORECASE)

    assert any(becomes(core) for wording in WORDINGS.values() for core in wording["trained"])


def test_yes_and_no_are_balanced():
    said = [turn.answer.lower().startswith("yes") for turn in sampled(3000) if turn.skill == "yes_no"]
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
    three = page("K7X", "AB", "Two cups")
    assert said("read", three) == {("read", 'The text reads "K7X" and "AB" and "Two cups".', None)}
    assert said("read", page(*["The cats are red."] * 3)) == said("line", three) == set()
    assert page_question(CODE, "line", np.random.default_rng(0)) is None
    assert answers("no_text", TOWN) == {"There is no text."}


def test_questions_about_a_page():
    rng = np.random.default_rng(0)
    for seed in range(200):
        where, _ = sample_page(np.random.default_rng(seed))
        turns = [turn for turns in page_branches(where, rng, 4) for turn in turns]
        assert 1 <= len(turns) <= 4
        assert len({turn.answer for turn in turns}) == len(turns)
        assert {turn.skill for turn in turns} <= {*READING, *BESIDE}


def test_answers_know_the_things_that_they_are_about():
    rng = np.random.default_rng(0)
    for name in ("color", "position", "locate", "region"):
        for ask in [ask for _ in range(20) for ask in LESSONS[name](TOWN, rng)]:
            assert len(ask.things) == (0 if "There is no" in ask.answer or ask.answer == WHICH_ONE else 1)
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
    boxes = (thing("box", "white", 0), thing("box", "white", 1), thing("box", "black white", 2))
    alike = Turn("describe", "?", "The picture shows two white boxes and a black and white box.", boxes)
    assert [(each, alike.answer[a:b]) for each, a, b in spans_of_things(alike)] == [
        (boxes[0], "The picture shows two white box"),
        (boxes[2], "es and a black and white box"),
    ]


def test_answers_know_the_people_that_they_are_about():
    one, two = (thing("person", "red", column) for column in (0, 1))
    cat = thing("cat", "blue", 2)
    answer = "The picture shows two people in red shirts and a blue cat."
    spans = spans_of_things(Turn("describe", "?", answer, (one, two, cat)))
    assert [(each, answer[a:b]) for each, a, b in spans] == [
        (one, "The picture shows two people in red shirts"),
        (cat, " and a blue cat"),
    ]
    third = replace(two, holding=("purple", "box"))
    answer = "The picture shows two people in red shirts and a person in a red shirt holding a purple box."
    spans = spans_of_things(Turn("describe", "?", answer, (one, two, third)))
    assert [(each, answer[a:b]) for each, a, b in spans] == [
        (one, "The picture shows two people in red shirts"),
        (third, " and a person in a red shirt holding a purple box"),
    ]
    one, two = (replace(each, holding=("blue", "cup")) for each in (one, two))
    person = "a person in a red shirt holding a blue cup"
    answer = f"The picture shows {person}, {person} and a blue cat."
    spans = spans_of_things(Turn("describe", "?", answer, (one, two, cat)))
    assert [(each, answer[a:b]) for each, a, b in spans] == [
        (one, f"The picture shows {person}"),
        (two, f", {person}"),
        (cat, " and a blue cat"),
    ]


def asked(skill, meanings, seeds=300):
    """Scenes with the questions of a skill that have one of these meanings."""
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        where = sample_scene(rng)
        for _ in range(3):
            for ask in LESSONS[skill](where, rng):
                if ask.meaning in meanings:
                    yield where, ask


def shown(where):
    held = [each.holding for each in where.things if each.holding]
    return {each.kind for each in where.things} | {kind for _, kind in held}


@pytest.mark.parametrize(
    ("skill", "meanings"),
    [
        ("describe", ("caption_one",)),
        ("color", ("color", "shirt", "wearing")),
        ("position", ("position",)),
        ("holding", ("holding",)),
    ],
)
def test_who_asks_about_what_is_not_there_is_told_so(skill, meanings):
    absent = there = 0
    for where, ask in asked(skill, meanings):
        words = "person" if skill == "holding" or ask.meaning in ("shirt", "wearing") else ask.slots["x"]
        *colors, kind = words.split()
        of_kind = [each for each in where.things if each.kind == kind]
        if ask.answer.startswith("There is no "):
            absent += 1
            assert ask.answer == f"There is no {words}."
            assert ask.short in (None, f"no {words}")
            assert not ask.things
            assert ask.topic is None
            assert kind not in shown(where) or colors and not any(colors[0] in each.colors for each in of_kind)
        else:
            there += 1
            assert kind in shown(where)
            assert of_kind or skill == "color"
    assert absent > 10
    assert there > 2 * absent


def test_it_in_a_first_question_is_the_only_thing_or_needs_a_question_in_return():
    def its(skill, where):
        return answers(skill, where, f"alone_{skill}", tries=100)

    assert (its("color", ONE), its("position", ONE)) == ({"The circle is pink."}, {"The circle is in the center."})
    alone = scene(thing("person", "blue", 0, 1))
    assert (its("color", alone), its("position", alone)) == ({"The shirt is blue."}, {"The person is on the left."})
    holder = scene(thing("person", "blue", 0, 1, ("red", "cup")))
    for where in (TOWN, PERSON, IDLE, STARS, holder):
        assert its("color", where) == its("position", where) == {WHICH_ONE}
    for skill in ("color", "position"):
        for where, ask in asked(skill, (f"alone_{skill}",)):
            only = len(where.things) == 1 and not where.things[0].holding
            assert (ask.answer == WHICH_ONE) == (not only)
            assert ask.things == (where.things if only else ())


def test_only_a_first_question_says_it_without_a_thing():
    rng = np.random.default_rng(0)
    later = [turn for _ in range(600) for turns in branches(random_scene(rng), rng, 4) for turn in turns[1:]]
    pages = [sample_page(np.random.default_rng(seed))[0] for seed in range(60)]
    on_pages = [turn for each in pages for turns in page_branches(each, rng, 6) for turn in turns]
    assert WHICH_ONE not in {turn.answer for turn in later + on_pages}
    chats = [turns for _ in range(400) for turns in branches(ONE, rng, 4)]
    for which, always in ((slice(1), False), (slice(1, None), True)):
        asked = [turn.question.lower() for turns in chats for turn in turns[which] if turn.skill == "position"]
        named = [re.search(rf"\b({'|'.join(KINDS)})\b", question) for question in asked]
        assert all(named) == always
    assert WHICH_ONE in {turns[0].answer for _ in range(400) for turns in branches(TOWN, rng, 1)}


def test_only_a_first_question_says_this_of_the_picture():
    """After another question "this", "it" or "here" would be what was spoken of."""
    clear = re.compile(r"(it )?that (you|we|can|the|is|this)|this (a )?\{pic\}(:.*)?|text\{in\}.*", re.IGNORECASE)
    pointing = {
        core
        for meaning in ("caption", "what", "read")  # other questions name what they are about
        for core in (*WORDINGS[meaning]["trained"], *WORDINGS[meaning]["unseen"])
        if re.search(r"\b(it|this|that|here)\b", clear.sub("", core), re.IGNORECASE)
    }
    assert pointing == lessons.FIRST_ONLY
    rng = np.random.default_rng(0)
    alone = {normal(core.replace("{in}", "")) for core in lessons.FIRST_ONLY if core[0] != "~"}
    chats = [turns for _ in range(1500) for turns in branches(ONE, rng, 4)]
    chats += [turns for _ in range(1500) for turns in page_branches(CAPTIONED, rng, 4) + outside_branches(rng, 2)]
    for which, some in ((slice(1), True), (slice(1, None), False)):
        said = {normal(turn.question) for turns in chats for turn in turns[which]}
        assert bool(alone & said) == some
        assert {"what is in the image", "read the text"} <= said
    later = [question(ONE, "shape", rng, first=False)[0].question for _ in range(400)]
    assert alone & {normal(question(ONE, "shape", rng)[0].question) for _ in range(100)}
    assert not alone & set(map(normal, later))
    for first in (True, False):
        asked = [question(TOWN, "color", rng, first=first) for _ in range(200)]
        assert (WHICH_ONE in {turns[0].answer for turns in asked if turns}) == first


def test_up_to_nine_things():
    cells = [(column, row) for column in range(3) for row in range(3)]
    for count in range(1, 10):
        many = scene(*(thing("circle", "red", *cell) for cell in cells[:count]))
        words = "a red circle" if count == 1 else f"{lessons.NUMBERS[count]} red circles"
        assert answers("describe", many, "caption") == {f"The picture shows {words}."}
        there = "There is one circle." if count == 1 else f"There are {lessons.NUMBERS[count]} circles."
        counted = answers("count", many, tries=150)
        assert there in counted
        assert "There are no buses." in counted
        detailed = answers("describe", many, "detail")
        assert len(detailed) == (count <= lessons.MOST_DETAILED)
    mixed = scene(*(thing("circle", "red", *cell) for cell in cells[:3]), thing("cup", "blue", 1, 0))
    assert answers("describe", mixed, "caption") == {"The picture shows three red circles and a blue cup."}
    rng = np.random.default_rng(0)
    for _ in range(20):
        kinds = rng.permutation(KINDS)[:9]
        full = scene(*(thing(str(kind), "green", *cell) for kind, cell in zip(kinds, cells, strict=True)))
        asked = [turn for turns in branches(full, rng, 6) for turn in turns if turn.skill != "second_turn"]
        assert len(asked) == 6


def test_questions_are_typed_as_people_type():
    rng = np.random.default_rng(0)
    text = "Please tell me: how many red circles are there?"
    names = {"red", "circles"}
    for _ in range(300):
        wrong = lessons._misspelled(text, rng)
        pairs = list(zip(text.split(), wrong.split(), strict=True))
        different = [(one, other) for one, other in pairs if one != other]
        assert len(different) <= 1  # none where a letter was swapped with its like
        for one, other in different:
            assert one not in names
            assert len(one.strip(":?")) >= 4
            assert one[0] == other[0]
            assert abs(len(one) - len(other)) <= 1
    assert lessons._misspelled("Cat: where?", rng) != "Cat: where?"
    assert lessons._misspelled("[0.10, 0.20, 0.30, 0.40]: red box?", rng) == "[0.10, 0.20, 0.30, 0.40]: red box?"
    questions = [turn.question.removesuffix(SHORT_SUFFIX) for turn in sampled(1200)]
    for share, is_so in (
        (0.2, str.isupper),
        (0.1, str.islower),
        (0.01, lambda text: text.endswith("??")),
        (0.15, lambda text: text[-1] not in "?.]"),
        (0.01, lambda text: "colour" in text.lower()),
    ):
        assert share / 2 < np.mean([is_so(text) for text in questions]) < 3 * share, share
    unseen = [turn.question for turn in sampled(300, "unseen")]
    assert not any(text.isupper() or "??" in text for text in unseen)


def test_noise_leaves_kinds_colors_and_boxes_readable():
    rng = np.random.default_rng(0)
    for seed in range(300):
        where = random_scene(np.random.default_rng(seed))
        for skill, slot in (("position", "x"), ("region", "box"), ("count", "xs")):
            for ask in LESSONS[skill](where, rng):
                if slot not in ask.slots:
                    continue
                asked_for = lessons._worded(skill, ask, rng, "trained").question.lower().replace("grey", "gray")
                for word in ask.slots[slot].split():
                    assert word in asked_for or word == "things", (word, asked_for)


def test_branches_are_independent_questions():
    rng, followed, going_on, count = np.random.default_rng(0), 0, 0, 0
    for seed in range(250):
        where = sample_scene(np.random.default_rng(seed))
        found = branches(where, rng, 5)
        asked = [turn for turns in found for turn in turns if turn.skill != "second_turn"]
        assert 1 <= len(asked) <= 5
        in_full = [turn.answer for turn in asked if SHORT_SUFFIX not in turn.question]
        assert len(set(in_full)) == len(in_full)
        for turns in found:
            assert len(turns) <= lessons.MOST_TURNS
            skills = [turn.skill for turn in turns]
            assert skills[0] in LESSONS
            assert ("second_turn", "second_turn") not in zip(skills, skills[1:], strict=False)
            followed += skills.count("second_turn")
            going_on += sum(skill in LESSONS for skill in skills[1:])
        count += len(asked)
    # not all of them can have a follow-up, or go on with what came before
    assert lessons.BRANCH_FOLLOW_UP_SHARE / 4 < followed / count < lessons.BRANCH_FOLLOW_UP_SHARE / 2
    assert lessons.CHAT_SHARE / 2 < going_on / count < lessons.CHAT_SHARE


def test_weights_steer_which_skills_are_asked():
    def skills(**weights):
        rng = np.random.default_rng(0)
        found = [each for _ in range(60) for each in branches(TOWN, rng, 3, weights=weights or None)]
        return [turn.skill for each in found for turn in each]

    assert set(skills(**{name: 0 for name in LESSONS if name != "count"})) == {"count"}
    assert skills(locate=4).count("locate") > 2 * skills().count("locate")
    assert skills(second_turn=0).count("second_turn") == 0
    assert skills(second_turn=2).count("second_turn") > 1.5 * skills().count("second_turn") > 0
    pages = page_branches(CAPTIONED, np.random.default_rng(0), 2, weights={"line": 1e9})
    assert {turn.skill for turns in pages for turn in turns} == {"line"}
    for wrong in ({"singing": 1.0}, {"count": -1.0}, {"count": float("nan")}, dict.fromkeys(LESSONS, 0.0)):
        with pytest.raises(SettingError, match="weights"):
            branches(TOWN, np.random.default_rng(0), 2, weights=wrong)


def test_how_two_things_lie_is_practiced_more_than_it_is_examined():
    """Each meaning that a scene allows is examined as often as the others; this one is practiced more often."""
    where = scene(thing("bus", "red", 0, 1), thing("tree", "green", 2, 1))

    def share(found):
        words = ("above", "below", "to the left of", "to the right of")
        return np.mean([any(word in turn.question.lower() for word in words) for turn in found])

    rng = np.random.default_rng(0)
    only = {name: 0 for name in LESSONS if name != "yes_no"} | {"second_turn": 0}
    learned = [turns[0] for _ in range(600) for turns in branches(where, rng, 1, weights=only)]
    examined = [question(where, "yes_no", rng)[0] for _ in range(600)]
    kinds = len({ask.meaning for ask in LESSONS["yes_no"](where, rng)})
    assert share(examined) == pytest.approx(1 / kinds, abs=0.06)
    times = lessons.PRACTICED["relation"]
    assert share(learned) == pytest.approx(times / (kinds - 1 + times), abs=0.06)
    wheres = [random_scene(rng) for _ in range(400)]
    learned = [turns[0] for where in wheres for turns in branches(where, rng, 1, weights=only)]
    examined = [turns[0] for where in wheres if (turns := question(where, "yes_no", rng))]
    assert share(learned) > 1.4 * share(examined) > 0.1


def test_branches_about_pages_and_about_no_drawing():
    rng, missing = np.random.default_rng(0), 0
    for seed in range(200):
        where, _ = sample_page(np.random.default_rng(seed))
        found = [turn for turns in page_branches(where, rng, 5) for turn in turns]
        assert 1 <= len(found) <= 5
        assert {turn.skill for turn in found} <= {*READING, *BESIDE}
        if not where.scene.things:
            absent = [turn.answer for turn in found if turn.skill in BESIDE]
            missing += len(absent)
            assert len(absent) <= 1
            assert all(re.fullmatch(r"There is no [a-z ]+\.|no [a-z ]+", answer) for answer in absent)
    assert 0 < missing < 60
    chats = outside_branches(rng, 2000)
    assert [turn.answer for turns in chats for turn in turns] == [ONLY_DRAWINGS] * 2000
    assert not any(turn.things or turn.named for turns in chats for turn in turns)
    assert {len(turns) for turns in chats} >= {1, 2}


def test_what_is_no_drawing_has_one_answer():
    assert {turn.answer for turn in read(400) if turn.skill == OUTSIDE} == {ONLY_DRAWINGS}
    assert ONLY_DRAWINGS not in {turn.answer for turn in sampled(2000)}


def test_score():
    assert score(" the bus is Red. ", "The bus is red.")
    assert score("two", "two")
    assert not score("The bus is red and white.", "The bus is red.")
