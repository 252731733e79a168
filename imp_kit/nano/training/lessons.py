"""Questions about a scene with exact answers, in many wordings: what imp-nano is taught and examined on.

An answer depends only on the scene and on the meaning of the question, never on its wording or on chance, so
that scoring is an exact match. A new lesson is one function in `LESSONS` and its wordings in the sheet below.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from imp_kit.errors import SettingError
from imp_kit.experiments.drawings import COLORS, HELD, KINDS, Scene, Thing, sample_scene
from imp_kit.nano.training.text import Page

SHORT_SUFFIX = "\nAnswer the question using a single word or phrase."
SHORT_SHARE = 0.15
ONLY_DRAWINGS = "I only know drawings."
WHICH_ONE = "Which one do you mean?"
BRANCH_FOLLOW_UP_SHARE = 0.4  # more than half of them find none, in scenes of one thing above all
CHAT_SHARE = 0.35  # of questions that could go on with the conversation before them: they do, as in a chat
MOST_TURNS = 3  # of conversations that go on so: longer ones would not fit into a row
MISSING_SHARE = 0.15  # of questions about a color or place that ask about a thing that is not there
MISSING_PERSON_SHARE = 0.05  # of scenes without a person where it is asked what the person holds
ALONE_SHARE = 0.15  # of questions about a color or place that say "it" and come first
MOST_DETAILED = 5  # things to describe in one answer; more would not fit
MOST_READ = 50  # characters of all lines to read in one answer: with its question it may have 100 tokens of a row
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLURALS = {"bus": "buses", "box": "boxes", "person": "people"}
BRITISH = {"gray": "grey", "center": "centre"}
MOST_SHOUTED = 60  # characters of a question all in capitals, each of which is a token
SHOUTED_SHARE = 0.18  # of the questions of `branches`, besides those that are typed so: the hardest to read
SIDES = {  # where a thing is, by (column, row)
    (0, 0): "at the top left", (1, 0): "at the top", (2, 0): "at the top right",
    (0, 1): "on the left", (1, 1): "in the center", (2, 1): "on the right",
    (0, 2): "at the bottom left", (1, 2): "at the bottom", (2, 2): "at the bottom right",
}  # fmt: skip
PLACE_WORDS = {  # other words for a place, in questions only
    "in the center": ("in the center", "in the middle"),
    "on the left": ("on the left", "to the left", "on the left side"),
    "on the right": ("on the right", "to the right", "on the right side"),
}
INSIDE = ("", "", "", " in the image", " in the image", " in the picture", " in the picture",
          " in this picture", " in this image", " in the drawing", " in this drawing",
          " in the photo")  # fmt: skip
PICTURES = ("image", "image", "picture", "picture", "drawing", "photo")
ASK_OPENERS = ("Please tell me: ", "Look at the picture. ", "Look at this image. ", "Question: ", "Hello. ",
               "I have a question: ", "Please answer: ", "Here is a picture. ")  # fmt: skip
DO_OPENERS = ("Please ", "Now ", "Look at the picture. ", "Look at this image. ", "Hello. ",
              "Here is a picture. ")  # fmt: skip
LEADS = ("Can you tell me {}?", "Could you tell me {}?", "Do you know {}?", "Tell me {}.",
         "Please tell me {}.", "I want to know {}.", "Can you say {}?", "Say {}.")  # fmt: skip


def _read_wordings() -> tuple[dict[str, dict[str, tuple[str, ...]]], frozenset[str]]:
    """wordings.txt: templates by meaning, "+" the trained ones, "-" those kept back to test understanding.

    The latter are made only of words that training uses elsewhere. A template that starts with "~" is a clause and goes
    into one of LEADS. "^" before it marks those that can only begin a conversation, since "it", "this" or "here" would
    be what was spoken of before; they are also returned as a set, all without the mark.
    """
    sheet = Path(__file__).with_name("wordings.txt").read_text("utf-8")
    wordings: dict[str, dict[str, tuple[str, ...]]] = {}
    first_only: set[str] = set()
    for entry in " ".join(sheet.split("\n  ")).strip().split("\n"):
        meaning, sign, templates = entry.split(" ", 2)
        which = {"+": "trained", "-": "unseen"}[sign]
        marked = [template.strip() for template in templates.split("|")]
        wordings.setdefault(meaning, {})[which] = tuple(template.removeprefix("^") for template in marked)
        first_only |= {template[1:] for template in marked if template.startswith("^")}
    return wordings, frozenset(first_only)


WORDINGS, FIRST_ONLY = _read_wordings()


@dataclass(frozen=True)
class Turn:
    """One question of a conversation with its only right answer."""

    skill: str
    question: str
    answer: str
    things: tuple[Thing, ...] = ()  # what the answer is about, in its order
    named: tuple[tuple[str, Thing], ...] = ()  # words of the question, and which thing they mean


@dataclass(frozen=True)
class Ask:
    """A question's meaning before it is put into words."""

    meaning: str
    answer: str
    short: str | None = None  # the bare answer, where there is one
    slots: dict[str, str] = field(default_factory=dict)
    topic: Thing | None = None  # the one thing that "it" can refer to afterwards
    about: str = ""  # "color" or "position": what "And the tree?" would then ask for
    things: tuple[Thing, ...] = ()  # what the answer is about, in its order
    named: tuple[tuple[str, Thing], ...] = ()  # words of the question, and which thing they mean


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plural(kind: str) -> str:
    return PLURALS.get(kind, kind + "s")


