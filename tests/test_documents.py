"""Drawn documents with exact truth, the rules by which answers are scored, runs, and RefCOCO's format."""

import csv
import itertools
import json
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from planted import answered

import imp_kit
from imp_kit.answers import Answer
from imp_kit.boxes import Box
from imp_kit.exercises import documents as check
from imp_kit.experiments import plots
from imp_kit.experiments.documents import answers, pages, probe, refcoco, strokes
from imp_kit.experiments.documents.pages import SIDE, SKILLS, page
from imp_kit.experiments.frames import PROBES, frame_of, samples_frame
from imp_kit.experiments.report import write
from imp_kit.experiments.runs import read
from imp_kit.prompts import LOCATE
from imp_kit.tools.cli import main

with Path(__file__).with_name("documents_answers.csv").open(encoding="utf-8", newline="") as file:
    JUDGED = list(csv.DictReader(file))
SEEDS = range(1, 4)


# Rules -----------------------------------------------------------------------------------------------------


def truth_of(line):
    """The truth of a line of the table; "trend" is a choice among directions, "choice" one among four labels."""
    rule, answer = line["rule"], line["truth"]
    if rule == "number":
        return {"rule": rule, "answer": float(answer), "tolerance": float(line["tolerance"])}
    if rule in ("choice", "trend"):
        labels = {label: [label] for label in ("Pears", "Plums", "Figs", "Limes")}
        return {"rule": "choice", "answer": answer, "options": labels if rule == "choice" else pages.TRENDS}
    return {"rule": rule, "answer": json.loads(answer) if rule in ("box", "html") else answer}


@pytest.mark.parametrize("line", JUDGED, ids=lambda line: f"{line['rule']}: {line['answer'][:30]}")
def test_answers_are_scored_as_judged_by_hand(line):
    found = answers.judge(line["answer"], truth_of(line), line["question"])
    assert (found.right, found.refused) == (line["judged"] == "yes", line["judged"] == "refused"), line["why"]
    assert 0 <= found.score <= 1
    assert not found.refused or (found.score, found.extracted) == (0, "")
    assert found.score == 1 or not found.right or line["rule"] == "box"


def test_every_rule_was_judged_in_each_way():
    found = Counter((line["rule"], line["judged"]) for line in JUDGED)
    for rule in (*answers.RULES, "trend"):
        assert all(found[rule, judged] for judged in ("yes", "no", "refused")), rule
    assert len(JUDGED) > 100


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,234,567", [1234567]),
        ("1.234.567,89", [1234567.89]),
        ("12 345", [12345]),
        ("2019 120", [2019, 120]),
        (".5", [0.5]),
        ("-3", [-3]),
        ("1-3", [1, 3]),
        ("Q4 and 4th", []),
        ("twenty-one", [21]),
        ("one hundred", [100]),
        ("a hundred", [100]),
        ("3 million", [3_000_000]),
        ("12kg", [12]),
        ("no 12, without 13, rather 14", [14]),
        ("", []),
    ],
)
def test_numbers_of_a_text(text, found):
    assert answers.numbers(text) == found


def test_dates_of_a_text():
    def dates(text):
        return sorted(day.isoformat() for day in answers.dates(text))

    assert dates("05/06/2023") == ["2023-05-06", "2023-06-05"]
    assert dates("5 May '23 and Sept. 7, 2022") == ["2022-09-07", "2023-05-05"]
    assert dates("31 June 2023, 2023-13-01, 12.50") == []


