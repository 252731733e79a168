"""The reading probe: its samples, and that it measures back what is true of a planted subject."""

import json
import re
import sys
import time
from collections import Counter

import numpy as np
import pandas
import pytest
from planted import Planted, answered, check_calibration

import imp_kit
from imp_kit.experiments.captcha import probe as reading
from imp_kit.experiments.captcha.codes import LEVELS, SIZE, sample_code
from imp_kit.experiments.captcha.probe import Cell, case, cases, cells, summarise
from imp_kit.experiments.frames import frame_of, samples_frame
from imp_kit.experiments.ocr import OcrReader
from imp_kit.experiments.report import write
from imp_kit.experiments.runs import Expected, Subject, read, read_head, run
from imp_kit.experiments.stats import wilson

LETTERS = np.array(list("ACDEFGHJKLMNPQRTUVWXY"))


@pytest.mark.parametrize("size", ["smoke", "lesson", "standard"])
@pytest.mark.slow
def test_samples_are_distinct_and_of_one_canvas(size):
    made = cases(size, 1, level=2)
    assert len({each.id for each in made}) == len(made)
    shown = [(each.picture, each.question) for each in made]
    assert {picture.size for picture, _ in shown if picture} == {SIZE}
    asked = {(picture and picture.tobytes(), question) for picture, question in shown}
    assert len(asked) == len(made), "greedy decoding answers the same sample twice alike: it is one, not two"


def test_sizes():
    assert len(cases("smoke", 1)) == 14
    by_cell = Counter(Cell(**each.factors) for each in cases("standard", 1))
    assert {count for cell, count in by_cell.items() if cell.value != "withheld" and cell.caption != "alone"} == {60}
    assert {count for cell, count in by_cell.items() if cell.value == "withheld"} == {1}
    for level in range(len(LEVELS)):
        smoke, lesson, standard, full = (cells(size, level) for size in reading.SAMPLES)
        assert set(smoke) <= set(lesson) <= set(standard) <= set(full)
        assert tuple(standard[: len(LEVELS)]) == reading.LADDER
        captions = [c for c in standard if c.codes == "captions"]
        assert {c.level for c in captions} == {level}
        assert {c.caption for c in captions if c.question == "open"} == set(reading.CAPTIONS)
        assert not any(c.caption != "none" for c in standard if c.codes == "ladder")
    assert reading.SAMPLES["lesson"] == reading.SAMPLES["standard"] >= 60


def test_the_same_seed_shows_the_same_code_in_every_condition():
    plain = case(Cell(), 7)
    for cell in (
        Cell(level=4),
        Cell(caption="true"),
        Cell(caption="wrong", question="every line"),
        Cell(2, changed="dots", value=0),
    ):
        assert case(cell, 7).truth["code"] == plain.truth["code"]
    upper = (0, 0, SIZE[0], 120)
    captioned = case(Cell(caption="true"), 7).picture
    assert captioned.crop(upper).tobytes() == plain.picture.crop(upper).tobytes()
    assert captioned.tobytes() != plain.picture.tobytes()


def test_what_conditions_show():
    assert case(Cell(changed="length", value=4), 1).truth["code"] == sample_code(1, 4)
    assert set(case(Cell(changed="charset", value="digits"), 1).truth["code"]) <= set("34679")
    for kind in reading.KINDS_OF_TEXT:
        assert len(case(Cell(changed="text", value=kind), 1).truth["code"]) == 6
    assert case(Cell(changed="text", value="word"), 3).truth["code"] == reading.WORDS[3]
    assert case(Cell(changed="control", value="withheld"), 1).picture is None
    assert np.ptp(np.asarray(case(Cell(changed="control", value="blank"), 1).picture)) == 0
    assert np.ptp(np.asarray(case(Cell(changed="control", value="noise"), 1).picture)) > 100
    width, height = case(Cell(), 1).truth["glyph"]
    for name, size in (("padded", (400, 400)), ("cropped", (400, 120))):
        shaped = case(Cell(changed="shape", value=name), 1)
        assert shaped.picture.size == size
        assert shaped.truth["glyph"] == pytest.approx([width, height * 160 / size[1]])
    alone = case(Cell(caption="alone"), 1)
    assert (alone.truth["code"], alone.truth["caption"]) == ("", "The picture contains 3 characters.")
    small = case(Cell(changed="glyph height", value=8), 1).truth["glyph"]
    assert small == pytest.approx([8 / 400 * 0.83, 8 / 160], rel=0.1)