def _listed(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts) or "nothing"


def _color(thing: Thing) -> str:
    return " and ".join(sorted(thing.colors, key=COLORS.index))


def _side(thing: Thing) -> str:
    return SIDES[thing.column, thing.row]


def _named(thing: Thing) -> str:
    if thing.kind == "person":
        return f"person in {_a(_color(thing) + ' shirt')}"
    return f"{_color(thing)} {thing.kind}"


def _held(thing: Thing) -> str:
    return _a(" ".join(thing.holding)) if thing.holding else "nothing"


def _caption(things: tuple[Thing, ...]) -> str:
    parts, done = [], set()
    for thing in things:
        appearance = (thing.kind, thing.colors)
        if thing.holding:
            parts.append(f"{_a(_named(thing))} holding {_held(thing)}")
        elif appearance not in done:
            done.add(appearance)
            count = sum((other.kind, other.colors) == appearance and not other.holding for other in things)
            many = f"{_color(thing)} {_plural(thing.kind)}"
            if thing.kind == "person":
                many = f"people in {_color(thing)} shirts"
            parts.append(_a(_named(thing)) if count == 1 else f"{NUMBERS[count]} {many}")
    return f"The picture shows {_listed(parts)}."


def _there_are(count: int, one: str, many: str) -> str:
    return f"There is one {one}." if count == 1 else f"There are {NUMBERS[count]} {many}."


def _detail(scene: Scene) -> str:
    sentences = [_there_are(len(scene.things), "thing", "things")]
    for thing in scene.things:
        holding = f", holding {_held(thing)}" if thing.holding else ""
        sentences.append(f"{_a(_named(thing)).capitalize()} is {_side(thing)}{holding}.")
    return " ".join(sentences)


def _held_things(scene: Scene) -> list[tuple[str, str]]:
    return [thing.holding for thing in scene.things if thing.holding]


def _unique(scene: Scene) -> list[Thing]:
    """The things of a kind that the scene shows once; a held box makes "the box" ambiguous."""
    kinds = [thing.kind for thing in scene.things] + [kind for _, kind in _held_things(scene)]
    return [thing for thing in scene.things if kinds.count(thing.kind) == 1]


def _unique_held(scene: Scene) -> list[tuple[Thing, str, str]]:
    """Who holds it, its color and kind, for each held thing of a kind that the scene shows once."""
    kinds = [thing.kind for thing in scene.things] + [kind for _, kind in _held_things(scene)]
    return [(thing, *thing.holding) for thing in scene.things if thing.holding and kinds.count(thing.holding[1]) == 1]


def _references(scene: Scene) -> list[tuple[Thing, str]]:
    """Things with words that single each out: by kind, or else by color and kind."""
    held, unique, found = {kind for _, kind in _held_things(scene)}, _unique(scene), []
    for thing in scene.things:
        same = [other for other in scene.things if other.kind == thing.kind and set(other.colors) & set(thing.colors)]
        if thing in unique:
            found.append((thing, thing.kind))
        elif len(same) == 1 and thing.kind not in held and thing.kind != "person":
            found.append((thing, _named(thing)))
    return found


def _clear_colors(scene: Scene) -> list[str]:
    """Colors that no shirt, held thing or two-colored thing has, so that "red thing" leaves no doubt."""
    vague = {color for color, _ in _held_things(scene)}
    vague |= {c for thing in scene.things if thing.kind == "person" or len(thing.colors) > 1 for c in thing.colors}
    return [color for color in COLORS if color not in vague]