def test_boxes_share_as_much_as_their_pixels():
    """IoU against counting the pixels of both boxes, on a grid of 12 x 12."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:12, :12]
    seen = set()
    for _ in range(200):
        one, other = (
            [min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1] for a, b, c, d in rng.integers(0, 12, (2, 4)).tolist()
        )
        inside = [(x0 <= x) & (x < x1) & (y0 <= y) & (y < y1) for x0, y0, x1, y1 in (one, other)]
        wanted = (inside[0] & inside[1]).sum() / (inside[0] | inside[1]).sum()
        assert answers.iou(one, other) == pytest.approx(wanted)
        seen.add(round(float(wanted), 1))
    assert {0, 0.5} < seen


def test_anls_is_0_from_half_of_the_edits_on():
    assert answers.anls("Lemons!", "lemons") == 1
    assert answers.anls("melons", "lemons") == pytest.approx(2 / 3)  # l and m changed places
    assert answers.anls("lem", "lemons") == 0
    assert answers.anls("", "lemons") == 0


def test_elements_of_html():
    html = (
        "```html\n<body><h1>Good\n food</h1><a href='x'>Home</a><p>more</p><img alt='x'><textarea></textarea></body>```"
    )
    wanted = [("heading", "good food"), ("link", "home"), ("image", ""), ("field", "")]
    assert answers.elements(html) == wanted
    assert answers.elements("<h1>open <a>both") == [("heading", "open"), ("link", "both")]
    assert answers.elements("</h1></a> & < text") == []
    assert answers.elements("<h1>open</h1><![foo[x]]><a>both</a>") == [("heading", "open")]  # Python's parser gives up
    assert answers.f1(wanted, wanted[::-1]) == 1
    assert answers.f1(wanted, wanted[:2]) == pytest.approx(2 / 3)
    assert answers.f1([("image", "")] * 3, [("image", "")]) == 0.5
    assert answers.f1([], wanted) == 0


# Drawings --------------------------------------------------------------------------------------------------


@pytest.fixture
def written(monkeypatch):
    """All that is written into images with a typeface, and where: the real method, watched."""
    texts, write = [], ImageDraw.ImageDraw.text

    def text(self, xy, text, *more, **options):
        texts.append((text, xy))
        return write(self, xy, text, *more, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return texts


@pytest.mark.parametrize(("kind", "skill"), SKILLS)
def test_a_document_is_a_seeded_square_and_its_truth_is_right(kind, skill):
    one, same, other = (page(kind, skill, seed) for seed in (7, 7, 8))
    assert one.image.tobytes() == same.image.tobytes() != other.image.tobytes()
    assert (one.image.size, one.image.mode) == ((SIDE, SIDE), "RGB")
    assert (one.question, one.truth) == (same.question, same.truth)
    for seed in range(20):
        asked = page(kind, skill, seed) if kind != "scene" or seed < 5 else one
        judged = answers.judge(probe.in_words(asked.truth), asked.truth, asked.question)
        assert judged.right, asked.truth
        assert judged.score > 0.9
        assert asked.truth == json.loads(json.dumps(asked.truth))
    others = [probe.in_words(page(kind, skill, seed).truth) for seed in SEEDS]
    wrong = [answers.judge(other, one.truth, one.question) for other in others]
    assert not all(judged.right for judged in wrong)


def colored(image):
    """Where an image has a strong color: of bars and lines, not of text and grid."""
    pixels = np.asarray(image).astype(int)
    return pixels.max(axis=2) - pixels.min(axis=2) > 80


def value_at(y):
    """The value of a chart at a height in pixels."""
    return 100 * (pages.BOTTOM - y) / (pages.BOTTOM - pages.TOP)


@pytest.mark.parametrize("seed", range(6))
def test_bars_are_as_high_as_the_truth_says(written, seed):
    for skill in ("value", "maximum"):
        written.clear()
        asked = page("bar chart", skill, seed)
        ink = colored(asked.image)
        labels = [text for text, (_, y) in written if y > pages.BOTTOM + 5]
        heights = {}
        for label, (x, _) in written:
            if label in labels:
                heights[label] = value_at(np.flatnonzero(ink[:, round(x)])[0])
        if skill == "maximum":
            assert asked.truth["answer"] == max(heights, key=heights.get)
            assert list(asked.truth["options"]) == labels
        else:
            (label,) = [label for label in labels if f" {label} " in asked.question]
            assert abs(heights[label] - asked.truth["answer"]) < 0.7
        assert sorted(heights.values())[-1] - sorted(heights.values())[-2] > 9


@pytest.mark.parametrize("seed", range(6))
def test_lines_run_as_the_truth_says(written, seed):
    for skill in ("value", "maximum", "trend"):
        written.clear()
        asked = page("line chart", skill, seed)
        ink, heights = colored(asked.image), {}
        for text, (x, y) in written:
            if y > pages.BOTTOM + 5:
                rows = np.flatnonzero(ink[:, round(x)])
                heights[int(text)] = value_at((rows[0] + rows[-1]) / 2)
        assert list(heights) == list(pages.YEARS)
        if skill == "value":
            assert abs(heights[int(re.search(r"\d{4}", asked.question)[0])] - asked.truth["answer"]) < 1.5
        elif skill == "maximum":
            assert asked.truth["answer"] == max(heights, key=heights.get)
        else:
            steps = np.diff(list(heights.values()))
            sign = {"rises": 1, "falls": -1, "stays the same": 0}[asked.truth["answer"]]
            assert all((abs(step) < 0.5) if not sign else step * sign > 2 for step in steps)


@pytest.mark.parametrize("seed", range(6))
def test_a_receipt_adds_up(written, seed):
    for skill in ("total", "price", "date"):
        written.clear()
        asked = page("receipt", skill, seed)
        assert asked.image
        rows = {}
        for text, (_, y) in written:
            rows.setdefault(y, []).append(text)
        prices = {row[0]: float(row[1]) for row in rows.values() if len(row) == 2}
        total = prices.pop("TOTAL")
        assert total == pytest.approx(sum(prices.values()))
        assert 3 <= len(prices) <= 5
        if skill == "total":
            assert asked.truth["answer"] == total
        elif skill == "price":
            (name,) = [name for name in prices if f"the {name} on" in asked.question]
            assert asked.truth["answer"] == prices[name]
        else:
            (day,) = answers.dates("\n".join(text for text, _ in written))
            assert asked.truth["answer"] == day.isoformat()


@pytest.mark.parametrize("seed", range(6))
def test_a_cell_is_where_row_and_column_meet(written, seed):
    asked = page("table", "cell", seed)
    assert asked.image
    places = dict(written)
    row, column = re.match(r"What is the value for (\w+) in (\w+) in", asked.question).groups()
    (value,) = [
        text
        for text, (x, y) in written
        if y == places[row][1] and 0 < x - places[column][0] < 60 and text not in (row, column)
    ]
    assert float(value.replace(",", "")) == asked.truth["answer"]


def test_letters_are_told_apart():
    drawn = {}
    for letter in strokes.LETTERS:
        image = Image.new("RGB", (90, 120), "white")
        strokes.write(image, letter, (20, 70), 30, strokes.Hand(0, 0, 0.1), np.random.default_rng(0))
        drawn[letter] = np.asarray(image)[:, :, 0] < 128
    assert len(drawn) == 26
    for one, other in itertools.combinations(drawn.values(), 2):
        assert (one != other).sum() > 40
    with pytest.raises(imp_kit.SettingError, match="no strokes for 'A'"):
        strokes.write(Image.new("RGB", (9, 9)), "A", (0, 0), 9, strokes.Hand(0, 0, 0.1), np.random.default_rng(0))


def test_handwriting_stays_on_the_paper():
    for seed in range(12):
        dark = np.asarray(page("handwriting", "text", seed).image.convert("L")) < 120
        assert dark[4:-4, 4:-4].sum() == dark.sum()
        assert dark.sum() > 2000


def test_a_sketch_holds_what_its_truth_says(monkeypatch):
    texts = []
    monkeypatch.setattr(pages, "write", lambda image, text, *more: texts.append(text))
    for seed in range(12):
        texts.clear()
        asked = page("sketch", "html", seed)
        assert asked.image
        elements = asked.truth["answer"]
        assert [text for _, text in elements if text] == texts
        roles = Counter(role for role, _ in elements)
        assert (roles["heading"], roles["button"]) == (1, 1)
        assert roles["link"] in (2, 3)
        assert max(roles["image"], roles["field"]) <= 1


def test_all_texts_of_a_sketch_have_space():
    links = sorted(map(strokes.width_of, pages.LINKS))[-3:]
    assert 40 + 17 * sum(links) + 2 * 34 < SIDE - 40
    assert max(map(strokes.width_of, pages.HEADINGS)) * 34 < SIDE - 80
    assert max(map(strokes.width_of, pages.BUTTONS)) * 19 < 410 - 250 - 10


def test_a_thing_to_locate_is_there_once():
    for seed in range(8):
        asked = page("scene", "box", seed)
        assert asked.question == LOCATE.format(asked.truth["phrase"])  # as imp.locate asks
        assert asked.truth["phrase"].removeprefix("the ") in pages.OBJECTS
        x0, y0, x1, y1 = asked.truth["answer"]
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 1


def test_what_is_no_document():
    for arguments, message in (
        (("bar chart", "trend", 1), "no document 'bar chart' with the question 'trend'; choose of bar chart"),
        (("table", "cell", -1), "seed is -1"),
        (("table", "cell", 1.5), "seed is 1.5"),
    ):
        with pytest.raises(imp_kit.SettingError, match=message):
            page(*arguments)


# Runs ------------------------------------------------------------------------------------------------------


def test_sizes_and_ids():
    for size, conditions in zip(probe.SAMPLES, (len(SKILLS) + 2, *(n * len(SKILLS) for n in (2, 3, 3))), strict=True):
        assert len(set(probe.cells(size))) == len(probe.cells(size)) == conditions
    for size in ("smoke", "lesson"):
        cases = probe.cases(size, 1)
        assert len({case.id for case in cases}) == len(cases) == probe.SAMPLES[size] * len(probe.cells(size))
    assert max(probe.SAMPLES.values()) <= probe.OTHER
    for arguments, message in ((("huge", 1), "size is 'huge'"), (("smoke", "1"), "seed is '1'")):
        with pytest.raises(imp_kit.SettingError, match=message):
            probe.cases(*arguments)


def test_a_control_has_the_same_question_and_truth_and_another_image():
    for kind, skill in SKILLS:
        own, blind, other = (probe.case(probe.Cell(kind, skill, control), 3) for control in probe.CONTROLS)
        assert own.question == blind.question == other.question
        assert own.truth == blind.truth == other.truth
        assert blind.picture is None
        assert own.picture.tobytes() != other.picture.tobytes()
        assert own.picture.tobytes() == page(kind, skill, 3).image.tobytes()


class Reader(probe.Known):
    """That counts how often it was asked."""

    asked = 0

    def ask(self, picture, question, **settings):
        self.asked += 1
        return super().ask(picture, question, **settings)


def test_a_run_is_kept_and_reported(tmp_path):
    reader = Reader(probe.cases("smoke", 1), 1)
    samples = probe.run(reader, "smoke", 1, tmp_path)
    assert probe.run(reader, "smoke", 1, tmp_path) == samples
    assert reader.asked == len(samples) == 14
    record = read(tmp_path)[0]
    assert record["scores"] == {"right": True, "score": 1, "refused": False}
    assert record["extracted"] == probe.in_words(record["truth"])
    frame = samples_frame(tmp_path)
    dtypes = {name: str(dtype) for name, dtype in frame.dtypes.items()}
    assert {name: dtypes[name] for name in probe.COLUMNS} == {
        name: dtype.removesuffix("[python]") for name, dtype in probe.COLUMNS.items()
    }
    assert [column for column in PROBES["documents"].COLUMNS if column not in samples_frame.__doc__] == []
    assert list(frame.right) == [True] * 12 + [False] * 2
    assert list(frame.refused) == [False] * 12 + [True] * 2
    text = write([tmp_path]).read_text("utf-8")
    for part in ("# Documents: a reader of 100%", "| receipt | date | date | 1 | 100.0%",
                 "## The same questions with no image", "## The same questions with another document"):  # fmt: skip
        assert part in text
    assert (tmp_path / "documents-1-skills.png").exists()
    assert str(probe.expected(reader, "smoke", 1, tmp_path)) == "nothing is left to ask"


def planted(share):
    """A frame of a lesson's answers by a reader of a share, without images; with another document it reads nothing."""

    def reply(case, rng):
        reads = case.factors["control"] == "none" and rng.random() < share
        return probe.in_words(case.truth) if reads else "It is not readable."

    records = answered(probe.cases("lesson", 1), reply, 0)
    return frame_of(records, {"experiment": "documents", "checkpoint": "planted"})


