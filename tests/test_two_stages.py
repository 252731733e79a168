"""Notebook 07: the tiny Imp and its stages, the new shape, the exercises, and the figures."""

import inspect
import io
import math
import re
from dataclasses import replace

import nbformat
import numpy as np
import pytest
import torch
from first_cell import NOTEBOOKS
from PIL import Image
from torch import nn
from torch.nn import functional as F

import imp_kit
from imp_kit.errors import RunError, SettingError
from imp_kit.exercises import training as check
from imp_kit.experiments.drawings import KINDS, Pen, Scene, Thing
from imp_kit.experiments.stats import wilson
from imp_kit.lessons.two_stages import network, new_shape, pictures, plots, stages
from imp_kit.nano.training.lessons import INSIDE, LESSONS, PICTURES, WORDINGS

CELLS = {cell.id: cell.source for cell in nbformat.read(NOTEBOOKS / "07_train_and_tune.ipynb", as_version=4).cells}
KITE = new_shape.NewShape("kite", [(0.5, 0), (1, 0.35), (0.5, 1), (0, 0.35)])
MAX_BYTES = 60_000  # of a figure


def thing(kind, colors, column=1, row=1):
    return Thing(kind, tuple(colors.split()), column, row, (0.1, 0.1, 0.3, 0.3))


def scene(*things):
    return Scene(things, (96, 48))


PAIR = scene(thing("star", "red", 0), thing("circle", "blue", 2))
TWINS = scene(thing("star", "red", 0), thing("star", "blue", 1))


@pytest.fixture(scope="module")
def short_answers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "LONGEST_ANSWER", 4)
        yield


@pytest.fixture(scope="module")
def whole_course(short_answers):
    """A whole course of a few steps, with both exams, and the parts that each of its lessons changed.

    It learns nothing, so no answer ends by itself; a few words of each are enough.
    """
    made, changed = stages.Course("smoke"), {}

    def teach(lesson):
        before = {name: value.clone() for name, value in made.model.state_dict().items()}
        lesson()
        after = made.model.state_dict()
        changed[lesson.__name__] = {name.partition(".")[0] for name in before if not before[name].equal(after[name])}

    teach(made.look)
    teach(made.read)
    teach(made.stage_one)
    made.exam("after stage 1")
    teach(made.stage_two)
    made.exam("after stage 2")
    return made, changed


@pytest.fixture(scope="module")
def course(whole_course):
    return whole_course[0]


@pytest.fixture(scope="module")
def nano():
    return imp_kit.load("imp-nano", device="cpu")


@pytest.fixture(scope="module")
def exams(nano):
    return {"before": new_shape.exam(nano, KITE, "smoke")}


# The network ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_a_layer_is_that_of_torch(causal):
    torch.manual_seed(0)
    layer = network.Layer(24, causal)
    oracle = nn.TransformerEncoderLayer(24, network.HEADS, 96, 0.0, "gelu", batch_first=True, norm_first=True)
    parts = {
        "self_attn.in_proj_weight": layer.qkv.weight,
        "self_attn.in_proj_bias": layer.qkv.bias,
        "self_attn.out_proj.weight": layer.out.weight,
        "self_attn.out_proj.bias": layer.out.bias,
        **{f"linear{n}.{p}": getattr(layer.mlp[2 * n - 2], p) for n in (1, 2) for p in ("weight", "bias")},
        **{f"norm1.{p}": getattr(layer.norm, p) for p in ("weight", "bias")},
        **{f"norm2.{p}": getattr(layer.mlp_norm, p) for p in ("weight", "bias")},
    }
    oracle.load_state_dict(parts)
    x = torch.randn(3, 7, 24)
    mask = nn.Transformer.generate_square_subsequent_mask(7) if causal else None
    torch.testing.assert_close(layer(x), oracle(x, src_mask=mask), atol=1e-5, rtol=1e-5)


def test_words_see_the_image_and_the_words_before_them_alone():
    torch.manual_seed(0)
    model = network.TinyImp(words=20, longest=30, width=16, depth=2)
    pixels, ids = torch.randn(2, 3, 48, 96), torch.tensor([[3, 4, 5], [3, 4, 9]])
    features = model.tower(pixels)
    assert features.shape == (2, 18, 16)
    scores = model(features[[0, 0]], ids)
    assert scores.shape == (2, 3, 20)
    torch.testing.assert_close(scores[0, :2], scores[1, :2])
    assert not torch.allclose(scores[0, 2], scores[1, 2])
    other = model(features[[0, 1]], ids[[0, 0]])
    assert not torch.allclose(other[0, 0], other[1, 0], atol=1e-3)