def _absent_kind(scene: Scene, rng: np.random.Generator) -> str:
    there = {thing.kind for thing in scene.things} | {kind for _, kind in _held_things(scene)}
    return _pick(rng, [kind for kind in KINDS if kind not in there])


def _absent(scene: Scene, rng: np.random.Generator) -> str:
    """Words for a thing that is not there: a kind, or a kind that is there in a color that it does not have."""
    held, kind = {kind for _, kind in _held_things(scene)}, _absent_kind(scene, rng)
    plain = [thing for thing in scene.things if thing.kind != "person" and thing.kind not in held]
    if not plain or rng.random() >= 0.5:
        return kind
    thing = _pick(rng, plain)
    same = {color for other in scene.things if other.kind == thing.kind for color in other.colors}
    return f"{_pick(rng, [color for color in COLORS if color not in same])} {thing.kind}"


def _pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def _color_ask(thing: Thing, meaning: str = "color") -> Ask:
    answer = f"The {thing.kind} is {_color(thing)}."
    return Ask(meaning, answer, _color(thing), {"x": thing.kind}, thing, "color", (thing,))


def _position_ask(thing: Thing, name: str, meaning: str = "position", topic: Thing | None = None) -> Ask:
    short = _side(thing).split("the ")[1]
    return Ask(meaning, f"The {name} is {_side(thing)}.", short, {"x": name}, topic, "position", (thing,))


def _shirt_asks(person: Thing) -> list[Ask]:
    answer = f"The shirt is {_color(person)}."
    return [
        Ask("shirt", answer, _color(person), things=(person,)),
        Ask("wearing", answer, f"{_color(person)} shirt", things=(person,)),
    ]


def _alone(scene: Scene, meaning: str, about: Callable[[Thing], Ask]) -> Ask:
    """A first question that says "it": about the only thing, or else answered by asking which."""
    if len(scene.things) > 1 or _held_things(scene):
        return Ask(meaning, WHICH_ONE)
    return replace(about(scene.things[0]), meaning=meaning, slots={})


def describe(scene: Scene, rng: np.random.Generator) -> list[Ask]:
    things = scene.things
    asks = [Ask("caption", _caption(things), things=things)]
    if len(things) <= MOST_DETAILED:
        asks.append(Ask("detail", _detail(scene), things=things))
    if len(scene.things) != 1 or _held_things(scene):
        asks.append(Ask("what", _caption(things), things=things))
    if rng.random() < 0.25:
        kind = _absent_kind(scene, rng)
        return [*asks, Ask("caption_one", f"There is no {kind}.", None, {"x": kind})]
    for thing in _unique(scene):
        asks.append(Ask("caption_one", _caption((thing,)), None, {"x": thing.kind}, thing, things=(thing,)))
    return asks


def color(scene: Scene, rng: np.random.Generator) -> list[Ask]:
    chance, asks = rng.random(), []
    if not scene.things or chance < MISSING_SHARE:
        kind = _absent_kind(scene, rng)
        meanings = ("shirt", "wearing") if kind == "person" else ("color",)
        return [Ask(meaning, f"There is no {kind}.", f"no {kind}", {"x": kind}) for meaning in meanings]
    if chance < MISSING_SHARE + ALONE_SHARE:
        return [_alone(scene, "alone_color", lambda it: _shirt_asks(it)[0] if it.kind == "person" else _color_ask(it))]
    for thing in _unique(scene):
        asks += _shirt_asks(thing) if thing.kind == "person" else [_color_ask(thing)]
    for person, name, kind in _unique_held(scene):
        asks.append(Ask("color", f"The {kind} is {name}.", name, {"x": kind}, things=(person,)))
    return asks


def shape(scene: Scene, rng: np.random.Generator) -> list[Ask]:
    def it_is(meaning: str, thing: Thing, **slots: str) -> Ask:
        topic = thing if thing in _unique(scene) else None
        return Ask(meaning, f"It is {_a(thing.kind)}.", thing.kind, slots, topic, things=(thing,))

    things, asks = scene.things, []
    if len(things) == 1 and not _held_things(scene):
        asks.append(it_is("what", things[0]))
    for name in _clear_colors(scene):
        having = [thing for thing in things if name in thing.colors]
        if len(having) == 1:
            asks.append(it_is("what_colored", having[0], c=name))
    for (column, row), place in SIDES.items():
        # "on the left" asks for the whole side, "at the top left" and "in the center" for one spot
        whole_column, whole_row = row == 1 and column != 1, column == 1 and row != 1
        there = [t for t in things if (whole_row or t.column == column) and (whole_column or t.row == row)]
        if len(there) == 1 and not there[0].holding:
            asks.append(it_is("what_placed", there[0], place=place))
    return asks


