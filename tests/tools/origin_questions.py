"""Questions, with every answer that is right, about drawings of other origins, for tests/tools/origins.py.

The wordings are those of somebody who tries the kit; none was taken from what imp-nano is taught. Where an answer could
be disputed, nothing is asked: a house has a door and a roof that is a triangle, a person's head is a circle.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from origin_images import NUMBER, OBJECTS, SEED, SHAPES, Drawing, Thing, icons, patches, shapes
from PIL import Image

from imp_kit.boxes import Corners
from imp_kit.images import open_image
from imp_kit.nano.training.lessons import ONLY_DRAWINGS
from imp_kit.prompts import CAPTION, DESCRIBE_REGION, LOCATE
from imp_kit.samples import sample

SKILLS = ("naming", "color", "count", "yes/no")
KIT = "the kit's own"  # questions that the README, `make run` and the first notebooks ask about the samples
NUMBERS = ("no", "one", "two", "three", "four", "five")
KINDS = (*SHAPES, *OBJECTS)
PLURALS = {"bus": "buses", "box": "boxes", "person": "people"}
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "gray")
NEAR = (  # pairs of colors of which one may pass for the other
    {"red", "orange"}, {"red", "pink"}, {"red", "brown"}, {"orange", "yellow"}, {"orange", "brown"},
    {"purple", "pink"}, {"purple", "blue"}, {"black", "gray"}, {"black", "brown"}, {"brown", "gray"},
)  # fmt: skip
ALIKE = {  # what somebody could see in a thing, or find as a part of it
    "square": ("box", "door"),
    "star": ("triangle",),
    "house": ("door", "box"),
    "bus": ("door", "box"),
    "door": ("box", "house"),
    "box": ("door", "house"),
}


@dataclass(frozen=True)
class Question:
    """What is asked about an image, alone or after earlier questions `before`; `right` has all right answers.

    A question for a box has `boxes` instead, of which the answer's has to overlap one by half.
    """

    skill: str
    text: str
    right: tuple[str, ...] = ()
    boxes: tuple[Corners, ...] = ()
    before: tuple[str, ...] = ()
    found_in: tuple[str, ...] = ()  # the files that ask it


@dataclass(frozen=True)
class Asked:
    """An image with its questions; `shows` says in words what there is to see."""

    name: str
    image: Image.Image
    shows: str
    questions: tuple[Question, ...]


# ------------------------------------------------------------------------------------------------ right answers


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plural(kind: str) -> str:
    return PLURALS.get(kind, f"{kind}s")


def colored(thing: Thing) -> tuple[str, ...]:
    """A thing with its color: "red cup"; "person in a red shirt" and "red person"."""
    plain = f"{thing.color} {thing.kind}"
    return (f"person in {_a(thing.color)} shirt", plain) if thing.kind == "person" else (plain,)


def right_names(thing: Thing) -> tuple[str, ...]:
    """What tells a thing's kind, and no wrong color with it."""
    found = []
    for words in (thing.kind, *colored(thing)):
        begins = ("It is ", "This is ", "The picture shows ", "There is ", f"The {thing.color} thing is ", "")
        found += [f"{begin}{_a(words)}" for begin in begins] + [f"There is one {words}", words]
    return tuple(found)


def right_colors(thing: Thing) -> tuple[str, ...]:
    """What tells a thing's color, and no wrong kind with it."""
    name = "shirt" if thing.kind == "person" else thing.kind
    forms = (f"The {name} is {thing.color}", f"It is {thing.color}", thing.color, f"{thing.color} {name}")
    return (
        *forms,
        f"It is {_a(f'{thing.color} {name}')}",
        *(f"The picture shows {_a(each)}" for each in colored(thing)),
    )


def right_counts(number: int, kind: str, color: str = "") -> tuple[str, ...]:
    """What tells the number of a kind, 0 to 5; `color` is that of all of them, where they have one."""
    many = _plural(kind)
    if not number:
        return (f"There are no {many}", f"There is no {kind}", f"No {many}", "none", "no", "zero", "0")
    noun, verb = (kind, "is") if number == 1 else (many, "are")
    found = []
    for figure in (NUMBERS[number], str(number)):
        for words in (noun, f"{color} {noun}") if color else (noun,):
            found += [f"There {verb} {figure} {words}", f"{figure} {words}"]
        found.append(figure)
    return (*found, f"There is {_a(kind)}", _a(kind)) if number == 1 else tuple(found)