def test_the_instrument_shows_a_known_skill():
    frame = planted(0.7)
    own, other = (frame[frame.control == control] for control in ("none", "other image"))
    found = probe.summarise(own)
    assert found.right.low < 0.7 < found.right.high
    assert (found.refused.right, found.right.right) == ((~own.right).sum(), own.right.sum())
    assert probe.summarise(other).right.right == 0
    assert probe.summarise(other).refused.share == 1
    paired = probe.pairs(frame)
    assert len(paired) == len(own) == 6 * len(SKILLS)
    assert list(paired.truth) == list(paired.truth_control)
    (axes,) = plots.skills({"planted": frame}).axes
    shown = [list(line.get_xdata()) for line in axes.lines]
    by_skill = [rows.right.mean() for _, _, rows in probe.by_skill(frame)]
    assert [*by_skill, own.right.mean()] in shown
    with pytest.raises(imp_kit.SettingError, match="no answered samples"):
        probe.summarise(frame[:0])


def test_the_true_answer_of_other_questions_is_right_by_chance_only():
    frame = planted(1)
    for kind, skill, rows in probe.by_skill(frame):
        if kind == "line chart" and skill == "trend":
            continue
        assert probe.chance(rows) <= 0.35, (kind, skill)
    (trends,) = (rows for _, skill, rows in probe.by_skill(frame) if skill == "trend")
    counts = Counter(trends.expected)
    wanted = sum(n * (n - 1) for n in counts.values()) / (len(trends) * (len(trends) - 1))
    assert probe.chance(trends) == pytest.approx(wanted)
    assert probe.chance(trends[:1]) is None