def test_a_patch_is_16_pixels_of_one_row():
    tower = network.Tower(patch=16, patches=18, width=16, depth=0)
    pixels = torch.zeros(1, 3, 48, 96)
    before = tower(pixels)
    pixels[..., 16:32, 32:48] = 1  # second row, third column
    assert (tower(pixels) != before).any(dim=2).nonzero().tolist() == [[0, 6 + 2]]


def test_an_answer_ends_at_the_stop_word():
    model = network.TinyImp(words=6, longest=40, width=16, depth=1)
    features, ids, bias = torch.zeros(2, 18, 16), torch.tensor([[2], [2]]), model.decoder.head.bias
    nn.init.zeros_(model.decoder.head.weight)
    for best, written in ((1, []), (4, [4] * 5)):
        bias.data = F.one_hot(torch.tensor(best), 6).float()
        assert model.answer(features, ids, stop=1, most=5) == [written] * 2


def test_the_network_stands_alone_and_is_short():
    source = inspect.getsource(network)
    assert re.findall(r"^(?:from|import) (\w+)", source, re.M) == ["torch"] * 3
    assert len(source.splitlines()) <= 90


# Pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("about", "answers"),
    [
        ("describe", {"a red star on the left and a blue circle on the right"}),
        ("count", {"two"}),
        ("color", {"red", "blue"}),
        ("place", {"on the left", "on the right"}),
        ("what", {"a red star", "a blue circle"}),
        ("exists", {"yes", "no"}),
    ],
)
def test_answers_of_the_tiny_world(about, answers):
    rng = np.random.default_rng(0)
    pairs = {pictures.ask(PAIR, about, rng) for _ in range(60)}
    assert {pair.answer for pair in pairs} == answers
    for pair in pairs:
        if about in ("color", "place"):
            assert ("star" in pair.question) == (pair.answer in ("red", "on the left"))
        if about == "what":
            assert ("left" in pair.question) == (pair.answer == "a red star")
        if about == "exists":
            assert (pair.answer == "yes") == any(kind in pair.question for kind in ("star", "circle"))


def test_what_two_things_share_is_not_asked():
    rng = np.random.default_rng(0)
    for about in ("color", "place"):
        assert {pictures.ask(TWINS, about, rng) for _ in range(20)} == {None}


def test_each_thing_is_in_its_third_and_shows_its_color():
    rng = np.random.default_rng(0)
    for _ in range(30):
        made, pixels = pictures.sample_drawing(rng)
        assert pixels.shape == (3, 48, 96)
        assert -1 <= pixels.min() <= pixels.max() <= 1
        columns = [each.column for each in made.things]
        assert columns == sorted(set(columns))
        for each in made.things:
            assert each.column / 3 - 0.02 < each.box[0] < each.box[2] < (each.column + 1) / 3 + 0.02
            assert 0 <= each.box[1] < each.box[3] <= 1


def test_a_text_says_the_facts_between_dots():
    rng = np.random.default_rng(0)
    for _ in range(20):
        words = pictures.told(PAIR, rng, 18).split()
        assert len(words) == 18
        assert words.count(".") == 12
        facts = [words[start : start + 3] for start in range(0, 18, 3) if words[start] != "."]
        assert sorted(map(sorted, facts)) == [["blue", "circle", "right"], ["left", "red", "star"]]


# The stages ------------------------------------------------------------------------------------------------------


def test_only_the_answer_is_learned():
    ids, labels = stages.learned([([5, 6, 7], [8, 1]), ([2], [9, 9, 3, 1])])
    assert ids.tolist() == [[5, 6, 7, 8, 1], [2, 9, 9, 3, 1]]
    assert labels.tolist() == [[-100, -100, -100, 8, 1], [-100, 9, 9, 3, 1]]
    assert stages.learned([([2], [1]), ([2], [4, 1])])[1].tolist() == [[-100, 1, -100], [-100, 4, 1]]
    scores = torch.randn(2, 5, 12)
    logs = scores.log_softmax(dim=2)
    wanted = [logs[0, 2, 8], logs[0, 3, 1], logs[1, 0, 9], logs[1, 1, 9], logs[1, 2, 3], logs[1, 3, 1]]
    torch.testing.assert_close(stages.next_word_loss(scores, labels), -torch.stack(wanted).mean())