def test_pseudo_words_and_mixed_letters_are_a_words_letters_in_another_order():
    for seed in range(70):
        words = [case(Cell(changed="text", value=kind), seed).truth["code"] for kind in reading.KINDS_OF_TEXT]
        assert len({tuple(sorted(word)) for word in words}) == 1
        assert [word in reading.WORDS for word in words] == [True, False, False]
        assert re.match("[^AEUY][AEUY]", words[1])
        assert re.fullmatch("[^AEUY]+[AEUY]+", words[2])


def test_words_are_of_the_probes_letters():
    letters = set(reading.CHARSETS["letters"])
    assert all(set(word) <= letters and len(word) == 6 for word in reading.WORDS)
    assert len(set(reading.WORDS)) == len(reading.WORDS) >= 60


@pytest.mark.parametrize(
    ("size", "seed", "message"),
    [("huge", 1, "lesson, standard, full"), ("smoke", -1, "seed"), ("smoke", 1.5, "seed")],
)
def test_runs_that_cannot_be(size, seed, message):
    with pytest.raises(imp_kit.SettingError, match=message):
        cases(size, seed)


def framed(records):
    return frame_of(records, {"experiment": "captcha"})


def reader(exact, copied):
    """Reads the code right with one probability and gives the caption with another."""

    def reply(case, rng):
        code, caption = case.truth["code"], case.truth["caption"]
        reads, copies = rng.random() < exact, caption and rng.random() < copied
        if code and not reads:
            code = "".join(rng.choice(LETTERS, len(code)))
        lines = [line for line in (code, caption if copies else "") if line]
        return "The text reads " + " and ".join(f'"{line}"' for line in lines) + "." if lines else "There is no text."

    return reply


@pytest.mark.slow
def test_a_planted_subject_is_measured_back_within_its_intervals(tmp_path):
    """Through pictures, run and file. 9.5 of 10 is the average; 8 or more of 10 hold in 99 % of tries.

    That it is 19 of 20 is the next test's, over more seeds.
    """
    held = Counter()
    for seed in range(10):
        exact, copied = 0.05 + 0.1 * seed, 0.95 - 0.1 * seed
        chosen = [case(cell, 1000 * seed + n) for cell in (Cell(), Cell(caption="true")) for n in range(60)]
        subject = Planted(chosen, reader(exact, copied), seed)
        records = run("captcha", chosen, Subject.of(subject), tmp_path / str(seed))
        clean, captioned = reading.lure(framed(records)).values()
        assert (set(clean.caption_kind), set(captioned.caption_kind)) == ({"none"}, {"true"})
        read = summarise(clean).exact
        held["exact"] += read.low <= exact <= read.high
        outcomes = Counter(captioned.outcome)
        share = wilson(outcomes["both"] + outcomes["caption only"], len(captioned))
        held["copied"] += share.low <= copied <= share.high
        both = wilson(outcomes["both"], len(captioned))
        held["both"] += both.low <= exact * copied <= both.high
    assert all(count >= 8 for count in held.values()), held


@pytest.mark.slow
def test_over_many_seeds_the_intervals_hold_in_19_of_20():
    found = {"exact": [], "copied": [], "both": []}
    rates = np.random.default_rng(0).uniform(0.05, 0.95, (400, 2))
    chosen = [case(cell, n) for cell in (Cell(), Cell(caption="true")) for n in range(60)]
    for seed, (exact, copied) in enumerate(rates):
        clean, captioned = reading.lure(framed(answered(chosen, reader(exact, copied), seed))).values()
        outcomes = Counter(captioned.outcome)
        found["exact"].append((wilson(int(clean.exact.sum()), 60), exact))
        found["copied"].append((wilson(outcomes["both"] + outcomes["caption only"], 60), copied))
        found["both"].append((wilson(outcomes["both"], 60), exact * copied))
    check_calibration(found)