def count(scene: Scene, rng: np.random.Generator) -> list[Ask]:
    held = [kind for _, kind in _held_things(scene)]
    kinds = [thing.kind for thing in scene.things] + held
    by_kind = [(kind, _plural(kind), kinds.count(kind)) for kind in KINDS]
    by_color = [
        (f"{name} thing", f"{name} things", sum(name in t.colors for t in scene.things))
        for name in _clear_colors(scene)
    ]
    asked = [_by_number(by_kind, rng), _by_number(by_kind, rng), _by_number(by_color, rng)]
    if not held:
        asked.append(("thing", "things", len(scene.things)))
    found = [pick for pick in asked if pick]
    return [Ask("count", _there_are(n, one, many), NUMBERS[n] if n else "zero", {"xs": many}) for one, many, n in found]


def _by_number(options: list[tuple[str, str, int]], rng: np.random.Generator) -> tuple[str, str, int] | None:
    """One option, its number chosen first; "two" and up count more, as fewer scenes have them."""
    numbers = sorted({n for *_, n in options})
    number = _pick(rng, [n for n in numbers for _ in range(3 if n > 1 else 1)]) if numbers else None
    fitting = [option for option in options if option[2] == number]
    return _pick(rng, fitting) if fitting else None


def position(scene: Scene, rng: np.random.Generator) -> list[Ask]:
    chance, unique = rng.random(), _unique(scene)
    if not scene.things or chance < MISSING_SHARE:
        words = _absent(scene, rng)
        return [Ask("position", f"There is no {words}.", f"no {words}", {"x": words})]
    if chance < MISSING_SHARE + ALONE_SHARE:
        return [_alone(scene, "alone_position", lambda it: _position_ask(it, it.kind, topic=it))]
    return [_position_ask(thing, name, topic=thing if thing in unique else None) for thing, name in _references(scene)]


def yes_no(scene: Scene, rng: np.random.Generator) -> list[Ask]:
    def ask(meaning: str, yes: bool, says: str, topic: Thing | None = None, **slots: str) -> Ask:
        word = "yes" if yes else "no"
        return Ask(meaning, f"{word.capitalize()}, {says}.", word, slots, topic)

    asks, unique, held = [], _unique(scene), _held_things(scene)
    # colored names only of plain things; a wrong one swaps the color, so the kind alone does not give it away
    names = {(t.colors[0], t.kind) for t in scene.things if len(t.colors) == 1 and t.kind != "person"} | {*held}
    there = {t.kind for t in scene.things} | {kind for _, kind in held}
    for wanted in (True, False):
        kinds = [kind for kind in KINDS if (kind in there) == wanted]
        options = [f"{c} {kind}" for c, kind in sorted(names)]
        if not wanted:
            taken = {(c, t.kind) for t in scene.things for c in t.colors} | {*held}
            options = [f"{c} {k}" for _, k in sorted(names) for c in COLORS if (c, k) not in taken]
        if rng.random() < 0.4 and options:
            kinds = options
        if kinds:
            name = _pick(rng, kinds)
            topic = next((t for t in unique if wanted and t.kind == name), None)
            says = f"there is {_a(name) if wanted else 'no ' + name}"
            color, _, kind = name.rpartition(" ")
            many = f"{color} {_plural(kind)}".strip()
            exists = ask("exists", wanted, says, topic, a=_a(name), many=many)
            asks.append(replace(exists, things=(topic,) if topic else ()))
    scene_colors = sorted({c for thing in scene.things for c in thing.colors})
    for thing in unique:
        person = thing.kind == "person"
        asked, wanted = _color(thing), rng.random() < 0.5
        if not wanted:
            others = [c for c in (scene_colors if rng.random() < 0.5 else COLORS) if c not in thing.colors]
            asked = _pick(rng, others or [c for c in COLORS if c not in thing.colors])
            if len(thing.colors) > 1 and rng.random() < 0.8:  # or else a pair of colors would give the "yes" away
                shared = _pick(rng, thing.colors)
                asked = " and ".join(sorted((shared, asked), key=COLORS.index))
        says = f"the {'shirt' if person else thing.kind} is {_color(thing)}"
        name = "person's shirt" if person else thing.kind
        is_it = ask("is_color", wanted, says, None if person else thing, x=name, c=asked)
        asks.append(replace(is_it, things=(thing,)))
    for person, name, kind in _unique_held(scene):
        wanted = rng.random() < 0.5
        asked = name if wanted else _pick(rng, [c for c in COLORS if c != name])
        is_it = ask("is_color", wanted, f"the {kind} is {name}", x=kind, c=asked)
        asks.append(replace(is_it, things=(person,)))
    references = _references(scene)
    for one, x in references:
        for other, y in references:
            across, down = one.column - other.column, one.row - other.row
            for step, before, after in (
                (across, "to the left of", "to the right of"),
                (down, "above", "below"),
            ):
                if step:
                    true, false = (before, after) if step < 0 else (after, before)
                    wanted = rng.random() < 0.5
                    slots = {"x": x, "y": y, "rel": true if wanted else false}
                    lies = ask("relation", wanted, f"the {x} is {true} the {y}", **slots)
                    asks.append(replace(lies, named=((x, one), (y, other))))
    for person in (
        t for t in scene.things if t.kind == "person" and sum(p.kind == "person" for p in scene.things) == 1
    ):
        # an empty hand can only give a "no", so it is asked about less often than a full one
        true = person.holding[1] if person.holding else None
        asked = true if true and rng.random() < 0.6 else _pick(rng, [k for k in HELD if k != true])
        if true or rng.random() < 0.2:
            says = f"the person is holding {_a(true) if true else 'nothing'}"
            asks.append(replace(ask("is_holding", asked == true, says, a=_a(asked)), things=(person,)))
    return asks


