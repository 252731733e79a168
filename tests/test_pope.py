"""A POPE of drawings: which things are asked for, what counts as yes, and figures that are known by hand."""

import itertools
import json
from collections import Counter

import numpy as np
import pandas
import pytest
from planted import Planted, answered

import imp_kit
from imp_kit.experiments import plots
from imp_kit.experiments.drawings import KINDS as DRAWN
from imp_kit.experiments.frames import PROBES, frame_of, published_frame, samples_frame
from imp_kit.experiments.pope import probe, scenes
from imp_kit.experiments.report import write
from imp_kit.experiments.runs import read
from imp_kit.experiments.stats import wilson
from imp_kit.tools.cli import main

# Answers to "Is there a bus in the image?", judged by hand.
JUDGED = (
    ("Yes", "yes"),
    ("yes.", "yes"),
    ("Yes, there is a bus.", "yes"),
    ("Yes, there is no doubt.", "yes"),
    ("There is a bus in the image.", "yes"),
    ("There is no doubt that there is a bus.", "yes"),
    ("I can see a bus.", "yes"),
    ("The image shows a red bus and a tree.", "yes"),
    ("There is one on the left.", "yes"),
    ("No", "no"),
    ("No.", "no"),
    ("No, there is a tree.", "no"),
    ("No, but there is a tree.", "no"),
    ("There is no bus.", "no"),
    ("There isn’t a bus in the image.", "no"),
    ("I don't see one.", "no"),
    ("I see no bus, but a tree.", "no"),
    ("None.", "no"),
    ("The image does not contain a bus.", "no"),
    ("", ""),
    ("bus", ""),
    ("I only know drawings.", ""),
    ("There is a tree.", ""),
    ("There is no person.", ""),
    ("I cannot tell.", ""),
    ("I'm not sure, there may be a bus.", ""),
    ("yes or no", ""),
    ("It is a red one.", ""),
)


@pytest.mark.parametrize(("reply", "said"), JUDGED)
def test_an_answer_says_yes_or_no_as_judged_by_hand(reply, said):
    assert probe.yes_or_no(reply, "bus") == said


def test_a_thing_has_other_words():
    assert probe.yes_or_no("There is a man.", "person") == "yes"
    assert probe.yes_or_no("I see two mugs.", "cup") == "yes"
    assert probe.yes_or_no("There is a man.", "cat") == ""


def test_half_of_the_true_answers_are_yes_in_each_sampling():
    for size in ("smoke", "lesson"):
        asked = [case for case in probe.cases(size, 1) if case.factors["control"] == "none"]
        found = Counter((case.factors["sampling"], case.truth["answer"]) for case in asked)
        assert set(found.values()) == {probe.IMAGES[size]}
        assert {sampling for sampling, _ in found} == set(scenes.SAMPLINGS)
    for case in asked:
        there = case.truth["kind"] in case.truth["there"]
        assert there == case.factors["present"] == (case.truth["answer"] == "yes")
        assert case.question == f"Is there a {case.truth['kind']} in the image?"
        assert len(set(case.truth["there"])) == scenes.THINGS
    for _, six in itertools.groupby(asked, key=lambda case: case.seed):
        six = list(six)
        assert {case.truth["kind"] for case in six if case.factors["present"]} == set(six[0].truth["there"])


def test_no_door_is_asked_for_where_others_have_doors():
    seen = Counter()
    for seed in range(150):
        for case in probe.image_cases(seed):
            things = {*case.truth["there"], case.truth["kind"]}
            assert not ("door" in things and things & {"house", "bus"})
            seen.update([case.truth["kind"]])
    assert set(seen) == set(scenes.KINDS) < set(DRAWN)


def test_statistics_are_those_of_the_drawings():
    """Counted a second time, over drawings of other seeds: each share within 7 points."""
    single, pairs = scenes.statistics()
    drawn = [set(probe.image_cases(seed)[0].truth["there"]) for seed in range(500)]
    for kind in scenes.KINDS:
        assert abs(single[kind] / scenes.CORPUS - np.mean([kind in kinds for kinds in drawn])) < 0.07
    for one, other in itertools.combinations(scenes.KINDS, 2):
        share = np.mean([{one, other} <= kinds for kinds in drawn])
        assert abs(pairs[frozenset((one, other))] / scenes.CORPUS - share) < 0.07


def test_popular_things_are_frequent_and_adversarial_ones_come_with_those_in_the_image():
    single, pairs = scenes.statistics()
    chosen = {sampling: [] for sampling in scenes.SAMPLINGS}
    for seed in range(200):
        for case in probe.image_cases(seed):
            if not case.factors["present"]:
                kind, there = case.truth["kind"], case.truth["there"]
                together = sum(pairs[frozenset((kind, other))] for other in there)
                chosen[case.factors["sampling"]].append((single[kind], together))
    frequency, habit = ({s: np.mean(values, axis=0)[i] for s, values in chosen.items()} for i in (0, 1))
    assert frequency["popular"] > frequency["adversarial"] > frequency["random"]
    assert habit["adversarial"] > 1.2 * habit["random"]
    assert max(habit, key=habit.get) == "adversarial"