def test_a_subject_measured_askew_would_be_noticed():
    """The check itself: a share that is off by two points of a hundred does not pass."""
    rng = np.random.default_rng(1)
    shares = [(wilson(rng.binomial(60, rate - 0.02), 60), rate) for rate in rng.uniform(0.05, 0.95, 400)]
    with pytest.raises(AssertionError):
        check_calibration({"askew": shares})


def test_figures_of_a_subject_that_reads_everything_and_of_one_that_reads_nothing(tmp_path):
    chosen = reading.possible_cases("smoke", 3)
    for exact, name, level in ((1.0, "all", 4), (0.0, "none", 0)):
        reading.run(Planted(chosen, reader(exact, 1.0), 0), "smoke", 3, tmp_path / name)
        frame = samples_frame(tmp_path / name)
        for rows in reading.ladder(frame).values():
            figures = summarise(rows)
            assert (figures.exact.share, figures.strict.share) == (exact, 0.0)
            assert (figures.errors.value == 0) == (figures.position.value == 1) == (exact == 1)
            assert figures.chance == 0.0
        lured = reading.lure(frame)
        assert set(lured[level, "open", "true"].outcome) == {"both" if exact else "caption only"}
        assert set(lured[level, "open", "alone"].outcome) == {"caption only"}
        blank = frame[frame.value == "blank"]
        assert len(blank)
        assert not blank.invented.any()


def test_factors_bring_the_levels_own_value_with_them():
    chosen = [case(cell, n) for cell in cells("standard") for n in range(2)]
    records = [
        {"factors": c.factors, "seed": c.seed, "truth": c.truth, "answer": c.truth["code"], "status": "ok"}
        for c in chosen
    ]
    frame = framed([*records, {"status": "error"}])
    assert list(reading.factor(frame, "glyph height", 0)) == [8, 12, 16, 24, 32, 40, 48]
    assert [str(value) for value in reading.factor(frame, "rotation", 0)] == ["0", "7.5", "15.0", "22.5", "30"]
    assert list(reading.factor(frame, "text", 0)) == list(reading.KINDS_OF_TEXT)
    assert reading.factor(frame, "warp", 0) == {}


def test_pairs_are_of_the_same_code():
    cells = (Cell(), Cell(caption="true"), Cell(2), Cell(2, "true"))
    records = answered([case(cell, n) for cell in cells for n in range(3)], reader(1.0, 1.0), 0)
    del records[1], records[2]  # the second code without a caption, the first one with it
    paired = reading.pairs(framed(records), 0)
    assert list(paired.seed) == [2]
    assert list(paired.expected) == list(paired.expected_captioned) == [sample_code(2)]
    assert list(paired.caption_kind_captioned) == ["true"]
    assert list(reading.pairs(framed(records), 2).seed) == [0, 1, 2]


def test_means_have_intervals_and_chance_levels():
    """Half of the codes read right, the others but for the last of their eight characters."""
    chosen = [case(Cell(), n) for n in range(40)]
    records = answered(
        chosen, lambda case, rng: case.truth["code"][:-1] + ("0" if case.seed % 2 else case.truth["code"][-1]), 0
    )
    figures = summarise(framed(records))
    for estimate, value in ((figures.errors, 1 / 16), (figures.edit_share, 1 / 16), (figures.position, 15 / 16)):
        assert estimate.value == pytest.approx(value)
        assert estimate.low < value < estimate.high
        half = 2.02 * 0.5 / 8 / 39**0.5  # Student's; near an end of the range the interval leans to the middle
        assert (estimate.low, estimate.high) == pytest.approx((value - half, value + half), abs=0.004)
    assert figures.chance == 0.0
    assert figures.position_chance == pytest.approx(1 / len(set("".join(c.truth["code"] for c in chosen))), abs=0.02)
    assert 0.8 < figures.edit_share_chance < 1.0