def test_each_lesson_changes_its_own_parts(whole_course):
    assert whole_course[1] == {
        "look": {"tower"},
        "read": {"decoder"},
        "stage_one": {"projector"},
        "stage_two": {"projector", "decoder"},
    }


def test_a_course_is_a_function_of_its_seed():
    losses = []
    for seed in (2, 2, 3):
        made = stages.Course("smoke", seed)
        made.look()
        losses.append(made.losses["the tower looks"])
    assert losses[0] == losses[1] != losses[2]


def test_the_tower_learns_to_look(monkeypatch):
    monkeypatch.setitem(stages.SIZES, "smoke", replace(stages.SIZES["smoke"], look=60, batch=24))
    made = stages.Course("smoke")
    made.look()
    losses = made.losses["the tower looks"]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])  # 0.35 on the machine where this was written


def test_a_course_asks_about_what_it_never_learned(course):
    size = course.size
    asked = {number for about in stages.QUESTIONS for number, _ in course._asked(about, course._tests(1))}
    assert min(asked) >= size.drawings + size.exam
    assert not asked & set(course._tests(0))
    for stage, first in (("stage 1", ""), ("stage 2", "describe the image")):
        watched = course.watched(stage)
        assert len({number for number, _ in watched} & set(course._tests(0))) == 3
        assert watched[0][1].question == first
    assert [check.step for check in course.checks if check.stage == "stage 1"] == list(range(7))
    assert set(course.exams["after stage 1"]) == {"caption", *stages.QUESTIONS}
    assert course.exams["after stage 2"]["describe"].total == size.exam


def test_an_answer_belongs_to_its_question(course):
    """Asked together, in groups of one length, as asked alone."""
    asked = [pair for about in ("caption", *stages.QUESTIONS) for pair in course._asked(about, course._tests(1))]
    assert course.answer(asked) == [course.answer([pair])[0] for pair in asked]


@pytest.mark.parametrize("size", ["large", "", None, 3])
def test_another_size_is_refused(size, nano):
    for use in (stages.Course, lambda size: new_shape.exam(nano, KITE, size)):
        with pytest.raises(SettingError, match="choose one of 'lesson', 'smoke'"):
            use(size)


def test_stage_one_after_stage_two(course):
    with pytest.raises(SettingError, match="Stage 2 was here already; make a new Course"):
        course.stage_one()


def test_a_stage_before_the_tower_learned():
    made = stages.Course("smoke")
    for use in (made.stage_one, made.stage_two, lambda: made.exam("now")):
        with pytest.raises(SettingError, match=r"course.look\(\)"):
            use()


def test_a_loss_that_is_no_number_ends_the_stage(course):
    made = stages.Course("smoke")
    made.look()
    made.model.projector[0].weight.data.fill_(math.inf)
    with pytest.raises(RunError, match="stage 1 diverged: the loss of step 1 is no number"):
        made.stage_one()


# The new shape -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "Kite", "red kite", "kite2", None, "凧"])
def test_a_name_that_is_no_word(name):
    with pytest.raises(SettingError, match="word of small letters"):
        new_shape.NewShape(name, KITE.points)


@pytest.mark.parametrize("name", ["red", "the", "left", "is"])
def test_a_name_that_is_a_word_of_the_questions(name):
    with pytest.raises(SettingError, match=f"'{name}' is a word of the questions already"):
        new_shape.NewShape(name, KITE.points)


@pytest.mark.parametrize("name", ["star", "bus"])
def test_a_name_that_is_known(name):
    with pytest.raises(SettingError, match=f"imp-nano knows a {name} already"):
        new_shape.NewShape(name, KITE.points)


@pytest.mark.parametrize(
    "points",
    [[], [(0, 0), (1, 1)], [(0, 0), (0.5, 0.5), (1, 1)], [(0, 0), (2, 0), (1, 1)], [(0, 0, 0)] * 3, "abc", None,
     [(0, 0), (1, math.nan), (1, 1)], [(0, 0), (1,), (1, 1)]],
)  # fmt: skip
def test_corners_that_make_no_shape(points):
    with pytest.raises(SettingError, match="The corners of the kite are"):
        new_shape.NewShape("kite", points)