def right_decisions(yes: bool, facts: Iterable[str]) -> tuple[str, ...]:
    """Yes or no, alone or with something true after it, or only what decides it."""
    word = "Yes" if yes else "No"
    facts = tuple(facts)
    return (*(f"{word}, {fact}" for fact in facts), word, *facts)


# ------------------------------------------------------------------------------------------------ wordings

NAME_ONE = ("What is this?", "What's this a picture of?", "What thing is drawn here?", "Which object is it?",
            "what is it", "Name this object.", "What do you think this is?", "What has been drawn?")  # fmt: skip
NAME_COLORED = ("What is the {c} one?", "What's the {c} object?", "what is the {c} thing", "Name the {c} thing.",
                "Which thing is {c}?", "The {c} thing, what is it?")  # fmt: skip
COLOR = ("What color is the {x}?", "What colour is this {x}?", "What's the color of the {x}?", "Color of the {x}?",
         "what color does the {x} have", "Tell me what color the {x} is.", "Which color is this {x}?")  # fmt: skip
COLOR_ALONE = ("What color is it?", "What color is this?")
COLOR_SHIRT = ("What color is the person's shirt?", "What colour is the shirt?", "Which color is this person's shirt?",
               "The shirt of the person has what color?")  # fmt: skip
COUNT = ("How many {xs} are there?", "how many {xs} can you count", "Count the {xs}.", "How many {xs}?",
         "How many {xs} are drawn here?", "Tell me how many {xs} you see.",
         "What number of {xs} is there?")  # fmt: skip
EXISTS = ("Is there {a}?", "Is there {a} here?", "Do you see {a}?", "Can you find {a}?", "is there {a} in the picture",
          "Are there any {xs}?", "Any {xs} in this picture?")  # fmt: skip
IS_COLOR = ("Is the {x} {c}?", "Is this {x} {c}?", "is the color of the {x} {c}", "Would you call the {x} {c}?",
            "Is {c} the color of the {x}?")  # fmt: skip


def _pick(rng: np.random.Generator, options: Sequence):
    return options[int(rng.integers(len(options)))]


def _name(rng: np.random.Generator, thing: Thing, alone: bool) -> Question:
    text = _pick(rng, NAME_ONE) if alone else _pick(rng, NAME_COLORED).format(c=thing.color)
    return Question("naming", text, right_names(thing))


def _color(rng: np.random.Generator, thing: Thing, alone: bool) -> Question:
    if thing.kind == "person":
        return Question("color", _pick(rng, COLOR_SHIRT), right_colors(thing))
    wordings = (*COLOR, *COLOR_ALONE) if alone else COLOR
    return Question("color", _pick(rng, wordings).format(x=thing.kind), right_colors(thing))


def _count(rng: np.random.Generator, things: Sequence[Thing], kind: str) -> Question:
    same = [thing for thing in things if thing.kind == kind]
    right = right_counts(len(same), kind, same[0].color if same else "")
    return Question("count", _pick(rng, COUNT).format(xs=_plural(kind)), right)


def absent_kinds(things: Sequence[Thing]) -> list[str]:
    """Kinds that nobody would find in the drawing."""
    kinds = {thing.kind for thing in things}
    possible = KINDS if kinds <= set(SHAPES) else OBJECTS  # objects have round, square and pointed parts
    alike = {other for kind in kinds for other in ALIKE.get(kind, ())}
    return [kind for kind in possible if kind not in kinds | alike]


def _exists(rng: np.random.Generator, things: Sequence[Thing], yes: bool) -> Question:
    kind = _pick(rng, sorted({thing.kind for thing in things}) if yes else absent_kinds(things))
    text = _pick(rng, EXISTS).format(a=_a(kind), xs=_plural(kind))
    if not yes:
        facts = [f"there is no {kind}", f"there are no {_plural(kind)}"]
        return Question("yes/no", text, right_decisions(False, facts))
    same = [thing for thing in things if thing.kind == kind]
    number = f"one {kind}" if len(same) == 1 else f"{NUMBERS[len(same)]} {_plural(kind)}"
    facts = [f"there is {_a(words)}" for words in (kind, *colored(same[0]))]
    facts.append(f"there {'is' if len(same) == 1 else 'are'} {number}")
    return Question("yes/no", text, right_decisions(True, facts))


