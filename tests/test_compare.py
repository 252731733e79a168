"""Notebook 10: the questions, systems that write and that choose, outcomes, paired differences, pictures, exercises."""

import math
import re
from collections import Counter

import nbformat
import numpy as np
import pytest
from first_cell import NOTEBOOKS
from PIL import Image
from test_notebook_outputs import as_made

import imp_kit
from imp_kit import SettingError
from imp_kit.experiments import runs
from imp_kit.experiments.stats import bounded_difference, holm, mcnemar, share_of
from imp_kit.lessons import compare
from imp_kit.lessons.compare import CANNOT, OUTCOMES, PUBLISHED_ANSWERS, Asked, Choosing, Clip

CELLS = {cell.id: cell.source for cell in nbformat.read(NOTEBOOKS / "10_compare.ipynb", as_version=4).cells}
QUESTIONS = compare.questions("smoke", 1)


@pytest.fixture(scope="module")
def nano():
    return imp_kit.load("imp-nano")


class Scripted:
    """Answers that are given beforehand, by question and image; counts what it was asked."""

    def __init__(self, name, answers):
        self.name, self.answers, self.asked = name, answers, []

    def ask(self, image, question, **settings):
        self.asked.append((image, question, settings))
        answer = self.answers[len(self.asked) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


def truths(cases):
    return [case.truth["answer"] for case in cases]


# Questions -------------------------------------------------------------------------------------------------


def test_the_questions_ask_each_skill_as_often_and_each_about_a_drawing_of_its_own():
    cases = compare.questions("lesson", 1)
    assert len(cases) == 100
    assert Counter(case.factors["skill"] for case in cases) == dict.fromkeys(compare.SKILLS, 25)
    assert len({case.id for case in cases}) == len({case.picture.tobytes() for case in cases}) == 100
    assert Counter(case.truth["answer"] for case in cases if case.factors["skill"] == "yes_no")["yes"] in (12, 13)
    for case in cases:
        form, _ = compare.form_of(case.question)  # so each can be asked of a system that chooses
        assert case.truth["answer"] in ("1", "2", "3") or case.truth["answer"] in form.options


def test_the_same_seed_asks_the_same():
    again, other = compare.questions("smoke", 1), compare.questions("smoke", 2)
    assert [case.question for case in again] == [case.question for case in QUESTIONS]
    assert all(a.picture.tobytes() == b.picture.tobytes() for a, b in zip(again, QUESTIONS, strict=True))
    assert [case.id for case in other] != [case.id for case in again]


def test_what_was_published_belongs_to_no_question_with_a_truth():
    posts = compare.posts()
    assert {case.id for case in posts} > set(PUBLISHED_ANSWERS)
    assert all(case.truth == {} for case in posts)
    assert all(said.source and said.image and said.system for said in PUBLISHED_ANSWERS.values())
    lessons = " ".join(
        "".join(cell.source for cell in nbformat.read(NOTEBOOKS / name, as_version=4).cells)
        for name in ("03_captcha_probe.ipynb", "04_japanese_limits.ipynb")
    )
    assert PUBLISHED_ANSWERS["code"].answer in lessons
    assert PUBLISHED_ANSWERS["Japanese"].answer in lessons


# Systems ---------------------------------------------------------------------------------------------------


def test_the_tiny_clip_chooses_and_says_where_it_cannot():
    clip = Clip("smoke")
    assert "model" not in vars(clip)  # it learns when it is asked
    for case in QUESTIONS:
        form, _ = compare.form_of(case.question)
        answer = clip.ask(case.picture, case.question, max_new_tokens=5)
        assert answer == CANNOT if case.factors["skill"] == "count" else answer in form.options
    assert clip.ask(QUESTIONS[0].picture, "Describe the image.") == CANNOT


def test_the_tiny_clip_says_yes_where_a_caption_alone_fits():
    """SigLIP's loss puts the line at a logit of 0."""
    clip, case = Clip("smoke"), QUESTIONS[3]
    word = re.match(r"Is there a (\w+)", case.question)[1]
    logit = clip.model.logits(clip.model.similarities([case.picture], [f"there is a {word}"])).item()
    assert clip.ask(case.picture, case.question) == ("yes" if logit > 0 else "no")


def test_choosing_takes_the_likeliest_of_the_possible_answers(nano):
    case = QUESTIONS[0]
    chosen = Choosing(nano, "{}" + compare.SHORT).ask(case.picture, case.question)
    ranked = nano.rank(case.picture, case.question + compare.SHORT, compare.form_of(case.question)[0].options)
    assert chosen == ranked[0].answer == case.truth["answer"]
    assert Choosing(nano).ask(case.picture, "Describe the image.") == CANNOT


def test_other_words_and_no_image_are_what_the_subject_gets(nano):
    inner = Scripted("a", ["x"] * 3)
    Asked(inner, "Question: {} Answer:").ask("image", "Why?", max_new_tokens=7)
    Asked(inner, image=False).ask("image", "{}?")
    assert inner.asked == [("image", "Question: Why? Answer:", {"max_new_tokens": 7}), (None, "{}?", {})]
    case = QUESTIONS[0]
    brief = Asked(nano, "{}" + compare.SHORT)
    (many,) = brief.ask_many([(case.picture, case.question)], progress=False)
    assert many == str(brief.ask(case.picture, case.question)) == case.truth["answer"]


def test_whoever_is_asked_otherwise_is_another_subject(nano):
    every = [
        nano,
        Asked(nano),
        Asked(nano, "So: {}"),
        Asked(nano, image=False),
        Choosing(nano),
        Choosing(nano, "So: {}"),
    ]
    identities = [runs.Subject.of(each).identity for each in every]
    assert len({str(sorted(identity.items())) for identity in identities}) == len(every)
    assert {identity["checkpoint"] for identity in identities} == {"imp-nano"}
    assert Clip("smoke").identity != Clip("lesson").identity == Clip("standard").identity


@pytest.mark.parametrize("words", ["no place", "{} and {}", None])
def test_words_without_one_place_for_the_question_are_refused(words):
    for system in (Asked, Choosing):
        with pytest.raises(SettingError, match=r"with one \{\} where the question goes"):
            system(None, words)


# Asking ----------------------------------------------------------------------------------------------------


def test_every_answer_is_kept_and_asked_once(tmp_path):
    said = Scripted("all", truths(QUESTIONS))
    frame = compare.run({"all": said, "none": Scripted("none", ["?"] * 12)}, QUESTIONS, tmp_path)
    assert list(frame.outcome) == ["right"] * 12 + ["wrong"] * 12
    again = compare.run({"all": Scripted("all", [])}, QUESTIONS, tmp_path)
    assert again.equals(frame[frame.subject == "all"])
    assert [image.tobytes() for image, *_ in said.asked] == [case.picture.tobytes() for case in QUESTIONS]
    assert {str(settings) for *_, settings in said.asked} == {"{'max_new_tokens': 60}"}


def test_what_failed_counts_apart_and_is_asked_again(tmp_path):
    answers = truths(QUESTIONS)
    frame = compare.run({"a b": Scripted("a", [ValueError("off"), *answers[1:]])}, QUESTIONS, tmp_path)
    assert frame.outcome.iloc[0] == "failed"
    assert "off" in frame.answer.iloc[0]
    assert compare.table(frame).loc["a b"].to_dict()["failed"] == 1
    healed = compare.run({"a b": Scripted("a", answers[:1])}, QUESTIONS, tmp_path)
    assert list(healed.outcome) == ["right"] * 12
    assert "failed" not in compare.table(healed)


def test_a_server_is_a_subject_as_any_other(tmp_path):
    """Its refusals and limits are told apart, and what it answered is not asked again."""
    pytest.importorskip("openai")
    endpoint = pytest.importorskip("imp_kit.subjects.openai_endpoint")
    loopback = pytest.importorskip("loopback_openai")
    known = {case.question: case.truth["answer"] for case in QUESTIONS}

    def answer(talk, number):
        finish = ("content_filter", "length", "stop")[min(number, 2)]
        talk.give(loopback.completion(known[talk.question], finish=finish))

    with loopback.serve(answer) as server:
        subjects = {"a server": endpoint.OpenAIEndpoint(server.url, "tiny")}
        frame = compare.run(subjects, QUESTIONS[2:], tmp_path)
        assert frame.equals(compare.run(subjects, QUESTIONS[2:], tmp_path))
        assert len(server.requests) == len(frame) == 10
    assert frame.outcome.value_counts().to_dict() == {"right": 8, "refused": 1, "cut off": 1}


@pytest.mark.parametrize("subjects", [{}, {"?": None}, {"a b": None, "a/b": None}])
def test_subjects_need_names_of_their_own(subjects, tmp_path):
    with pytest.raises(SettingError, match="a name of its own"):
        compare.run(subjects, QUESTIONS, tmp_path)


RED = {"status": "ok", "question": "What color is the bus?", "truth": {"set": "colors", "answer": "red"}}


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        (RED | {"answer": "The bus is red."}, "right"),
        (RED | {"answer": "It is red or blue."}, "wrong"),
        (RED | {"answer": "The bus is red. It", "finish": "length"}, "cut off"),
        (RED | {"answer": "I only know drawings.", "finish": "stop"}, "refused"),
        (RED | {"answer": "I'm sorry, but I can't help with that."}, "refused"),
        (RED | {"answer": "Sorry for the small print: red."}, "right"),
        (RED | {"answer": "", "finish": "refusal"}, "refused"),
        (RED | {"answer": "The bus is red, but", "finish": "refusal"}, "refused"),
        (RED | {"answer": "I cannot see a bus."}, "wrong"),
        (RED | {"answer": CANNOT}, "cannot be asked"),
        (RED | {"status": "error", "error": "timeout"}, "failed"),
        (RED | {"truth": {}, "answer": "Whatever."}, ""),
        (RED | {"truth": {}, "answer": "I only know drawings."}, "refused"),
    ],
)
def test_the_rule_for_outcomes(record, wanted):
    assert compare.outcome(record) == wanted
    assert wanted in OUTCOMES