def test_absent_things_are_those_that_come_most_often():
    rng = np.random.default_rng(0)
    single, pairs = scenes.statistics()
    for kinds in (("tree", "bus", "person"), ("door", "cat", "cup"), ("person", "box", "star")):
        together = {kind: sum(pairs[frozenset((kind, other))] for other in kinds) for kind in scenes.KINDS}
        options = [kind for kind in scenes.KINDS if kind not in kinds and scenes._is_clear(kind, kinds)]
        picked = {scenes.absent(kinds, "adversarial", rng) for _ in range(30)}
        assert picked == {max(options, key=together.get)}
        popular = {scenes.absent(kinds, "popular", rng) for _ in range(30)}
        assert popular == {*sorted(options, key=single.get)[-2:]}
    assert scenes.absent(("tree", "bus", "person"), "adversarial", rng) == "house"  # it completes the street
    with pytest.raises(imp_kit.SettingError, match="sampling is 'rare'"):
        scenes.absent(("tree",), "rare", rng)


def test_the_same_seed_gives_the_same_image_and_another_one_another():
    images = [probe.image(seed) for seed in (1, 1, 2)]
    assert images[0].tobytes() == images[1].tobytes() != images[2].tobytes()
    assert (images[0].mode, images[0].size) == ("RGB", (scenes.SIDE, scenes.SIDE))


def test_controls_show_nothing():
    controls = [case for case in probe.cases("standard", 2) if case.factors["control"] != "none"]
    gray = [case.picture for case in controls if case.factors["control"] == "gray image"]
    assert {len(set(image.get_flattened_data())) if hasattr(image, "get_flattened_data") else len(set(image.getdata()))
            for image in gray} == {1}  # fmt: skip
    assert len({image.tobytes() for image in gray}) == probe.GRAYS["standard"]
    assert [case.picture for case in controls if case.factors["control"] == "no image"] == [None] * len(scenes.KINDS)
    assert {case.truth["answer"] for case in controls} == {"no"}


def test_sizes_and_ids():
    for size, images in probe.IMAGES.items():
        cases = probe.cases(size, 1)
        assert len({case.id for case in cases}) == len(cases)
        assert len(cases) == 6 * images + len(scenes.KINDS) * (probe.GRAYS[size] + 1)
    for arguments, message in ((("huge", 1), "size is 'huge'"), (("smoke", -1), "seed is -1")):
        with pytest.raises(imp_kit.SettingError, match=message):
            probe.cases(*arguments)


def rows(reply, size="lesson"):
    """A frame of what a planted model answers, without images."""
    records = answered(probe.cases(size, 1), reply, 0)
    return frame_of(records, {"experiment": "pope", "checkpoint": "planted"})


def test_a_model_that_always_says_yes():
    for sampling, part in probe.by_sampling(rows(lambda case, rng: "Yes.")):
        f = probe.figures(part)
        assert sampling in scenes.SAMPLINGS
        assert [round(each.value, 3) for each in (f.accuracy, f.precision, f.recall, f.f1)] == [0.5, 0.5, 1, 0.667]
        assert [f.yes.value, f.bias.value, f.false_yes.value, f.neither.value] == [1, 0.5, 1, 0]


def test_a_model_that_always_says_no_has_no_precision():
    frame = rows(lambda case, rng: "No.")
    for _, part in probe.by_sampling(frame):
        f = probe.figures(part)
        assert (f.precision, f.f1.value, f.recall.value, f.accuracy.value, f.bias.value) == (None, 0, 0, 0.5, -0.5)
    assert list(probe.table(frame)["precision"]) == ["none said yes"] * 3


def test_figures_are_those_of_the_counts():
    """Against the formulas, with a model that is sometimes wrong, and sometimes says neither."""
    options = ("Yes.", "No.", "I cannot tell.")
    chances = {True: (0.7, 0.2, 0.1), False: (0.3, 0.6, 0.1)}
    frame = rows(lambda case, rng: str(rng.choice(options, p=chances[case.factors["present"]])))
    for _, part in probe.by_sampling(frame):
        f, counts = probe.figures(part), Counter(zip(part.present, part.answer, strict=True))
        hit, false_yes, missed = counts[True, "Yes."], counts[False, "Yes."], counts[True, "No."]
        neither = counts[True, "I cannot tell."] + counts[False, "I cannot tell."]
        precision, recall = hit / (hit + false_yes), hit / 40
        wanted = {
            "accuracy": (hit + counts[False, "No."]) / 80,
            "precision": precision,
            "recall": recall,
            "f1": 2 * precision * recall / (precision + recall),
            "yes": (hit + false_yes) / 80,
            "bias": (hit + false_yes) / 80 - 0.5,
            "false_yes": false_yes / 40,
            "neither": neither / 80,
        }
        for name, value in wanted.items():
            estimate = getattr(f, name)
            assert estimate.value == pytest.approx(value), name
            assert estimate.low < estimate.value < estimate.high, name
        assert missed
        share = wilson(hit, 40)  # one question of an image: Wilson's interval itself
        assert (f.recall.low, f.recall.high) == pytest.approx((share.low, share.high))