def test_a_reader_of_an_impossible_share():
    with pytest.raises(imp_kit.SettingError, match="share is 1.2"):
        probe.Known([], 1.2)


def test_pictures_of_the_lesson():
    shown = probe.examples(1, side=90)
    assert [kind for kind, _ in shown] == list(dict.fromkeys(kind for kind, _ in SKILLS))
    assert {image.size for _, image in shown} == {(90, 90)}
    for share in (0, 1):  # no boxes in the answers, and the true ones, which cover those below
        sheet = np.asarray(plots.boxes(planted(share), count=3, side=90).convert("RGB")).astype(int)
        for color, shown in ((plots.TRUE, share == 0), (plots.FOUND, share == 1)):
            assert ((np.abs(sheet - color).sum(axis=2) < 30).sum() > 300) == shown


def test_the_command_refuses_another_size(capsys, tmp_path):
    with pytest.raises(SystemExit, match="2"):
        main(["probe", "documents", "--size", "huge", "--checkpoint", "imp-nano", "--out", str(tmp_path / "run")])
    assert "The size is 'huge'; choose smoke, lesson, standard, full." in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_asks_a_checkpoint(capsys, tmp_path):
    out = str(tmp_path / "run")
    main(["probe", "documents", "--size", "smoke", "--checkpoint", "imp-nano", "--device", "cpu", "--out", out])
    assert "14 samples of imp-nano are answered" in capsys.readouterr().out
    frame = samples_frame(out)
    assert (frame.finish == "stop").any()
    main(["report", out])
    assert "they say nothing about Imp" in (tmp_path / "run" / "report.md").read_text("utf-8")


