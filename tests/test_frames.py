"""A run's samples as a table: columns and dtypes, values that the records give by hand, and what is no run."""

import json
import subprocess
import sys

import pandas
import pytest
from planted import Planted
from test_reading import reader
from test_report import speaker_of_all

import imp_kit
from imp_kit.experiments import captcha, frames, japanese
from imp_kit.experiments.captcha.probe import Cell, case
from imp_kit.experiments.frames import samples_frame
from imp_kit.experiments.runs import Subject, run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    cells = [Cell(), Cell(caption="true"), Cell(caption="alone"), Cell(changed="glyph height", value=12)]
    chosen = [case(cell, n) for cell in [*cells, Cell(changed="control", value="blank")] for n in range(8)]
    subject = Subject.of(Planted(chosen, reader(0.5, 0.5), 3))
    run("captcha", chosen, subject, folder / "captcha", design={"size": "smoke", "seed": 1})
    japanese.run(Planted(japanese.cases("smoke", 1, real=True), speaker_of_all, 0), "smoke", 1, folder / "japanese")
    return folder


def records_of(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text("utf-8").splitlines()]


def write(folder, records, **head):
    folder.mkdir()
    head = {"experiment": "captcha", "checkpoint": "a", "size": "smoke", "seed": 1} | head
    (folder / "run.json").write_text(json.dumps(head), "utf-8")
    (folder / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return folder


def plain(text):
    return "".join(character for character in text.upper() if character.isalnum())


def distance(one, other):
    """Levenshtein's, row by row of its table."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row = row, [i]
        for j, b in enumerate(other, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (a != b)))
    return row[-1]


@pytest.mark.parametrize("name", ["captcha", "japanese"])
def test_columns_and_dtypes_are_the_documented_ones(runs, name):
    frame = samples_frame(runs / name)
    expected = frames.COLUMNS | frames.PROBES[name].COLUMNS
    dtypes = {column: str(dtype) for column, dtype in frame.dtypes.items()}
    assert dtypes == {column: dtype.removesuffix("[python]") for column, dtype in expected.items()}
    assert [column for column in expected if column not in samples_frame.__doc__] == []
    assert len(frame) == len(records_of(runs / name))
    head = frame[["experiment", "checkpoint", "size", "run_seed", "status"]].drop_duplicates()
    assert head.to_numpy().tolist() == [[name, "Planted", "smoke", 1, "ok"]]
    assert frame.revision.isna().all()


def test_scores_of_a_reading_are_those_of_the_records(runs):
    frame, records = samples_frame(runs / "captcha"), records_of(runs / "captcha")
    outcomes = set()
    for row, record in zip(frame.itertuples(), records, strict=True):
        assert (row.sample_id, row.seed, row.answer) == (record["sample_id"], record["seed"], record["answer"])
        factors = (row.level, row.caption_kind, row.question_kind, row.changed, row.value, row.codes)
        assert factors == tuple(record["factors"].values())
        assert [row.glyph_width, row.glyph_height] == record["truth"]["glyph"]
        code = record["truth"]["code"]
        if not code:
            scores = [row.expected, row.exact, row.contained, row.errors, row.edit_share, row.position]
            assert pandas.isna(scores).all()
            assert pandas.isna(row.outcome) == (not record["truth"]["caption"])
            continue
        read = plain(record["answer"].split('"')[1])
        assert (row.expected, row.extracted, row.expected_characters) == (code, read, 8)
        assert (row.exact, row.contained) == (read == code, code in record["answer"])
        assert row.errors == distance(code, read)
        assert row.edit_share == pytest.approx(distance(code, read) / 8)
        assert row.position == pytest.approx(sum(a == b for a, b in zip(code, read, strict=True)) / 8)
        outcomes.add(row.outcome)
    assert outcomes == {"code", "both", "caption only", "neither"}
    assert {type(value) for value in frame.value[frame.changed == "glyph height"]} == {int}


def test_scores_of_japanese_are_those_of_the_records(runs):
    frame, records = samples_frame(runs / "japanese"), records_of(runs / "japanese")
    for row, record in zip(frame.itertuples(), records, strict=True):
        assert (row.part, row.skill, row.language, row.picture) == tuple(record["factors"].values())
        assert (row.characters, row.japanese) == (len(record["answer"]), record["scores"]["japanese"])
        truth = record["truth"]
        if row.part == "general":
            assert pandas.isna([row.right, row.both, row.expected, row.answer_kind]).all()
            continue
        assert row.both == (row.right and row.japanese)
        if row.part == "scene":
            assert (row.answer_kind, row.expected) == (truth["set"], truth["answer"])
        elif row.part == "written":
            assert (row.expected, row.right) == (truth["text"], truth["text"] in row.answer)
        else:
            accept = truth.get("accept", {"en": [truth.get("answer")], "ja": []})
            assert row.expected.split(" | ") == accept["en"] + accept["ja"]
            assert row.answer_kind == truth.get("set", "accepted")
            assert row.references.split(" | ") == truth["references"]
    assert set(frame.part) == {"scene", "general", "photograph", "written"}


def test_failed_samples_have_no_row_and_unknown_fields_no_column(runs, tmp_path):
    first, *others = records_of(runs / "captcha")
    failed = {key: value for key, value in first.items() if key != "answer"} | {"status": "error", "error": "none"}
    records = [failed, *(record | {"weather": "fine"} for record in others)]
    frame = samples_frame(write(tmp_path / "run", records, weather="fine"))
    assert list(frame.sample_id) == [record["sample_id"] for record in others]
    assert "weather" not in frame


def test_half_a_character_and_facts_that_some_answers_lack(runs, tmp_path):
    one, other = records_of(runs / "captcha")[:2]
    one |= {"answer": "\ud83d", "tokens": 3, "finish": "length", "seconds": 0.5}
    frame = samples_frame(write(tmp_path / "run", [one, other]))
    assert list(frame.loc[0, ["answer", "tokens", "finish", "seconds"]]) == ["\ud83d", 3, "length", 0.5]
    assert frame.loc[1, ["tokens", "finish", "seconds"]].isna().all()


def test_what_has_no_table(runs, tmp_path):
    record = records_of(runs / "captcha")[0]
    older = {key: value for key, value in record.items() if key != "truth"}
    newer = record | {"factors": record["factors"] | {"weather": "fine"}}
    cases = (
        ([], {}, "holds no answered sample"),
        ([{"sample_id": "a", "key": "b", "status": "error"}], {}, "holds no answered sample"),
        ([record], {"experiment": "echo"}, "'echo'; the kit has scores of captcha, japanese"),
        ([older], {}, r"\(truth\)"),
        ([newer], {}, r"\(weather\)"),
        ([record | {"seed": "one"}], {}, "holds a value of an unexpected type"),
        ([record | {"answer": 5}], {}, r"unexpected type \(the answer of"),
        ([record | {"factors": ["L0"], "truth": None}], {}, r"unexpected type \(the factors and the truth of"),
        ([record | {"truth": dict.fromkeys(record["truth"])}], {}, "unexpected type"),
        ([record | {"tokens": "many"}], {}, "unexpected type"),
    )
    for number, (records, head, message) in enumerate(cases):
        with pytest.raises(imp_kit.RunError, match=message):
            samples_frame(write(tmp_path / str(number), records, **head))
    with pytest.raises(imp_kit.RunError, match=r"holds no run: there is no run\.json"):
        samples_frame(tmp_path)
    with pytest.raises(imp_kit.RunError, match="none is no folder"):
        samples_frame(tmp_path / "none")


def test_pandas_comes_with_the_first_table_and_torch_not_even_then(runs):
    code = (
        "import sys\n"
        "from imp_kit.experiments import captcha, frames, japanese, plots, report, transformers_matrix\n"
        "assert not {'torch', 'pandas'} & sys.modules.keys()\n"
        "assert len(frames.samples_frame(sys.argv[1]))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, runs / "captcha"], check=True)


def test_folders_of_experiments_offer_their_names():
    for folder in (captcha, japanese):
        assert folder.__doc__
        assert [name for name in folder.__all__ if not hasattr(folder, name)] == []
    assert captcha.draw_code(captcha.sample_code(1), seed=1).size == captcha.SIZE
    assert japanese.NAME == "japanese"