def holding(scene: Scene, rng: np.random.Generator) -> list[Ask]:
    people = [thing for thing in scene.things if thing.kind == "person"]
    if not people and rng.random() < MISSING_PERSON_SHARE:
        return [Ask("holding", "There is no person.", "no person")]
    if len(people) != 1:
        return []
    short = " ".join(people[0].holding) if people[0].holding else "nothing"
    return [Ask("holding", f"The person is holding {_held(people[0])}.", short, things=(people[0],))]


def _second_turn(scene: Scene, before: Ask) -> list[Ask]:
    """What can be asked after `before` and makes sense only with it."""
    thing = before.topic
    # a person is no "it", and where all things share the answer the first turn would not be needed
    if thing is None or thing.kind == "person":
        return []
    others = [t for t in _unique(scene) if t != thing]
    asks = []
    if before.meaning not in ("caption_one", "is_color", "what_colored") and before.about != "color":
        asks += [_color_ask(thing, "it_color")] if any(_color(t) != _color(thing) for t in scene.things) else []
    if before.about != "position" and before.meaning != "what_placed":
        different = any(_side(t) != _side(thing) for t in scene.things)
        asks += [_position_ask(thing, thing.kind, "it_position", thing)] if different else []
    if before.about == "color":
        asks += [_color_ask(t, "and_other") for t in others if t.kind != "person"]
    if before.about == "position":
        asks += [_position_ask(t, t.kind, "and_other", t) for t in others]
    return asks


def _box(box: tuple[float, ...]) -> str:
    """LLaVA's way to write a box: corners as fractions of the image, x0, y0, x1, y1."""
    return "[" + ", ".join(f"{value:.2f}" for value in box) + "]"


def locate(scene: Scene, rng: np.random.Generator) -> list[Ask]:
    """Where a thing is, as a box; about a thing that is not there, the answer says so and has no box."""
    found = [(words, _box(thing.box), (thing,)) for thing, words in _references(scene)]
    words = _absent(scene, rng)
    if not found or rng.random() >= 0.7:
        found = [(words, f"There is no {words}.", ())]
    return [Ask("locate", answer, None, {"x": words, "a": _a(words)}, things=it) for words, answer, it in found]


def region(scene: Scene, rng: np.random.Generator) -> list[Ask]:
    """What a box shows; the box is a little inexact, as if drawn by hand."""
    asks = []
    for thing in scene.things:
        box = np.clip(np.add(thing.box, rng.uniform(-0.02, 0.02, 4)), 0, 1)
        answer = _caption((thing,)).replace("The picture shows", "The region shows")
        asks.append(Ask("region", answer, None, {"box": _box(tuple(box))}, things=(thing,)))
    return asks


def read(page: Page, rng: np.random.Generator) -> list[Ask]:
    """All of a page's text, unless it is long."""
    if sum(len(line.text) for line in page.lines) > MOST_READ:
        return []
    texts = " and ".join(f'"{line.text}"' for line in page.lines)
    short = page.lines[0].text if len(page.lines) == 1 else None
    return [Ask("read", f"The text reads {texts}.", short)]