# RefCOCO ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Two images with three phrases, in RefCOCO's format."""
    for number in (1, 2):
        Image.new("RGB", (200, 100), "gray").save(tmp_path / f"{number}.png")
    instances = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 200, "height": 100} for n in (1, 2)],
        "annotations": [
            {"id": 10, "image_id": 1, "bbox": [20, 10, 100, 50], "category_id": 1},
            {"id": 20, "image_id": 2, "bbox": [0, 0, 200, 100], "category_id": 1},
        ],
    }
    refs = [
        {"ref_id": 0, "ann_id": 10, "image_id": 1, "split": "val", "sentences": [{"sent": "left"}, {"sent": "man"}]},
        {"ref_id": 1, "ann_id": 20, "image_id": 2, "split": "val", "sentences": [{"sent": "all"}]},
        {"ref_id": 2, "ann_id": 20, "image_id": 2, "split": "testA", "sentences": [{"sent": "test"}]},
    ]
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    (tmp_path / "refs.json").write_text(json.dumps(refs))
    return tmp_path


class Locator:
    """Says for each phrase where it is."""

    def __init__(self, **boxes):
        self.boxes = boxes

    def locate(self, image, phrase):
        fields = dict.fromkeys(Answer.__dataclass_fields__)
        answer = Answer(**{**fields, "text": "", "checkpoint": "planted"})
        return Box(phrase, self.boxes.get(phrase), Image.open(image), answer)


def test_expressions_are_read_and_located(folder):
    expressions = refcoco.load(folder)
    assert [each.phrase for each in expressions] == ["left", "man", "all"]
    assert [each.image.name for each in expressions] == ["1.png", "1.png", "2.png"]
    assert expressions[0].box == pytest.approx((0.1, 0.1, 0.6, 0.6))
    assert [each.phrase for each in refcoco.load(folder, "testA")] == ["test"]
    assert len(refcoco.load(folder, most=2)) == 2
    found = refcoco.locate_all(Locator(left=(0.1, 0.1, 0.6, 0.6), all=(0.0, 0.0, 1.0, 0.4)), expressions)
    assert [each.iou for each in found] == pytest.approx([1, 0, 0.4])
    assert (refcoco.accuracy(found).right, refcoco.accuracy(found).total) == (1, 3)


def test_images_may_lie_in_a_folder_of_their_own(folder):
    (folder / "images").mkdir()
    for file in folder.glob("*.png"):
        file.rename(folder / "images" / file.name)
    assert len(refcoco.load(folder)) == 3