def test_a_drawing_has_one_thing_of_the_new_shape_and_no_people():
    rng = np.random.default_rng(0)
    for _ in range(15):
        image, made = new_shape.sample_drawing(KITE, rng)
        kinds = [each.kind for each in made.things]
        assert (kinds.count("kite"), kinds.count("person")) == (1, 0)
        assert set(kinds) <= {*KINDS, "kite"}
        assert image.size == made.size
    _, made = new_shape.sample_drawing(None, rng)
    assert {each.kind for each in made.things} <= set(KINDS) - {"person"}


def test_the_new_shape_is_drawn_as_its_corners_say():
    """On a plain ground: the area of the drawn thing is that of its corners, in parts of its box."""
    for corners, share in ((KITE.points, 0.5), ([(0, 0), (1, 0), (1, 1), (0, 1)], 1), ([(0, 0), (1, 0), (1, 1)], 0.5)):
        image = Image.new("RGB", (100, 100), "white")
        matrix = np.array(((100.0, 0, 0), (0, 100.0, 0)))
        pen = Pen(image, matrix, (100, 100), [(200, 0, 0)], False, np.random.default_rng(1), (0, 0, 0))
        new_shape.NewShape("plate", corners).draw(pen)
        assert (np.asarray(image) != 255).any(axis=2).mean() == pytest.approx(share, abs=0.04)


def test_questions_about_known_things_are_those_of_imp_nanos_lessons():
    """In wordings that it was trained on, with the answers that its own lessons give."""
    rng = np.random.default_rng(1)
    skills = {"what": "shape", "color": "color", "place": "position", "describe": "describe"}
    meanings = {
        "what": ("what", "what_colored", "what_placed"),
        "color": ("color",),
        "place": ("position",),
        "describe": ("caption",),
        "exists": ("exists",),
        "absent": ("exists",),
    }
    seen = set()
    for _ in range(60):
        _, made = new_shape.sample_drawing(None, rng)
        for about in new_shape.ABOUT:
            asked = new_shape.ask(made, about, rng)
            if asked is None:
                continue
            seen.add(about)
            question, answer = asked
            templates = [form for each in meanings[about] for form in WORDINGS[each]["trained"]]
            assert any(matches(form, question) for form in templates), question
            if about in skills:
                lesson = LESSONS[skills[about]]  # it also asks about what is not there
                assert answer in {each.answer for _ in range(20) for each in lesson(made, rng)}
    assert seen == set(new_shape.ABOUT)


def matches(form, question):
    """Whether a template of wordings.txt can become this question."""
    pattern = re.escape(form)
    slots = {"in": "|".join(map(re.escape, INSIDE)), "pic": "|".join(PICTURES)}
    for name in ("in", "pic", "x", "a", "c", "place"):
        pattern = pattern.replace(rf"\{{{name}\}}", f"(?:{slots.get(name, '.+')})")
    return re.fullmatch(pattern, question) is not None


def test_the_new_thing_is_what_is_asked_about():
    rng = np.random.default_rng(0)
    made = scene(thing("bus", "red white", 0, 0), thing("kite", "orange", 2, 1))
    wanted = {
        "what": ("What is the orange thing?", "It is a kite."),
        "color": ("What color is the kite?", "The kite is orange."),
        "place": ("Where is the kite?", "The kite is on the right."),
        "exists": ("Is there a kite in the image?", "Yes, there is a kite."),
        "absent": None,
        "describe": ("Describe the image.", "The picture shows a red and white bus and an orange kite."),
    }
    assert {about: new_shape.ask(made, about, rng, "kite") for about in new_shape.ABOUT} == wanted
    assert new_shape.ask(PAIR, "absent", rng, "kite") == ("Is there a kite in the image?", "No, there is no kite.")
    both = scene(thing("kite", "red", 0, 0), thing("kite", "red", 2, 1))
    assert [new_shape.ask(both, about, rng, "kite") for about in new_shape.ABOUT] == [None] * 6
    same_color = scene(thing("kite", "red", 1, 1), thing("bus", "red blue", 0, 1))
    assert new_shape.ask(same_color, "what", rng, "kite") == ("What is in the center?", "It is a kite.")


def test_replay_adds_as_many_drawings_without_the_new_shape():
    alone, mixed = (new_shape.lessons(KITE, "smoke", replay=replay) for replay in (False, True))
    learned = new_shape.SIZES["smoke"].learned
    assert mixed[: len(alone)] == alone
    assert all("kite" in each.question + each.answer for each in alone)
    assert len({id(each.image) for each in alone}) == learned
    old = mixed[len(alone) :]
    assert len({id(each.image) for each in old}) == learned
    assert learned < len(old) <= 2 * learned
    assert sum("kite" in each.question for each in old) == learned // 2
    assert all(each.answer == "No, there is no kite." for each in old if "kite" in each.question)