def test_a_limit_that_is_too_small_cuts_and_does_not_make_wrong(nano, tmp_path):
    frame = compare.run({"nano": nano}, QUESTIONS[:4], tmp_path, max_new_tokens=2)
    assert set(frame.outcome) == {"cut off"}


# Results ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    """a: 11 of 12; b: wrong at 0 to 4; c: cannot be asked about 8 to 11, of the rest 6 right."""
    right = truths(QUESTIONS)
    answers = {
        "a": [*right[:11], "?"],
        "b": [*["I only know drawings."] * 2, *["?"] * 3, *right[5:]],
        "c": [*["?"] * 2, *right[2:8], *[CANNOT] * 4],
    }
    subjects = {name: Scripted(name, given) for name, given in answers.items()}
    return compare.run(subjects, QUESTIONS, tmp_path_factory.mktemp("runs"))


def test_the_table_counts_what_was_not_asked_apart(frame):
    table = compare.table(frame)
    assert list(table.index) == ["a", "b", "c"]
    assert list(table.loc["b"]) == [12, str(share_of([True] * 7 + [False] * 5)), 3, 2, 0, 0]
    assert list(table.loc["c"]) == [8, str(share_of([True] * 6 + [False] * 2)), 2, 0, 0, 4]
    nothing = compare.table(frame[(frame.subject == "c") & (frame.outcome == "cannot be asked")])
    assert list(nothing.loc["c"]) == [0, "–", 0, 0, 0, 4]