def wrong_colors(thing: Thing) -> list[str]:
    """Colors that nobody would give the thing."""
    trunk = "brown" if thing.kind == "tree" else None
    return [name for name in COLORS if name not in (thing.color, trunk) and {name, thing.color} not in NEAR]


def _is_color(rng: np.random.Generator, things: Sequence[Thing], thing: Thing, yes: bool) -> Question:
    wrong = wrong_colors(thing)
    beside = [other.color for other in things if other.color in wrong]  # that is seen, but of another thing
    asked = thing.color if yes else _pick(rng, beside if beside and rng.random() < 0.5 else wrong)
    text = _pick(rng, IS_COLOR).format(x="shirt" if thing.kind == "person" else thing.kind, c=asked)
    facts = [form[0].lower() + form[1:] for form in right_colors(thing)[:2]]
    return Question("yes/no", text, right_decisions(yes, facts))


def ask_about(drawing: Drawing, place: tuple[int, int], shirts: bool = True) -> tuple[Question, ...]:
    """Of one thing its name and color, of two those of one, of equal ones how many; and of each drawing yes or no.

    Numbers are asked of two different things, too, and of some alone. Without `shirts` no person's color is asked.
    `place`, the origin's number and that of its drawing, decides the choice.
    """
    rng, index = np.random.default_rng([SEED, 0, *place]), place[1]
    things, kinds, yes = drawing.things, list(dict.fromkeys(thing.kind for thing in drawing.things)), index % 2 == 0
    if len(things) > len(kinds):
        return (_count(rng, things, kinds[0]), _exists(rng, things, yes))
    thing, alone = _pick(rng, things), len(things) == 1
    questions = [_name(rng, thing, alone)]
    has_color = shirts or thing.kind != "person"
    if has_color:
        questions.append(_color(rng, thing, alone))
    if not alone:
        questions.append(_count(rng, things, _pick(rng, kinds if rng.random() < 0.7 else absent_kinds(things))))
    elif index % 7 == 0:
        questions.append(_count(rng, things, thing.kind))
    of_color = has_color and index // 2 % 2
    return (*questions, _is_color(rng, things, thing, yes) if of_color else _exists(rng, things, yes))


def _drawn(origin: int, make: Callable[[int], list[Drawing]], number: int, shirts: bool = True) -> list[Asked]:
    return [
        Asked(
            f"{index}: {drawing.drawn_as}",
            drawing.image,
            ", ".join(f"{thing.color} {thing.kind}" for thing in drawing.things),
            ask_about(drawing, (origin, index), shirts),
        )
        for index, drawing in enumerate(make(number))
    ]


# ------------------------------------------------------------------------------------------------ samples

BUS_COLORS = ("The bus is red and white", "The bus is white and red", "red and white", "white and red")
A_BUS = tuple(f"{begin}a {words}" for begin in ("It is ", "This is ", "The picture shows ", "There is ", "")
              for words in ("bus", "red and white bus", "white and red bus"))  # fmt: skip
A_DOOR = right_names(Thing("door", "green"))
IN_HANDS = tuple(f"{begin}{words}" for begin in ("The person is holding ", "It is ", "This is ", "")
                 for words in ("a brown box", "a box", "brown box", "box"))  # fmt: skip