def test_a_run_writes_scores_beside_its_answers_that_are_those_of_its_text(tmp_path):
    chosen = reading.possible_cases("smoke", 1)
    reading.run(Planted(chosen, reader(0.5, 0.5), 0), "smoke", 1, tmp_path)
    records = read(tmp_path)
    for record, sample in zip(records, reading.samples(records), strict=True):
        assert record["extracted"] == sample.read
        assert record["scores"] == {name: getattr(sample, name) for name in record["scores"]}
        assert ("exact" in record["scores"]) == bool(sample.code) != ("invented" in record["scores"])
        assert ("outcome" in record["scores"]) == bool(sample.caption)


# The level at which captions are compared ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "level"),
    [
        ((60, 60, 60, 60, 60), 4),
        ((60, 40, 30, 29, 0), 2),  # exactly half is enough
        ((60, 20, 40, 0, 0), 2),  # the hardest, also after a level that was not read
        ((29, 0, 0, 0, 0), 0),
    ],
)
def test_the_rule_for_the_level_of_the_captions(read, level):
    assert reading.caption_level({n: [True] * count + [False] * (60 - count) for n, count in enumerate(read)}) == level


def test_the_rule_without_answers():
    assert reading.caption_level({}) == 0
    assert reading.caption_level({0: [False], 3: [], 4: [True, False, False]}) == 0
    assert reading.caption_level({0: [False], 2: [True, False]}) == 2


def reads_up_to(level):
    """Reads every code up to a level, and none above."""
    return lambda case, rng: f'The text reads "{case.truth["code"] if case.factors["level"] <= level else "???"}".'


@pytest.mark.parametrize("level", [0, 2, 4])
def test_a_run_asks_about_captions_where_the_ladder_is_read(level, tmp_path):
    chosen = reading.possible_cases("smoke", 1)
    subject = Planted(chosen, reads_up_to(level), 0)
    found = reading.run(subject, "smoke", 1, tmp_path)
    assert {sample.cell.level for sample in found if sample.cell.codes == "captions"} == {level}
    assert len(found) == subject.asked == len(cases("smoke", 1))
    frame = samples_frame(tmp_path)
    assert list(reading.compared(frame)) == [level]
    ladder_codes = set(frame[frame.codes == "ladder"].expected.dropna())
    assert not ladder_codes & set(reading.compared(frame)[level].expected)
    assert read_head(tmp_path)["level of the captions"] == reading.RULE


def test_a_run_that_lost_its_head_knows_the_answers_about_captions_as_its_own(tmp_path):
    """As the error about a damaged run.json advises: delete it, and run the same again."""
    subject = Planted(reading.possible_cases("smoke", 1), reads_up_to(2), 0)
    reading.run(subject, "smoke", 1, tmp_path)
    asked = subject.asked
    (tmp_path / "run.json").unlink()
    reading.run(subject, "smoke", 1, tmp_path)
    assert subject.asked == asked


def test_only_some_cells_leave_the_rest_for_later(tmp_path):
    subject = Planted(reading.possible_cases("smoke", 1), reads_up_to(2), 0)
    assert len(reading.run(subject, "smoke", 1, tmp_path, only=reading.LADDER)) == 6
    assert reading.compared(samples_frame(tmp_path)) == {}
    assert len(reading.run(subject, "smoke", 1, tmp_path)) == 14


def coin_frame(rates, seed, caption_codes):
    """Codes read with the rate of their level, whatever the caption; pairs on codes of their own, or the ladder's."""
    rng = np.random.default_rng(seed)
    rows = [(level, "none", "ladder", n, rng.random() < rate) for level, rate in enumerate(rates) for n in range(60)]
    first = reading.FIRST_SEED[caption_codes]
    for level, rate in enumerate(rates):
        kinds = ("none", "true") if caption_codes == "captions" else ("true",)
        rows += [(level, kind, caption_codes, first + n, rng.random() < rate) for kind in kinds for n in range(60)]
    frame = pandas.DataFrame(rows, columns=["level", "caption_kind", "codes", "seed", "contained"])
    return frame.assign(question_kind="open", changed="")