def test_the_interval_of_f1_holds_the_true_one():
    """Of 400 runs with 40 images each, where 0.9 is the true F1: in 95 % of them, and within 3.5 standard errors."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        present = np.tile([True, False], 40)
        yes = rng.random(80) < np.where(present, 0.9, 0.1)
        found = probe.f1(pandas.DataFrame({"present": present, "yes": yes, "seed": np.arange(80) // 2}))
        held += found.low <= 0.9 <= found.high
    assert held / 400 > 0.95 - 3.5 * (0.95 * 0.05 / 400) ** 0.5


def test_figures_need_both_kinds_of_questions():
    frame = rows(lambda case, rng: "Yes.", "smoke")
    for part in (frame[frame.present], frame[:0]):
        with pytest.raises(imp_kit.SettingError, match="both about things that are there"):
            probe.figures(part)


def test_a_habit_is_found_in_a_model_that_has_one():
    """Planted: it sees what is there, and what often comes with it."""
    _, together = scenes.statistics()

    def reply(case, rng):
        kind, there = case.truth["kind"], case.truth["there"]
        often = sum(together[frozenset((kind, other))] for other in there) > 500
        return "Yes." if kind in there or often else "No."

    frame = rows(reply)
    paired = probe.pairs(frame)
    assert len(paired) == 40
    assert paired.yes_other.mean() > 0.7 > 0.5 > paired.yes.mean()
    (axes,) = plots.hallucination(frame, "planted").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == [*scenes.SAMPLINGS, "gray image", "no image"]
    shown = [list(line.get_ydata()) for line in axes.lines if len(line.get_xdata()) == 3]
    assert [1, 1, 1] in shown
    assert [paired.yes.mean(), paired.yes_other.mean()] in [ys[::2] for ys in shown]


def test_a_run_is_kept_and_reported(tmp_path):
    def reply(case, rng):
        return "Yes, there is." if case.factors["present"] or rng.random() < 0.3 else "No."

    subject = Planted(probe.cases("smoke", 1), reply, 0)
    samples = probe.run(subject, "smoke", 1, tmp_path)
    assert probe.run(subject, "smoke", 1, tmp_path) == samples
    assert subject.asked == len(samples) == 30
    record = read(tmp_path)[0]
    assert record["extracted"] == "yes"
    assert record["scores"] == {"right": True, "yes": True}
    frame = samples_frame(tmp_path)
    dtypes = {name: str(dtype) for name, dtype in frame.dtypes.items()}
    assert {name: dtypes[name] for name in probe.COLUMNS} == {
        name: dtype.removesuffix("[python]") for name, dtype in probe.COLUMNS.items()
    }
    assert [column for column in PROBES["pope"].COLUMNS if column not in samples_frame.__doc__] == []
    text = write([tmp_path]).read_text("utf-8")
    for part in ("# Things that are not there: Planted", "| adversarial | 4 |", "exact McNemar p = ",
                 "## Where nothing is there", "88.02"):  # fmt: skip
        assert part in text
    assert (tmp_path / "pope-1-yes.png").exists()
    # Scored anew: the file's own scores do not count.
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text("utf-8").splitlines()]
    lines[0]["scores"] = {"right": False}
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    assert samples_frame(tmp_path).right[0]


def test_expected_time_counts_what_is_left(tmp_path):
    subject = Planted(probe.cases("smoke", 1), lambda case, rng: "No.", 0)
    assert probe.expected(subject, "smoke", 1, tmp_path).samples == 30
    probe.run(subject, "smoke", 1, tmp_path)
    assert str(probe.expected(subject, "smoke", 1, tmp_path)) == "nothing is left to ask"


def test_published_figures_have_sources():
    frame = published_frame("pope")
    assert len(frame) == 5
    assert frame.Source.str.contains("github.com/MILVLG/imp").all()


def test_the_command_refuses_another_size(capsys, tmp_path):
    with pytest.raises(SystemExit, match="2"):
        main(["probe", "pope", "--size", "huge", "--checkpoint", "imp-nano", "--out", str(tmp_path / "run")])
    assert "The size is 'huge'; choose smoke, lesson, standard, full." in capsys.readouterr().err
