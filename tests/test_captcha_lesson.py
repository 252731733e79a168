"""What notebook 03 uses beside the probe: an OCR engine's recorded readings, and exercises."""

import re
from importlib.metadata import PackageNotFoundError, version

import pytest
import record_ocr

from imp_kit.exercises import captcha as check
from imp_kit.experiments import recorded
from imp_kit.experiments.captcha import probe as reading
from imp_kit.experiments.captcha.codes import sample_code
from imp_kit.experiments.scores import normalise

WAYS = ("rapidocr", "rapidocr after 192 x 192", "rapidocr, one line", "rapidocr after 192 x 192, one line")


# Recorded readings -----------------------------------------------------------------------------------------


def head() -> str:
    return recorded.OCR.read_text("utf-8").partition("level,")[0]


def versions() -> dict[str, str]:
    return dict(part.rsplit(" ", 1) for part in re.search("Versions: (.+)[.]\n", head())[1].split(", "))


def test_the_file_says_how_it_was_made():
    assert "python tests/tools/record_ocr.py" in head()
    assert set(versions()) == set(record_ocr.PACKAGES)
    assert recorded.OCR.stat().st_size < 60_000


def test_the_recorded_pictures_are_those_that_a_run_draws_now():
    """By their hashes, all 300 of the ladder in a run of size standard."""
    lines = recorded.rows()
    drawn = record_ocr.ladder()
    assert [(line["level"], line["seed"]) for line in lines] == [
        (str(case.factors["level"]), str(case.seed)) for case in drawn
    ]
    assert len(lines) == 5 * reading.SAMPLES["standard"]
    assert [line["picture"] for line in lines] == [record_ocr.digest(case) for case in drawn]


@pytest.mark.parametrize(("square", "ways"), [(192, WAYS), (384, [w.replace("192", "384") for w in WAYS]),
                                              (378, WAYS[::2])])  # fmt: skip
def test_each_way_has_a_table_of_the_whole_ladder(square, ways):
    tables = recorded.ocr(square)
    assert list(tables) == list(ways)
    for name, frame in tables.items():
        assert {level: len(rows) for level, rows in reading.ladder(frame).items()} == dict.fromkeys(range(5), 60)
        lines = recorded.rows()
        assert list(frame.contained) == [sample_code(int(line["seed"])) in normalise(line[name]) for line in lines]


def test_the_engine_reads_clean_codes_and_fewer_of_the_hardest():
    for frame in recorded.ocr(192).values():
        shares = [rows.contained.mean() for rows in reading.ladder(frame).values()]
        assert shares[0] > 0.8
        assert shares[4] < 0.5


def is_same_engine() -> bool:
    try:
        return all(version(name) == number for name, number in versions().items())
    except PackageNotFoundError:
        return False


@pytest.mark.skipif("not is_same_engine()", reason="needs the versions of rapidocr and onnxruntime in ocr.csv")
@pytest.mark.slow
def test_the_engine_reads_today_what_was_recorded():
    readers = record_ocr.readers()
    for case, line in list(zip(record_ocr.ladder(), recorded.rows(), strict=True))[::97]:
        assert record_ocr.row(case, readers) == list(line.values())


# Exercises -------------------------------------------------------------------------------------------------


def said(capsys, exercise, answer) -> str:
    exercise(answer)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("function", "printed"),
    [
        (lambda text, code: code in "".join(filter(str.isalnum, text.upper())), "Right: "),
        (lambda text, code: code in text, "Not yet: In the answer 'k7xw4rpa' the code K7XW4RPA is read."),
        (
            lambda text, code: code in text.upper(),
            "Not yet: In the answer 'It says K7XW 4RPA!' the code K7XW4RPA is read",
        ),
        (
            lambda text, code: True,
            "Not yet: In the answer 'The text reads \"K7XW4RPE\".' the code K7XW4RPA is not read.",
        ),
        (
            lambda text, code: "".join(filter(str.isalnum, text.upper())).endswith(code),
            "Not yet: In the answer 'K7XW4RPA is the code.' the code K7XW4RPA is read.",
        ),
        (
            lambda text, code: bool(re.search(".*".join(code), text.upper())),  # in order, with anything between
            "Not yet: In the answer 'First K7XW, below it 4RPA.' the code K7XW4RPA is not read.",
        ),
        (lambda text, code: ..., "Not yet: Your function still returns `...`"),
    ],
)
def test_exercise_is_read(capsys, function, printed):
    assert said(capsys, check.is_read, function).startswith(printed)


def hardest(least, read):
    return max((level for level, count in enumerate(read) if count >= least), default=0)


@pytest.mark.parametrize(
    ("function", "printed"),
    [
        (lambda read: hardest(30, read), "Right: "),
        (lambda read: hardest(31, read), "Not yet: For [60, 60, 30, 0, 0] the level is 2; yours is 1."),
        (lambda read: sum(count >= 30 for count in read) - 1, "Not yet: For [60, 20, 40, 0, 0] the level is 2"),
        (
            lambda read: max(level for level, count in enumerate(read) if count >= 30),
            "Not yet: For [20, 3, 0, 0, 0]: Your function ended in ValueError",
        ),
        (
            lambda read: next((level for level in (4, 3, 2, 1) if read[level] >= 30), None),
            "Not yet: For [20, 3, 0, 0, 0]: Your function returns None",
        ),
    ],
)
def test_exercise_level(capsys, function, printed):
    assert said(capsys, check.level, function).startswith(printed)


@pytest.mark.parametrize(
    ("answer", "printed"),
    [
        (16, "Right: 16%."),
        (16.1, "Right: 16%."),
        (0, "Not yet: None of 20 is also"),
        (0.161, "Not yet: Give percent"),
        (17, "Right: 16%."),  # rounded up, as "at most" asks
        (5, "Not yet: Use `from imp_kit.experiments.stats import wilson`"),
        (18, "Not yet: Use `from imp_kit.experiments.stats import wilson`"),
        (15, "Not yet: Some rules, such as 3 / n, say so."),
        ("16%", "Not yet: Give a number alone"),
    ],
)
def test_exercise_most(capsys, answer, printed):
    """1.96**2 / (20 + 1.96**2) is 16.1%: Wilson's upper end for none of 20."""
    assert said(capsys, check.most, answer).startswith(printed)