def line(page: Page, rng: np.random.Generator) -> list[Ask]:
    """One of two lines."""
    if len(page.lines) != 2:
        return []
    upper, lower = page.lines
    above = f'The upper line reads "{upper.text}".'
    asks = [
        Ask("upper", above, upper.text),
        Ask("lower", f'The lower line reads "{lower.text}".', lower.text),
    ]
    return [*asks, Ask("code", above, upper.text)] if lower.sentence else asks


def no_text(scene: Scene, rng: np.random.Generator) -> list[Ask]:
    """Asked to read where nothing is written."""
    return [Ask("read", "There is no text.", "no text")]


LESSONS: dict[str, Callable[[Scene, np.random.Generator], list[Ask]]] = {
    "describe": describe,
    "color": color,
    "shape": shape,
    "count": count,
    "position": position,
    "yes_no": yes_no,
    "holding": holding,
    "locate": locate,
    "region": region,
    "no_text": no_text,
}
READING: dict[str, Callable[[Page, np.random.Generator], list[Ask]]] = {"read": read, "line": line}
PRACTICED = {"relation": 4}  # asked about more often while it learns: two things, and how they lie
ALONE = ("alone_color", "alone_position")  # meanings of first questions that say "it"
BESIDE = ("color", "position", "locate")  # what is also asked about things beside a text
OUTSIDE = "not_drawing"
SKILLS = (*LESSONS, "second_turn", *READING, OUTSIDE)


def _choose(asks: list[Ask], rng: np.random.Generator, practiced: Mapping[str, int] | None = None) -> Ask | None:
    """One of the questions, each meaning as likely as the next however many things it could be asked of, but for those
    that are `practiced`: each is as likely as so many.
    """
    if not asks:
        return None
    meanings = sorted({ask.meaning for ask in asks})
    meaning = _pick(rng, [meaning for meaning in meanings for _ in range((practiced or {}).get(meaning, 1))])
    return _pick(rng, [ask for ask in asks if ask.meaning == meaning])


def _misspelled(text: str, rng: np.random.Generator) -> str:
    """With two letters swapped, one left out or one doubled, inside a word that names no kind and no color."""
    names = {*KINDS, *map(_plural, KINDS), *COLORS, *BRITISH.values()}
    words = [word for word in re.finditer("[A-Za-z]{4,}", text) if word[0].lower() not in names]
    if not words:
        return text
    word = _pick(rng, words)
    at = int(rng.integers(word.start() + 1, word.end() - 1))
    one, other = text[at], text[at + 1]
    return text[:at] + _pick(rng, (other + one, other, one + one + other)) + text[at + 2 :]


def _as_typed(text: str, rng: np.random.Generator) -> str:
    """A question as people type it: British, misspelled, all in capitals or small, with no or two question marks."""
    if rng.random() < 0.1:
        for american, british in BRITISH.items():
            text = text.replace(american, british)
    if rng.random() < 0.05:
        text = _misspelled(text, rng)
    chance = rng.random()
    if chance < 0.06 and len(text) <= MOST_SHOUTED:
        text = text.upper()
    elif chance < 0.16:
        text = text.lower()
    elif chance < 0.23:
        text = text[0].lower() + text[1:]
    chance = rng.random()
    if chance < 0.15:
        text = text.rstrip("?.")
    elif chance < 0.18 and text.endswith("?"):
        text += "?"
    return text


def _shout_more(conversations: list[list[Turn]], rng: np.random.Generator) -> list[list[Turn]]:
    """With SHOUTED_SHARE of the questions of at most MOST_SHOUTED characters all in capitals, SHORT_SUFFIX excepted."""

    def shout(turn: Turn) -> Turn:
        question, suffix = turn.question.removesuffix(SHORT_SUFFIX), SHORT_SUFFIX in turn.question
        if len(question) > MOST_SHOUTED or rng.random() >= SHOUTED_SHARE:
            return turn
        return replace(turn, question=question.upper() + SHORT_SUFFIX * suffix)

    return [[shout(turn) for turn in turns] for turns in conversations]