def change(folder, name, **values):
    content = json.loads((folder / name).read_text())
    first = content[0] if name == "refs.json" else content["images"][0]
    first.update(values)
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda f: (f / "refs.json").unlink(), "SettingError", r"has no refs\.json\.$"),
        (lambda f: (f / "refs.json").rename(f / "refs(unc).p"), "SettingError", r"no refs\.json, but refs\(unc\)\.p: "),
        (lambda f: (f / "instances.json").unlink(), "SettingError", r"has no instances\.json"),
        (lambda f: (f / "refs.json").write_text("[{"), "SettingError", "cannot be read as JSON"),
        (lambda f: (f / "refs.json").write_text("{}"), "SettingError", "has no split 'val'; choose another file"),
        (lambda f: (f / "refs.json").write_text("[1]"), "SettingError", "not in RefCOCO's format"),
        (lambda f: (f / "instances.json").write_text("[]"), "SettingError", "not in RefCOCO's format"),
        (lambda f: change(f, "refs.json", ann_id=99), "SettingError", "not in RefCOCO's format .KeyError: 99"),
        (lambda f: change(f, "instances.json", width=0), "SettingError", "not in RefCOCO's format"),
        (lambda f: (f / "1.png").unlink(), "ImageError", r"has no image 1\.png"),
        (lambda f: change(f, "instances.json", file_name="../1.png"), "ImageError", r"has no image \.\./1\.png"),
    ],
)
def test_what_is_not_in_refcocos_format(folder, spoil, error, message):
    Image.new("RGB", (9, 9)).save(folder.parent / "1.png")
    spoil(folder)
    with pytest.raises(getattr(imp_kit, error), match=message):
        refcoco.load(folder)


def test_another_split_is_refused_with_those_that_there_are(folder):
    with pytest.raises(imp_kit.SettingError, match="no split 'train'; choose testA, val"):
        refcoco.load(folder, "train")


# Exercises -------------------------------------------------------------------------------------------------


def one_number(text, truth):
    found = {float(number) for number in re.findall(r"\d+(?:\.\d+)?", text.replace(",", ""))}
    return len(found) == 1 and abs(found.pop() - truth) <= 0.05 * truth


@pytest.mark.parametrize(
    ("function", "printed"),
    [
        (one_number, "Right: one rule"),
        (lambda text, truth: str(truth) in text, "Not yet: If 45 is true, the answer 'about 46 %' is right."),
        (lambda text, truth: any(one_number(each, truth) for each in text.split()), "Not yet: If 45 is true"),
        (
            lambda text, truth: float(text) == truth,
            "Not yet: For 'The value is 45.': Your function ended in ValueError",
        ),
        (lambda text, truth: ..., "Not yet: Your function still returns"),
        (lambda text, truth: True, "Not yet: If 45 is true, the answer '48' is wrong."),
    ],
)
def test_exercise_is_right(capsys, function, printed):
    check.is_right(function)
    assert capsys.readouterr().out.startswith(printed)


def careless(one, other):
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


@pytest.mark.parametrize(
    ("function", "printed"),
    [
        (answers.iou, "Right: 0 for boxes apart"),
        (
            careless,
            "Not yet: For (0, 0, 1, 1) and (2, 2, 3, 3) (apart, in both directions) it is 0.000; yours says 1.000.",
        ),
        (
            lambda one, other: 1,
            "Not yet: For (0, 0, 2, 2) and (1, 0, 3, 2) (moved by half) it is 0.333; yours says 1.0",
        ),
        (lambda one, other: "a", "Not yet: Give a number alone"),
        (lambda one, other: ..., "Not yet: Your function still returns"),
    ],
)
def test_exercise_iou(capsys, function, printed):
    check.iou(function)
    assert capsys.readouterr().out.startswith(printed)


@pytest.mark.parametrize(
    ("answer", "printed"),
    [
        (2 / 3, "Right: precision 1/2"),
        (0.67, "Right: "),
        (66.7, "Right: "),
        (0.5, "Not yet: That is its accuracy"),
        (1, "Not yet: Its recall is 1"),
        (0.75, "Not yet: F1 = 2 x"),
        ("much", "Not yet: Give a number alone"),
        (..., "Not yet: put your answer"),
    ],
)
def test_exercise_always_yes(capsys, answer, printed):
    check.always_yes(answer)
    assert capsys.readouterr().out.startswith(printed)


def test_samples_are_plain_values():
    (sample,) = probe.samples(answered([probe.case(probe.Cell("table", "cell"), 1)], lambda case, rng: "5", 0))
    assert asdict(sample.judged) == {"extracted": "5", "right": False, "score": 0, "refused": False}