def test_the_choice_of_the_level_makes_no_effect_of_its_own():
    """Without any effect of captions the mean difference is 0; it was not on the ladder's own codes.

    The standard error over 300 runs is 0.09 / sqrt(300) = 0.005.
    """
    rates = (0.6, 0.5, 0.45, 0.3, 0.1)
    means = {}
    for codes in ("captions", "ladder"):
        differences = []
        for seed in range(300):
            frame = coin_frame(rates, seed, codes)
            level = reading.caption_level({n: list(rows.contained) for n, rows in reading.ladder(frame).items()})
            paired = reading.pairs(frame, level)
            assert set(paired.codes) == {codes}
            assert len(paired) == 60
            differences.append(paired.contained_captioned.mean() - paired.contained.mean())
        means[codes] = np.mean(differences)
    assert abs(means["captions"]) < 0.015
    assert means["ladder"] < -0.02


def old_run(chosen, reply, folder):
    """A run as it was before RULE: no `codes` in the records, nor a rule in run.json."""
    run("captcha", chosen, Subject.of(Planted(chosen, reply, 0)), folder, design={"size": "smoke", "seed": 1})
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text("utf-8").splitlines()]
    for line in lines:
        del line["factors"]["codes"]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def test_a_run_from_before_the_rule_is_read_at_its_own_levels(tmp_path):
    plain = [Cell(), Cell(caption="true"), Cell(2), Cell(2, "true")]
    old_run([case(cell, n) for cell in plain for n in range(4)], reads_up_to(0), tmp_path)
    frame = samples_frame(tmp_path)
    assert set(frame.codes) == {"ladder"}
    assert {level: len(paired) for level, paired in reading.compared(frame).items()} == {0: 4, 2: 4}
    assert list(reading.lure(frame)) == [(level, "open", kind) for level in (0, 2) for kind in ("none", "true")]
    text = write([tmp_path]).read_text("utf-8")
    assert "at a level that was fixed beforehand" in text
    assert reading.RULE not in text
    assert "| L0 | 4 | 100.0% | 100.0% | 1 |" in text
    assert "| L2 | 4 | 0.0% | 0.0% | 1 |" in text


# A sentence to publish, and the time before a run ----------------------------------------------------------


def test_the_sentence_has_checkpoint_commit_counts_interval_and_control(tmp_path):
    """3 of 4 codes are read without a caption, 1 of 4 with it; the intervals are Wilson's, worked out elsewhere."""
    pairs = [case(Cell(0, kind, codes="captions"), n) for kind in ("none", "true") for n in range(500, 504)]
    chosen = [*(case(Cell(), n) for n in range(2)), *pairs]
    read = {("none", 500), ("none", 501), ("none", 502), ("true", 500)}

    def reply(case, rng):
        kind = (case.factors["caption"], case.seed)
        return case.truth["code"] if case.seed < 500 or kind in read else "???"

    frame = framed(answered(chosen, reply, 0))
    head = {"checkpoint": "imp-v1-3b", "revision": "0123456789abcdef" * 2, "imp-kit": "0.1", "size": "smoke", "seed": 1}
    expected = (
        "imp-v1-3b (commit 0123456789ab) gave the code in 1 of 4 pictures with a true caption below it (25%, "
        "95% interval 5% to 70%) and in 3 of 4 pictures of the same codes without a caption, the control (75%, "
        "95% interval 30% to 95%), at distortion L0 of L0 to L4 (imp-kit 0.1, size smoke, seed 1)."
    )
    assert reading.sentence(frame, head) == expected
    nano = head | {"checkpoint": "imp-nano", "revision": None, "files": "f" * 64}
    who = f"imp-nano (imp-kit's own small checkpoint and not Imp, files with SHA-256 {'f' * 12}) gave"
    assert reading.sentence(frame, nano).startswith(who)
    assert reading.sentence(frame, {"checkpoint": "Planted"}).startswith("Planted (no commit recorded) gave")
    with pytest.raises(imp_kit.SettingError, match="finish the run first"):
        reading.sentence(frame[frame.caption_kind == "none"], head)


class Slow:
    """Takes the same time for every question."""

    asked, name = 0, "slow"

    def ask(self, picture, question, **settings):
        self.asked += 1
        time.sleep(0.05)
        return "There is no text."