def test_differences_are_paired_and_only_over_shared_questions(frame):
    table = compare.differences(frame)
    assert list(table["shared"]) == [12, 8]
    assert list(table["only the first"]) == [5, 2]
    assert list(table["only the second"]) == [1, 0]
    first = [1] * 5 + [0] * 6 + [-1]
    assert table["difference"].iloc[0] == f"{bounded_difference(first, range(12)):+.1%}"
    p = [mcnemar([True] * 5 + [False], [False] * 5 + [True]), mcnemar([True] * 2, [False] * 2)]
    assert list(table["p"]) == [f"{each:.2g}" for each in holm(p)]
    with pytest.raises(SettingError, match="needs two"):
        compare.differences(frame[frame.subject == "a"])
    with pytest.raises(SettingError, match="no question that both"):
        compare.pairs(frame, "a", "nobody")


@pytest.mark.parametrize(("count", "one", "other"), [(30, 0.3, 0.1), (100, 0.11, 0.04), (60, 0.2, 0.0), (40, 0.1, 0.1)])
def test_the_chance_to_tell_is_that_of_many_tries(count, one, other):
    rng = np.random.default_rng(0)
    tries = rng.multinomial(count, [one, other, 1 - one - other], size=4000)
    found = [_p(a, b) < 0.05 for a, b, _ in tries.tolist()]
    assert compare.chance_to_tell(count, one, other) == pytest.approx(np.mean(found), abs=0.025)


def _p(a, b):
    tail = sum(math.comb(a + b, k) for k in range(min(a, b) + 1)) / 2 ** (a + b)
    return min(1, 2 * tail)