def _worded(skill: str, ask: Ask, rng: np.random.Generator, wording: str, first: bool = True) -> Turn:
    core = _pick(rng, [core for core in WORDINGS[ask.meaning][wording] if first or core not in FIRST_ONLY])
    slots = {**ask.slots, "in": _pick(rng, INSIDE), "pic": _pick(rng, PICTURES)}
    if place := slots.get("place"):
        slots["place"] = _pick(rng, PLACE_WORDS.get(place, (place,)))
    if "xs" in slots and rng.random() < 0.5:
        slots["xs"] = slots["xs"].replace("things", "objects")
    text = core.removeprefix("~").format(**slots)
    if core.startswith("~"):
        text = _pick(rng, LEADS).format(text)
    elif skill != "second_turn" and "please" not in core.lower() and rng.random() < 0.35:
        end = re.search(r"[.?](?= |$)", core)  # of the first sentence: says whether it is a question
        opener = _pick(rng, ASK_OPENERS if end and end[0] == "?" else DO_OPENERS)
        text = opener + (text if opener.endswith(". ") else text[0].lower() + text[1:])
    text = text[0].upper() + text[1:]
    if rng.random() < 0.12:
        text = text.replace("color", "colour").replace("Color", "Colour")
    if wording == "trained":
        text = _as_typed(text, rng)
    else:
        if rng.random() < 0.08:
            text = text[0].lower() + text[1:]
        if rng.random() < 0.08:
            text = text.rstrip("?.")
    if ask.short and rng.random() < SHORT_SHARE:
        return Turn(skill, text + SHORT_SUFFIX, ask.short, ask.things, ask.named)
    return Turn(skill, text, ask.answer, ask.things, ask.named)


def _chances(shares: Mapping[str, float], weights: Mapping[str, float] | None) -> np.ndarray:
    """Each skill's share times its weight, as probabilities. Raises SettingError."""
    weights = weights or {}
    if not weights.keys() <= set(SKILLS) or not all(0 <= weight < np.inf for weight in weights.values()):
        raise SettingError(f"weights are {dict(weights)}; give names of {SKILLS} and numbers from 0.")
    chances = np.array([share * weights.get(skill, 1.0) for skill, share in shares.items()])
    if not chances.sum():
        raise SettingError(f"weights are {dict(weights)}; give one of {', '.join(shares)} a weight above 0.")
    return chances / chances.sum()


def _open(conversations: list[list[Turn]], length: int, rng: np.random.Generator, alone: bool = False) -> list[Turn]:
    """The conversation for the next `length` turns: a new one or, in some cases and not `alone`, the last one."""
    fits = conversations and not alone and len(conversations[-1]) + length <= MOST_TURNS
    if not (fits and rng.random() < CHAT_SHARE):
        conversations.append([])
    return conversations[-1]


def branches(
    scene: Scene,
    rng: np.random.Generator,
    count: int,
    wording: str = "trained",
    weights: Mapping[str, float] | None = None,
) -> list[list[Turn]]:
    """Conversations about the scene, independent of each other: up to `count` questions, and follow-ups to some.

    All but the follow-ups can be understood alone, and all have different answers. `weights` make skills more
    or less likely, 1 where none is given; that of "second_turn" is for follow-ups. Raises SettingError.
    """

    def new(asks: list[Ask]) -> list[Ask]:
        return [ask for ask in asks if ask.answer not in asked]

    chances, chosen, asked = _chances(dict.fromkeys(LESSONS, 1.0), weights), [], set()
    follow_ups = BRANCH_FOLLOW_UP_SHARE * (weights or {}).get("second_turn", 1.0)
    for _ in range(count):
        tries = rng.choice(tuple(LESSONS), 8, p=chances).tolist()
        leading = 6 if rng.random() < follow_ups else 0  # tries that must allow a follow-up; some scenes have none
        for number, skill in enumerate(tries):
            asks = new(LESSONS[skill](scene, rng))
            ask = _choose([ask for ask in asks if number >= leading or new(_second_turn(scene, ask))], rng, PRACTICED)
            # Only a "yes" has a follow-up: with them among the first turns there would be more of these than of "no".
            if ask is None or (skill == "yes_no" and number < leading):
                continue
            turns = _open(chosen, 1 + (number < leading), rng, alone=ask.meaning in ALONE)
            turns.append(_worded(skill, ask, rng, wording, first=not turns))
            asked.add(ask.answer)
            if number < leading:
                follow_up = _choose(new(_second_turn(scene, ask)), rng)
                turns.append(_worded("second_turn", follow_up, rng, wording))
                asked.add(follow_up.answer)
            break
    return _shout_more(chosen, rng) if wording == "trained" else chosen