def test_the_expected_time_is_measured_on_a_few_questions(tmp_path):
    subject = Slow()
    start = time.perf_counter()
    expected = reading.expected(subject, "standard", 1, tmp_path)
    elapsed = time.perf_counter() - start
    assert subject.asked == 9  # one that is not timed, and a batch
    assert expected.samples == len(cases("standard", 1))
    assert 0.05 <= expected.seconds <= elapsed / 8
    assert expected.total == expected.seconds * expected.samples
    assert not list(tmp_path.iterdir())
    assert str(Expected(0.061, 1629)) == "0.06 s a sample, about 99 s for 1,629"
    assert str(Expected(1.2, 669)) == "1.20 s a sample, about 13 min for 669"
    assert str(Expected(30.0, 1629)) == "30.00 s a sample, about 13.6 hours for 1,629"


def test_what_is_answered_already_is_not_expected_again(tmp_path):
    reading.run(Planted(reading.possible_cases("smoke", 1), reads_up_to(0), 0), "smoke", 1, tmp_path, only=[Cell()])
    subject = Slow()
    assert reading.expected(subject, "smoke", 1, tmp_path).samples == 12
    reading.run(Planted(reading.possible_cases("smoke", 1), reads_up_to(0), 0), "smoke", 1, tmp_path)
    subject.asked = 0
    assert str(reading.expected(subject, "smoke", 1, tmp_path)) == "nothing is left to ask"
    assert subject.asked == 0


def test_a_subject_that_can_answer_nothing_is_known_before_the_run(tmp_path):
    class Broken:
        def ask(self, picture, question, **settings):
            raise MemoryError("no memory is left")

    with pytest.raises(MemoryError, match="no memory is left"):
        reading.expected(Broken(), "smoke", 1, tmp_path)


def test_the_first_part_of_a_run_expects_the_time_of_all(tmp_path, capsys):
    reading.run(Planted(reading.possible_cases("smoke", 1), reads_up_to(0), 0), "smoke", 1, tmp_path)
    assert re.findall(r"s a sample, about \d+ s for (\d+)", capsys.readouterr().out) == ["14", "8"]


def test_without_rapidfuzz_nothing_is_asked(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidfuzz", None)
    subject = Planted([], None, 0)
    with pytest.raises(imp_kit.SettingError, match="pip install rapidfuzz"):
        reading.run(subject, "smoke", 1, tmp_path / "run")
    assert subject.asked == 0
    assert not (tmp_path / "run").exists()


def test_without_rapidocr(monkeypatch):
    for name in ("rapidocr", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(imp_kit.SettingError, match="pip install rapidocr onnxruntime"):
        OcrReader()


def test_the_ocr_reads_clean_codes_in_each_way_and_its_parts_stay_apart():
    """Needs rapidocr, which is not among the packages of `make test`. A reader's options must not reach another."""
    pytest.importorskip("rapidocr")
    readers = [OcrReader(squash, detect) for squash in (None, 384) for detect in (True, False)]
    two_lines = case(Cell(caption="true"), 3).picture
    before = readers[0].ask(two_lines, "")
    for reader in readers:
        clean = [case(Cell(), seed) for seed in range(3)]
        assert [reader.ask(each.picture, each.question) for each in clean] == [f'"{c.truth["code"]}"' for c in clean]
        assert reader.ask(None, "") == ""
    assert before.count('"') >= 4, "detection finds both lines"
    assert readers[0].ask(two_lines, "") == before
    assert readers[1].ask(two_lines, "").count('"') <= 2
    assert len({reader.name for reader in readers}) == 4


def test_no_samples_have_no_figures():
    with pytest.raises(imp_kit.SettingError, match="no answered samples"):
        summarise(framed([]))


@pytest.mark.parametrize("figure", [reading.ladder, reading.lure, summarise, lambda s: reading.pairs(s, 0)])
def test_a_list_of_samples_is_told_where_its_table_is(figure):
    with pytest.raises(imp_kit.SettingError, match=r"samples_frame.*not of a list"):
        figure([])