def test_the_exam_is_no_lesson(exams):
    learned = {each.image.tobytes() for each in new_shape.lessons(KITE, "smoke", replay=True)}
    assert not learned & {each.image.tobytes() for each in exams["before"].asked}


def test_an_exam_counts_what_is_right(nano, monkeypatch):
    def answers(self, asked, **_):
        return ["It is a kite.", *("The kite is red." for _ in asked[1:])]

    monkeypatch.setattr(type(nano), "ask_many", answers)
    found = new_shape.exam(nano, KITE, "smoke")
    right = [each.answer == answer for each, answer in zip(found.asked, found.answers, strict=True)]
    count = found.new.total
    assert count == sum("kite" in each.answer for each in found.asked[:count])
    assert (found.new, found.old) == (wilson(sum(right[:count]), count), wilson(sum(right[count:]), len(right) - count))
    assert found.confused == wilson(found.old.total, found.old.total)
    monkeypatch.setattr(type(nano), "ask_many", lambda self, asked, **_: ["The kites kiteboard." for _ in asked])
    assert new_shape.exam(nano, KITE, "smoke").confused == wilson(0, found.old.total)


def test_a_grid_has_a_run_for_each_rank_and_number_of_epochs(tmp_path, monkeypatch):
    calls = []
    real = new_shape.finetune
    monkeypatch.setattr(new_shape, "finetune", lambda *a, **k: (calls.append((k["rank"], k["epochs"])), real(*a, **k)))
    grid = new_shape.grid(KITE, "smoke")
    assert list(grid) == calls == [(4, 1), (16, 1)]
    figure = plots.grid_plot(grid)
    assert len(png(figure)) < MAX_BYTES