def page_branches(
    page: Page,
    rng: np.random.Generator,
    count: int,
    wording: str = "trained",
    weights: Mapping[str, float] | None = None,
) -> list[list[Turn]]:
    """As `branches`, without follow-ups, about an image with text and the things beside it; without any, now and then
    one question about a thing that is not there.
    """
    beside = 0.4 if page.scene.things else 0.3
    missing = not page.scene.things and rng.random() < MISSING_SHARE
    shares = {skill: (1 - beside) / len(READING) for skill in READING} | {s: beside / len(BESIDE) for s in BESIDE}
    chances, chosen, asked = _chances(shares, weights), [], set()
    for _ in range(8 * count):
        if len(asked) == count:
            break
        skill = str(rng.choice(tuple(shares), p=chances))
        if skill in BESIDE and not page.scene.things:
            if not missing:
                continue
            missing = False
        options = READING[skill](page, rng) if skill in READING else LESSONS[skill](page.scene, rng)
        ask = _choose([ask for ask in options if ask.answer not in asked and ask.meaning not in ALONE], rng)
        if ask is not None:
            asked.add(ask.answer)
            turns = _open(chosen, 1, rng)
            turns.append(_worded(skill, ask, rng, wording, first=not turns))
    return _shout_more(chosen, rng) if wording == "trained" else chosen


def outside_branches(rng: np.random.Generator, count: int, wording: str = "trained") -> list[list[Turn]]:
    """Conversations with `count` questions about an image that is no drawing: the answer is the same to all of them."""
    chosen: list[list[Turn]] = []
    for _ in range(count):
        if rng.random() < 0.2:
            asks = [Ask("read", ONLY_DRAWINGS)]
        else:
            scene = sample_scene(rng)
            asks = [ask for name in ("describe", _pick(rng, tuple(LESSONS))) for ask in LESSONS[name](scene, rng)]
        ask = replace(_choose(asks, rng), answer=ONLY_DRAWINGS, short=None, things=(), named=())
        turns = _open(chosen, 1, rng, alone=ask.meaning in ALONE)
        turns.append(_worded(OUTSIDE, ask, rng, wording, first=not turns))
    return chosen


def page_question(page: Page, skill: str, rng: np.random.Generator, wording: str = "trained") -> list[Turn] | None:
    """One question about an image with text, or None where it allows none."""
    ask = _choose(READING[skill](page, rng), rng)
    return [_worded(skill, ask, rng, wording)] if ask else None


def question(
    scene: Scene, skill: str, rng: np.random.Generator, wording: str = "trained", first: bool = True
) -> list[Turn] | None:
    """A conversation whose last turn tests `skill` in that wording, or None where the scene allows none.

    Where it is not to be the `first` question of a chat it makes sense after another one, too; by chance there is none.
    """
    if skill != "second_turn":
        options = [ask for ask in LESSONS[skill](scene, rng) if first or ask.meaning not in ALONE]
        ask = _choose(options, rng)
        return [_worded(skill, ask, rng, wording, first)] if ask else None
    starts = [(name, ask) for name, lesson in LESSONS.items() for ask in lesson(scene, rng) if _second_turn(scene, ask)]
    if not starts:
        return None
    start_skill, start = _pick(rng, starts)
    follow_up = _choose(_second_turn(scene, start), rng)
    return [_worded(start_skill, start, rng, "trained", first), _worded(skill, follow_up, rng, wording)]


def spans_of_things(turn: Turn) -> list[tuple[Thing, int, int]]:
    """Which part of an answer is about which thing: from the end of the part before to the end of its name."""
    if len(turn.things) == 1:
        return [(turn.things[0], 0, len(turn.answer))]
    spans, done, counted = [], 0, set()
    for thing in turn.things:
        appearance = (thing.kind, thing.colors)
        if not thing.holding and not turn.answer.startswith("There"):
            if appearance in counted:  # together with one alike
                continue
            counted.add(appearance)
        ways = (_named(thing), f"people in {_color(thing)} shirts")
        start, name = min((at, way) for way in ways if (at := turn.answer.lower().find(way, done)) >= 0)
        end, held = start + len(name), f" holding {_held(thing)}"
        if thing.holding and turn.answer[end:].startswith(held):
            end += len(held)
        if turn.answer.startswith("There"):  # in detail: a sentence for each
            end = turn.answer.index(".", end) + 1
        spans.append((thing, done, end))
        done = end
    return spans


def score(answer: str, truth: str) -> bool:
    """Whether the answer is the true one, apart from case, outer spaces and a final period."""
    return answer.strip().lower().removesuffix(".") == truth.strip().lower().removesuffix(".")