PERSON = "a person in a blue shirt holding a brown box"
DOOR_CAPTION = tuple(
    f"The picture shows {words}" for words in (f"{PERSON} and a green door", f"a green door and {PERSON}")
)
IN_CENTER, AT_RIGHT = "A person in a blue shirt is in the center, holding a brown box.", "A green door is on the right."
DOOR_DETAIL = tuple(f"There are two things. {a} {b}" for a, b in ((IN_CENTER, AT_RIGHT), (AT_RIGHT, IN_CENTER)))
ON_THE_RIGHT = ("The door is on the right", "right", "on the right", "It is on the right")
SHIRT = right_colors(Thing("person", "blue"))[:4]
BUS_BOX = ((0.08, 0.2, 0.95, 0.91),)  # from the left bumper to the mirror, and from the roof to the wheels
BUS_REGION = "[0.08, 0.20, 0.95, 0.91]"
DOOR_BOXES = ((0.66, 0.1, 0.97, 0.89), (0.74, 0.14, 0.945, 0.88))  # with its frame, and alone
FILES = {
    "readme": "tests/tools/make_readme.py",
    "make": "Makefile",
    "00": "notebooks/00_setup.ipynb",
    "01": "notebooks/01_captioning.ipynb",
    "02": "notebooks/02_v1_5_loading_failure.ipynb",
}
WHICH = ("Which one do you mean?", "Which thing do you mean?", "Which one?")
COVERED = (410, 40, 640, 430)  # pixels of door.png that notebook 01 paints over


def _listed(skill: str, right: tuple[str, ...], *texts: str) -> list[Question]:
    return [Question(skill, text, right) for text in texts]


def _decided(text: str, yes: bool, *facts: str) -> Question:
    return Question("yes/no", text, right_decisions(yes, facts))


def _samples_existing(there: dict[str, tuple[str, ...]], absent: Iterable[str]) -> list[Question]:
    """Whether kinds are there, `there` with what is true of them, and how many of each there are."""
    found = []
    for place, kind in enumerate((*there, *absent)):
        yes = kind in there
        facts = there[kind] if yes else (f"there is no {kind}", f"there are no {_plural(kind)}")
        for turn in range(5 if yes else 2):
            text = EXISTS[(place + 3 * turn) % len(EXISTS)].format(a=_a(kind), xs=_plural(kind))
            found.append(_decided(text, yes, *facts))
        for turn in range(4):
            text = COUNT[(place + 2 * turn) % len(COUNT)].format(xs=_plural(kind))
            found.append(Question("count", text, right_counts(int(yes), kind)))
    return found


def _bus_questions() -> list[Question]:
    facts = ("there is a bus", "there is one bus", "there is a red and white bus", "it is a bus")
    return [
        *_listed("naming", A_BUS, *NAME_ONE, "What vehicle is this?", "What is the red and white thing?"),
        *_listed("color", (*BUS_COLORS, *(f"It is {words}" for words in BUS_COLORS[2:])),
                 "What color is the bus?", "What colors does this bus have?", "Which two colors does the bus have?",
                 "the bus is what color", "What are the colors of the bus?", "What color is it?"),
        *_samples_existing({"bus": facts}, ("cat", "person", "tree", "house", "cup", "star")),
        _decided("Is the bus red and white?", True, "the bus is red and white"),
        *(_decided(text.format(x="bus", c=color), False, "the bus is red and white", "it is red and white")
          for text, color in zip(IS_COLOR, ("green", "purple", "pink", "brown", "green"), strict=True)),
    ]  # fmt: skip


def _door_questions() -> list[Question]:
    there = {
        "person": ("there is a person", "there is a person in a blue shirt", "there is one person"),
        "door": ("there is a door", "there is a green door", "there is one door"),
        "box": ("there is a box", "there is a brown box", "there is one box"),
    }
    holding = ("the person is holding a brown box", "the person is holding a box")
    a_person = ("It is a person", "a person", "person", "The picture shows a person", "a man", "It is a man",
                "It is a person in a blue shirt", f"It is {PERSON}", f"The picture shows {PERSON}")  # fmt: skip
    return [
        *_listed("naming", A_DOOR, "What is the green thing?", "What's the green object?", "What is on the right?",
                 "What do you see on the right side?", "Which thing is green?", "what is at the right"),
        *_listed("naming", IN_HANDS, "What is the person carrying?", "What does the person have in the hands?",
                 "What's the person holding?", "What is the brown thing?", "what thing is the person holding"),
        *_listed("naming", a_person, "What is in the center?", "Who is in the middle?", "Who is opening the door?"),
        *_listed("color", right_colors(Thing("door", "green")), *(text.format(x="door") for text in COLOR)),
        *_listed("color", right_colors(Thing("box", "brown")), *(text.format(x="box") for text in COLOR)),
        *_listed("color", SHIRT, *COLOR_SHIRT),
        *_samples_existing(there, ("cat", "bus", "cup", "tree", "star")),
        _decided("Is the door green?", True, "the door is green", "it is green"),
        _decided("Is the person's shirt blue?", True, "the shirt is blue", "it is blue"),
        _decided("Is the person holding a box?", True, *holding),
        _decided("Is this person carrying a box?", True, *holding),
        _decided("Is the person holding a cup?", False, *holding),
        _decided("Is the door red?", False, "the door is green", "it is green"),
        _decided("Would you call the door purple?", False, "the door is green", "it is green"),
        _decided("Is the shirt yellow?", False, "the shirt is blue", "it is blue"),
        _decided("Is the person to the left of the door?", True, "the person is to the left of the door"),
        _decided("Is the door to the left of the person?", False, "the door is to the right of the person"),
    ]  # fmt: skip