@pytest.mark.parametrize("given", [(0, 0.1, 0.1), (10, -0.1, 0.2), (10, 0, 0), (10, 0.7, 0.7)])
def test_a_chance_of_nothing_has_one_clear_error(given):
    with pytest.raises(SettingError, match="at least one question"):
        compare.chance_to_tell(*given)


# Pictures --------------------------------------------------------------------------------------------------


def test_the_grid_shows_each_outcome_in_its_color(frame):
    image = compare.grid(frame, QUESTIONS[:1]).convert("RGB")
    shown = {color for _, color in image.getcolors(image.width * image.height)}
    assert {_rgb(OUTCOMES["right"]), _rgb(OUTCOMES["wrong"]), _rgb(OUTCOMES["refused"])} <= shown
    assert _rgb(compare.PUBLISHED) not in shown
    assert (np.asarray(image)[-1] > 200).all(), "something is cut off at the bottom"


def test_what_was_published_stands_in_a_column_of_its_own_and_says_so(tmp_path, monkeypatch):
    posts, drawn = compare.posts(), []
    answers = ["An answer with $ signs $", *["It is a door."] * 5]
    frame = compare.run({"a": Scripted("a", answers)}, posts, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", _keeping(drawn))
        image = compare.grid(frame, posts).convert("RGB")
    words = " ".join(text.get_text() for text in drawn[0].axes[0].texts)
    said = " ".join(words.split())
    assert "published, not asked here" in said
    assert "about a photograph of a man at a door: The person in the image" in said
    assert said.count("imp-v1-3b, about") == len(PUBLISHED_ANSWERS) == 3
    assert _rgb(compare.PUBLISHED) in {color for _, color in image.getcolors(image.width * image.height)}
    right, bottom = drawn[0].bbox.x1, drawn[0].bbox.y0
    for text in drawn[0].axes[0].texts:
        box = text.get_window_extent()
        assert box.x1 <= right, text.get_text()
        assert box.y0 >= bottom, text.get_text()


def _rgb(color):
    return tuple(bytes.fromhex(color[1:]))


def _keeping(drawn):
    from matplotlib.figure import Figure

    save = Figure.savefig

    def keep(figure, *arguments, **named):
        drawn.append(figure)
        return save(figure, *arguments, **named)

    return keep


def test_an_answer_stays_in_its_cell(monkeypatch, tmp_path):
    """Also one of wide letters, which is cut off at the edge of its cell."""
    drawn, posts = [], compare.posts()[:1]
    answers = {"a": "W" * 60, "b": "It is a white and red bus, which stands on a gray street. " * 3}
    frame = compare.run({name: Scripted(name, [text]) for name, text in answers.items()}, posts, tmp_path)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", _keeping(drawn))
    compare.grid(frame, posts)
    (axes,) = drawn[0].axes
    wide, usual = (text for text in axes.texts if text.get_text()[:2] in ("WW", "It"))
    first, second = (box.get_window_extent() for box in axes.patches)
    assert wide.get_clip_box().x1 == pytest.approx(first.x1)
    assert first.x1 <= usual.get_window_extent().x0
    assert usual.get_window_extent().x1 <= second.x1


def test_what_is_disputed_is_right_with_some_and_not_with_others(frame):
    found = compare.disputed(frame, QUESTIONS, 3)
    assert [case.id for case in found] == [case.id for case in QUESTIONS[:3]]
    assert compare.disputed(frame[frame.subject == "a"], QUESTIONS) == []
    assert compare.grid(frame, []).height < 60


def test_the_charts_are_the_numbers(frame):
    axes = compare.chart(frame).axes
    assert [each.get_title() for each in axes] == ["color", "kind", "count", "yes or no", "all"]
    points = [line.get_xdata()[0] for line in axes[-1].lines if len(line.get_xdata()) == 1 and line.get_marker() == "o"]
    assert points == pytest.approx([11 / 12, 7 / 12, 6 / 8])
    figure = compare.agreement(frame, "a", "b")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "both right: 6",
        "only a: 5",
        "only b: 1",
        "both wrong: 0",
    ]
    assert len(figure.axes[0].patches) == 12
    line = compare.lead(frame, "a", "b").axes[0].lines[0]
    assert line.get_xdata().tolist() == list(range(5, 13))
    assert line.get_ydata()[[0, -1]] == pytest.approx([1, 4 / 12])