# Exercises -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_solution_is_right_and_an_empty_cell_is_not_yet(number, capsys):
    task = CELLS[f"exercise-{number}"]
    solution = CELLS[f"solution-{number}"].partition("```python\n")[2].partition("```")[0]
    exec(task, {})
    assert capsys.readouterr().out.startswith("Not yet: ")
    exec(f"from imp_kit.exercises import training as check\n{solution}\n{task.splitlines()[-1]}", {})
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(
    ("name", "answer", "hint"),
    [
        ("labels", lambda q, a: q + a, "the question would be learned"),
        ("labels", lambda q, a: [-100] * len(q) + a[:-1] + [-100], "It is the stop word"),
        ("labels", lambda q, a: a, "give 5 labels"),
        ("labels", lambda q, a: [0] * len(q) + a, "the labels are [-100, -100, -100, 8, 1]"),
        ("labels", lambda q, a: [-100] * 3 + a, "For the question [3]"),
        ("labels", lambda q: q, "TypeError"),
        ("labels", 5, "a function here"),
        ("added_parameters", 262144, "That is W itself"),
        ("added_parameters", 16 * 256, "one of the two matrices"),
        ("added_parameters", 16 * 1024, "one of the two matrices"),
        ("added_parameters", 16 * 262144, "add their sizes"),
        ("added_parameters", 12, "A is rank x inputs"),
        ("added_parameters", "many", "Give a number alone"),
        ("merge", lambda w, a, b, alpha: w + b @ a, "Close"),
        ("merge", lambda w, a, b, alpha: w + alpha * b @ a, "another result"),
        ("merge", lambda w, a, b, alpha: b @ a, "another result"),
        ("merge", lambda w, a, b, alpha: w.add_(b @ a), "W itself was changed"),
        ("merge", lambda w, a, b, alpha: a @ w.T, "yours is"),
        ("merge", lambda w, a, b, alpha: 3.0, "Return a tensor"),
        ("merge", lambda w, a, b, alpha: w + a @ b, "RuntimeError"),
    ],
)
def test_a_wrong_answer(name, answer, hint, capsys):
    getattr(check, name)(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("Not yet: ")
    assert hint in printed


def test_the_layer_of_the_exercise_is_one_of_imp_nano(nano):
    config = nano.model.config.decoder
    assert (config.hidden_size, config.intermediate_size) == check.WIDTHS


# Figures -----------------------------------------------------------------------------------------------------------


def png(figure):
    content = io.BytesIO()
    figure.savefig(content, format="png")
    small = io.BytesIO()
    Image.open(content).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()


def texts(figure):
    return [text for axes in figure.axes for text in axes.texts]


def test_figures_of_the_course(course):
    for figure in (plots.lessons_plot(course), plots.losses_plot(course)):
        assert len(png(figure)) < MAX_BYTES
    assert [axes.get_title() for axes in plots.losses_plot(course).axes] == list(stages.NAMES)


def test_answers_stand_beside_their_step_and_right_ones_are_green(course, monkeypatch):
    truths = tuple(pair.answer for _, pair in course.watched("stage 1"))
    checks = [stages.Check("stage 1", 0, ("no", "", truths[2]), wilson(1, 3))]
    monkeypatch.setattr(course, "checks", checks)
    figure = plots.answers_plot(course, "stage 1")
    shown = {text.get_text(): text.get_color() for text in texts(figure)}
    assert shown["   0"] == "#999999"
    assert shown["no"] != plots.RIGHT
    assert shown["(nothing)"] != plots.RIGHT
    assert shown[truths[2]] == plots.RIGHT
    assert len(png(figure)) < MAX_BYTES


def test_compared_answers_are_those_of_each_checkpoint(exams):
    first = exams["before"]
    wrong = replace(first, answers=("It is a $boat$.",) * len(first.asked))
    figure = plots.compared_plot(
        {"right": replace(first, answers=tuple(e.answer for e in first.asked)), "wrong": wrong}
    )
    shown = [(text.get_text(), text.get_color()) for text in texts(figure)]
    questions = [text for text, color in shown if text.endswith(("?", ".")) and color == "#777777"]
    assert len(questions) > 2
    drawings = {image.get_array().data.tobytes() for axes in figure.axes for image in axes.images}
    assert len(drawings) == len(questions), "each question is about a drawing of its own"
    assert shown.count(("It is a \\$boat\\$.", plots.WRONG)) == len(questions)
    assert shown.count(("right answer", "#777777")) == len(questions)
    assert sum(color == plots.RIGHT for _, color in shown) == 2 * len(questions)
    assert len(png(figure)) < MAX_BYTES


def test_what_is_answered_differently_is_compared_first(exams):
    first = exams["before"]
    for row, number in ((0, first.new.total - 1), (2, len(first.asked) - 1)):  # two of each half are shown
        other = replace(first, answers=(*first.answers[:number], "A boat.", *first.answers[number + 1 :]))
        axes = plots.compared_plot({"before": first, "after": other}).axes
        assert np.array_equal(axes[2 * row].images[0].get_array(), np.asarray(first.asked[number].image))
        assert axes[2 * row + 1].texts[0].get_text() == first.asked[number].question
        assert "differently" in axes[1].get_title()
    assert plots.compared_plot(exams).axes[1].get_title() == ""


def test_the_grid_shows_shares_with_their_intervals(exams):
    grid = {
        (rank, epochs): replace(exams["before"], new=wilson(rank, 20), old=wilson(epochs, 20))
        for rank in (4, 16)
        for epochs in (1, 2)
    }
    new, old, published = plots.grid_plot(grid).axes
    for axes, wanted in ((new, [[0.2, 0.8]] * 2), (old, [[0.05] * 2, [0.1] * 2])):
        assert [list(each.lines[0].get_ydata()) for each in axes.containers] == wanted
    low, high = new.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((wilson(4, 20).low, wilson(4, 20).high))
    names = [label.get_text() for label in published.get_yticklabels()]
    means = dict(zip(names, published.lines[0].get_xdata(), strict=True))
    assert means == {
        "full-parameter": 71.2,
        "rank 128": 71.4,
        "rank 256, 1 epoch": 71.6,
        "rank 512": 71.5,
        "rank 256, 2 epochs": 72.1,
        "rank 256, 3 epochs": 71.7,
    }
    assert any("2405.12107" in text.get_text() for text in published.texts)


def test_tables_hold_the_shares(course, exams):
    shown = stages.table(course)
    assert list(shown.columns) == ["after stage 1", "after stage 2"]
    assert shown.loc["count", "after stage 2"] == str(course.exams["after stage 2"]["count"])
    row = new_shape.table(exams).loc["before"]
    assert list(row) == [str(exams["before"].new), str(exams["before"].old), str(exams["before"].confused)]