def kit_questions() -> dict[str, list[Question]]:
    """By image, what the README, `make run` and notebooks 00 to 02 ask about the samples."""

    def asks(found_in: str, text: str, *right: str, before: tuple[str, ...] = (), boxes: tuple = ()) -> Question:
        return Question(KIT, text, right, boxes, before, tuple(FILES[name] for name in found_in.split()))

    where, color, hold = "Where is the door?", "What color is it?", "What is the person holding?"
    colors = "What are the colors of the bus in the image?"
    holds, green, no_door = IN_HANDS[:2], ("The door is green",), ("There is no door", "No, there is no door")
    return {
        "bus": [
            asks("readme make 00 01 02", colors, *BUS_COLORS),
            asks("readme", "Is there a cat?", "No, there is no cat", "No", "There is no cat", before=(colors,)),
            asks("01", LOCATE.format("the bus"), boxes=BUS_BOX),
            asks("01", DESCRIBE_REGION.format(BUS_REGION), "The region shows a red and white bus"),
        ],
        "door": [
            asks("readme make", hold, *holds),
            asks("readme", where, *ON_THE_RIGHT, before=(hold,)),
            asks("readme", color, *green, before=(hold, where)),
            asks("make 00", CAPTION, *DOOR_CAPTION),
            asks("00", LOCATE.format("the door"), boxes=DOOR_BOXES),
            asks("00 01", where, *ON_THE_RIGHT),
            asks("00 01", color, *green, before=(where,)),
            asks("00", "What is in the picture?", *DOOR_CAPTION),
            asks("00 01", "What color is the door?", *green),
            asks("01", "Describe the image in detail.", *DOOR_DETAIL),
            # Alone it may mean anything: right is what is true of a thing that it names, or to ask which is meant.
            asks("01", color, *green, "The shirt is blue", "The box is brown", *WHICH),
        ],
        "the covered door": [
            asks("01", "What color is the door?", *no_door),
            asks("01", "Is there a door in the image?", *no_door, "No"),
            asks("01", hold, *holds),
        ],
        "diagram": [asks("01", "Describe the image in detail.", ONLY_DRAWINGS)],
    }


def samples() -> list[Asked]:
    """The sample images as they are, and the door that notebook 01 covers."""
    bus, door, diagram = (open_image(sample(f"{name}.png")) for name in ("bus", "door", "diagram"))
    covered = door.copy()
    covered.paste("gray", COVERED)
    own = kit_questions()
    return [
        Asked("bus", bus, "a red and white bus", (*_bus_questions(), *own["bus"])),
        Asked("door", door, f"{PERSON}, and a green door", (*_door_questions(), *own["door"])),
        Asked("the covered door", covered, PERSON, tuple(own["the covered door"])),
        Asked("diagram", diagram, "a diagram", tuple(own["diagram"])),
    ]


def origins(number: int = NUMBER) -> dict[str, list[Asked]]:
    """All four origins; `number` drawings of each that is drawn here. Raises OriginError without the icons' fonts."""
    return {
        "other code's shapes": _drawn(1, shapes, number),
        "free icons": _drawn(2, icons, number, shirts=False),
        "matplotlib patches": _drawn(3, patches, number),
        "sample images": samples(),
    }