def test_a_subject_that_cannot_be_asked_has_no_point(frame):
    asked = frame[(frame.subject != "c") | (frame.outcome == "cannot be asked")]
    assert [text.get_text() for axes in compare.chart(asked).axes for text in axes.texts] == ["cannot be asked"] * 5


def test_the_examples_show_question_and_truth():
    sheet = compare.examples(QUESTIONS[:5], columns=4)
    assert isinstance(sheet, Image.Image)
    assert sheet.width > 4 * 170
    assert sheet.height > 2 * 170


# The notebook ----------------------------------------------------------------------------------------------


def test_the_readers_own_systems_are_there_to_be_switched_on():
    """Without their `#`, the lines are Python that names the kit's two adapters as these are called."""
    on = re.sub(r"^( *)# (from |\")", r"\1\2", CELLS["subjects"], flags=re.M)
    compile(on, "subjects", "exec")
    assert 'Transformers("llava-hf/llava-1.5-7b-hf")' in on
    assert 'OpenAIEndpoint("http://127.0.0.1:8000/v1",' in on
    assert "#" not in on


def test_the_kept_results_are_those_that_the_text_names():
    cells = {cell.id: cell for cell in nbformat.read(NOTEBOOKS / "10_compare.ipynb", as_version=4).cells}
    html = cells["differences"].outputs[0].data["text/html"]
    for name in ("BLIP-2's words", "LLaVA's words", "briefly"):
        only_one, only_other = re.search(rf"{name}</th>\s*<td>100</td>\s*<td>(\d+)</td>\s*<td>(\d+)", html).groups()
        assert int(only_one) + int(only_other) <= 3
    assert "other words than the plain ones change at most a few of 100 answers" in CELLS["pairs-text"]


@pytest.mark.slow
def test_with_imp_nano_the_text_of_the_notebook_is_true(nano, tmp_path):
    if not as_made():
        pytest.skip("with other packages, or on another CPU, some answers may differ")
    llava = "{}\nAnswer the question using a single word or phrase."
    asked = {"blip": Asked(nano, "Question: {} Short answer:"), "llava": Asked(nano, llava)}
    frame = compare.run({"nano": nano, **asked}, compare.questions("lesson", 1), tmp_path)
    table = compare.differences(frame)
    alone = list(zip(table["only the first"], table["only the second"], strict=True))
    assert alone == [(2, 0), (1, 0)]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_solution_is_right_and_an_empty_cell_is_not_yet(number, capsys):
    task = CELLS[f"exercise-{number}"]
    solution = CELLS[f"solution-{number}"].partition("```python\n")[2].partition("```")[0]
    exec(task, {})
    assert capsys.readouterr().out.startswith("Not yet: ")
    exec(f"from imp_kit.exercises import compare as check\n{solution}\n{task.splitlines()[-1]}", {"compare": compare})
    assert capsys.readouterr().out.startswith("Right: ")


RULE = "def outcome(text, finish): return 'cut off' if finish == 'length' else 'refused' if {} else 'answered'"
TAIL = "import math\ndef p_value(a, b): return {}sum(math.comb(a + b, k) for k in range(min(a, b) + 1)) / 2 ** (a + b)"
WORDS = "'know' in text or 'orry' in text"
WRONG = [
    (1, "is 'cut off'; yours is 'answered'", "def outcome(text, finish): return 'answered'"),
    (1, "'' with finish 'refusal' is 'refused'", RULE.format(WORDS)),
    (1, "'I cannot see a cat in the image.' with", RULE.format(f"finish == 'refusal' or {WORDS} or 'cannot' in text")),
    (2, "take the tail twice", TAIL.format("")),
    (2, "a p-value is at most 1", TAIL.format("2 * ")),
    (2, "yours is 0.05", "def p_value(a, b): return 0.05"),
    (3, "Take more.", "answer = 100"),
    (3, "Fewer are enough.", "answer = 400"),
    (3, "whole number", "answer = 0.8"),
]


@pytest.mark.parametrize(("number", "hint", "answer"), WRONG)
def test_a_wrong_answer_gets_a_hint(number, hint, answer, capsys):
    call = CELLS[f"exercise-{number}"].splitlines()[-1]
    exec(f"from imp_kit.exercises import compare as check\n{answer}\n{call}", {})
    printed = capsys.readouterr().out
    assert printed.startswith("Not yet: ")
    assert hint in printed
