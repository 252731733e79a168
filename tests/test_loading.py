"""The loading experiment: real calls in processes of their own, and the table and picture that come with the kit."""

import ast
import importlib
import os
import re
import sys
from collections import Counter
from csv import DictReader
from dataclasses import replace
from importlib import metadata

import pytest

import imp_kit
from imp_kit.checkpoints.hub import NANO_FOLDER
from imp_kit.errors import ImpKitError
from imp_kit.exercises import loading as exercises
from imp_kit.experiments.transformers_matrix.calls import CALLS, ERROR, NOT_RUN, SILENT, WORKS
from imp_kit.experiments.transformers_matrix.lesson import attempts, copy_with_code, recorded
from imp_kit.experiments.transformers_matrix.measure import (
    COLORS,
    COLUMNS,
    SCRIPT,
    TABLE,
    VERSIONS,
    Environment,
    draw,
    environment,
    measure,
    read_table,
    run_call,
    save_plot,
    script_digest,
    spans,
    summary,
    write_table,
)
from imp_kit.tools.cli import main

OWN = metadata.version("transformers")
# What the thread on the failure, the blog's route and the usual mend come down to.
MAIN = ("model-folder", "model-hub", "model-hub-slash", "model-snapshot", "model-two-slashes", "empty-cache", "weights")


@pytest.fixture(scope="module")
def rows():
    return read_table()


def find(rows, version, call):
    return next((row for row in rows if (row.version, row.call) == (version, call)), None)


# ------------------------------------------------------------------------------------------------ calls, as they happen


@pytest.mark.slow
@pytest.mark.parametrize("call", MAIN)
def test_a_call_does_here_what_the_table_says(rows, call):
    row = run_call(call, environment(OWN))
    known = find(rows, OWN, call)
    assert row.outcome != NOT_RUN, row.traceback
    if known:
        assert (row.outcome, row.error_type, row.message) == (known.outcome, known.error_type, known.message)
    assert row.version == OWN
    assert row.digest == script_digest()
    assert row.torch == metadata.version("torch")
    if row.outcome == ERROR:
        assert CALLS[call].line in row.traceback
        assert row.message.split()[0] in row.traceback
        assert sys.prefix not in row.traceback
        assert not re.search(r'File "[^"]*importlib', row.traceback)


def test_a_version_that_cannot_be_imported_is_not_blamed_on_the_call(tmp_path):
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text(f"raise RuntimeError('broken in {tmp_path}')")
    row = run_call("config-hub", Environment("4.0.999", tmp_path))
    assert (row.outcome, row.error_type, row.message) == (NOT_RUN, "RuntimeError", "broken in …")


def test_a_process_that_dies_is_told(tmp_path):
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text("import os; os._exit(3)")
    row = run_call("config-hub", Environment("4.0.999", tmp_path))
    assert (row.outcome, row.error_type, row.message) == (NOT_RUN, "CalledProcessError", "exit status 3")


def test_an_unknown_call():
    with pytest.raises(ImpKitError, match="no call 'model-cloud'; the calls are config-folder, "):
        run_call("model-cloud", environment(OWN))


# --------------------------------------------------------------------------------------------------------- environments


def test_the_running_interpreters_own_version_needs_no_folder(tmp_path):
    assert environment(OWN, tmp_path) == Environment(OWN, None)


def test_a_folder_that_is_there_is_used_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder = tmp_path / f"transformers-4.0.999-python{sys.version_info.major}.{sys.version_info.minor}"
    folder.mkdir()
    assert environment("4.0.999", tmp_path) == Environment("4.0.999", folder)


def test_a_version_that_pip_cannot_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a notebook's kernel
    with pytest.raises(ImpKitError, match=r"pip could not install transformers==4\.0\.999 \(No matching distribution"):
        environment("4.0.999", tmp_path)
    assert not [folder for folder in tmp_path.iterdir() if "partial" not in folder.name]


def test_what_is_no_version(capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main(["probe", "loading", "--versions", "four", "--csv", str(tmp_path / "table.csv")])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "imp-kit: 'four' is no version; give one such as 4.37.2, or 'newest'.\n"


# ------------------------------------------------------------------------------------------------ a run that is stopped


@pytest.mark.slow
def test_a_stopped_run_goes_on(rows, tmp_path, capsys):
    """What was measured stays as it is; a line that was cut short, and what could not be run, is measured again."""
    cut, failed = "config-plain-folder", "pad-token"
    version = VERSIONS[1] if find(rows, OWN, "cache") is None else OWN
    kept = [replace(row, version=OWN, date="1999-12-31") for row in rows if row.version == version]
    assert {row.call for row in kept} == CALLS.keys()
    kept = [replace(row, outcome=NOT_RUN) if row.call == failed else row for row in kept]
    csv, picture = tmp_path / "runs" / "table.csv", tmp_path / "table.png"
    csv.parent.mkdir()
    write_table([row for row in kept if row.call != cut], csv)
    csv.write_text(csv.read_text("utf-8") + f"{OWN},{cut},wor", "utf-8")
    main(["probe", "loading", "--versions", OWN, "--csv", str(csv), "--plot", str(picture)])
    with csv.open(encoding="utf-8", newline="") as file:
        lines = list(DictReader(file))
    assert [line["call"] for line in lines] == list(CALLS)
    assert {line["call"] for line in lines if line["date"] != "1999-12-31"} == {cut, failed}
    assert all(line["outcome"] == WORKS for line in lines if line["call"] == cut)
    assert picture.stat().st_size > 10_000
    assert f"control: .get_seq_length()\n    works in {OWN}\n" in capsys.readouterr().out
    before = csv.read_bytes()
    assert len(measure([OWN], csv)) == len(CALLS)
    assert csv.read_bytes() == before


def test_rows_of_an_older_script_are_replaced_by_newer_ones(rows, tmp_path):
    older = replace(rows[0], digest="0" * 12)
    write_table([older, rows[0]], tmp_path / "table.csv")
    assert read_table(tmp_path / "table.csv") == [rows[0]]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.removesuffix("\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\n\n  \n"),
        lambda text: "\ufeff" + text.replace("\n", "\r\n").removesuffix("\r\n"),
    ],
)
def test_what_an_editor_changes_around_rows_changes_none(tmp_path, change):
    whole = TABLE.read_text("utf-8")
    (tmp_path / "table.csv").write_text(change(whole), "utf-8", newline="")
    assert read_table(tmp_path / "table.csv") == read_table()


def test_a_last_row_that_was_cut_anywhere_is_left_out_and_another_is_named(tmp_path):
    table, rows = tmp_path / "table.csv", read_table()[:3]
    write_table(rows, table)
    whole = table.read_text("utf-8")
    start = whole.rstrip().rindex("\n") + 1
    for end in (start + 1, start + 9, len(whole) - 2):
        table.write_text(whole[:end], "utf-8")
        assert read_table(table) == rows[:2]
    lines = whole.splitlines()
    for broken in (lines[2][:-1], lines[2][:9], lines[2] + ",more", lines[2].replace(rows[1].version, "four", 1)):
        table.write_text("\n".join([*lines[:2], broken, lines[3], ""]), "utf-8")
        with pytest.raises(ImpKitError, match=r"table\.csv: the row of .* is no row of this table\. Delete it"):
            read_table(table)


def test_what_is_no_table(tmp_path):
    with pytest.raises(ImpKitError, match="cannot be read"):
        read_table(tmp_path / "nothing.csv")
    for content in ("a,b\n1,2\n", "a note without a line's end"):
        (tmp_path / "other.csv").write_text(content)
        with pytest.raises(ImpKitError, match=r"other\.csv is no table of this experiment"):
            measure([OWN], tmp_path / "other.csv")
        assert (tmp_path / "other.csv").read_text() == content
    (tmp_path / "cut.csv").write_text("version,ca")
    assert read_table(tmp_path / "cut.csv") == []


def test_a_table_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ImpKitError, match="cannot be written"):
        measure([OWN], tmp_path / "file" / "table.csv")


# ------------------------------------------------------------------------------------------ the table that is committed


def test_the_table_is_complete_and_of_this_script():
    with TABLE.open(encoding="utf-8", newline="") as file:
        lines = list(DictReader(file))
    assert list(lines[0]) == COLUMNS
    counts = Counter((line["version"], line["call"]) for line in lines)
    versions = {version for version, _ in counts}
    assert versions == set(VERSIONS)
    assert counts == Counter({(version, call): 1 for version in versions for call in CALLS})
    assert {line["digest"] for line in lines} == {script_digest()}
    assert {line["outcome"] for line in lines} == {WORKS, ERROR, SILENT}


def test_the_table_names_no_folder_of_a_machine():
    text = TABLE.read_text("utf-8")
    assert "MILVLG/Imp-v1.5-3B-Phi2" in text
    assert re.findall(r"(?:^|[\s'\"(,=])(?:/\w[^\s,]*|[A-Z]:\\[^\s,]*)", text) == []


def last_working(rows, call):
    """The last version in which a call works before it fails for the first time since; None if it never works."""
    return next((run[-1].version for run in spans(rows, call) if run[0].outcome == WORKS), None)


def test_the_failure_by_name(rows):
    """What the thread tells: the dot, and the slash that helps in a folder and not on a hub id."""
    assert find(rows, "4.37.2", "model-folder").message == "No module named 'transformers_modules.Imp-v1'"
    assert find(rows, "4.37.2", "model-hub").message == "No module named 'transformers_modules.MILVLG.Imp-v1'"
    assert find(rows, "4.37.2", "model-hub").what.startswith("asked for transformers_modules.MILVLG.Imp-v1.5-3B-Phi2.")
    assert find(rows, "4.37.2", "model-folder-slash").outcome == WORKS
    assert "'MILVLG/Imp-v1.5-3B-Phi2/'" in find(rows, "4.37.2", "model-hub-slash").message
    assert find(rows, "4.37.2", "model-two-slashes").outcome == SILENT
    # September 2025, when a post installed transformers without a version and wrote the slash.
    assert find(rows, "4.56.2", "model-hub-slash").error_type == "HFValidationError"
    assert find(rows, "4.56.2", "tokenizer-hub").outcome == WORKS
    assert find(rows, "4.56.2", "model-hub").error_type == "ModuleNotFoundError"
    assert last_working(rows, "model-hub-slash") is None


@pytest.mark.parametrize("call", ["model-snapshot", "model-plain-folder", "model-plain-hub", "tokenizer-hub", "cache"])
def test_what_works_everywhere(rows, call):
    """The mend by name; and the control: where a cache probe fails, it is not the tiny model that fails."""
    assert [span[0].outcome for span in spans(rows, call)] == [WORKS]
    assert last_working(rows, call) == rows[-1].version


# --------------------------------------------------------------------------------------------- what is made of the rows


@pytest.fixture
def few(rows):
    """A call that works, fails, works again: made up, in versions whose order as text is another."""
    row = replace(find(rows, "4.37.2", "cache"), call="generate")
    outcomes = {"4.9.0": WORKS, "4.10.0": WORKS, "4.11.0": ERROR, "5.0.0": SILENT, "10.0.0": WORKS}
    errors = {ERROR: "KeyError"}
    return [replace(row, version=v, outcome=o, error_type=errors.get(o, "")) for v, o in outcomes.items()][::-1]


def test_spans_and_the_last_version_that_works(few):
    assert [[row.version for row in span] for span in spans(few, "generate")] == [
        ["4.9.0", "4.10.0"],
        ["4.11.0"],
        ["5.0.0"],
        ["10.0.0"],
    ]
    assert last_working(few, "generate") == "4.10.0"
    assert last_working(few[1:3], "generate") is None
    assert last_working(few, "cache") is None


def test_the_table_in_words(few):
    assert summary(few) == (
        "generate, own class\n"
        "    works in 4.9.0 to 4.10.0; KeyError in 4.11.0; silently wrong in 5.0.0; works in 10.0.0"
    )


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_the_picture_shows_versions_calls_and_outcomes(few):
    from matplotlib.colors import to_hex

    figure = draw(few, ["generate"])
    shown = texts(figure)
    assert shown[-5:] == ["4.9.0", "4.10.0", "4.11.0", "5.0.0", "10.0.0"]
    assert "generate, own class" in shown
    assert "KeyError" in shown  # five versions leave room for the word
    bars = [(bar.get_x(), bar.get_width(), to_hex(bar.get_facecolor())) for bar in figure.axes[0].patches]
    assert bars == [(0, 2, COLORS[WORKS]), (2, 1, COLORS[ERROR]), (3, 1, COLORS[SILENT]), (4, 1, COLORS[WORKS])]


def test_the_picture_shows_what_was_not_run(few):
    other = replace(few[0], call="cache", version="4.10.0")
    bars = [(bar.get_x(), bar.get_width()) for bar in draw([*few, other], ["cache"]).axes[0].patches]
    assert bars == [(0, 1), (1, 1), (2, 3)]


def test_the_picture_of_the_whole_table(rows, tmp_path):
    from PIL import Image

    figure = draw(rows)
    shown = texts(figure)
    assert {call.label for call in CALLS.values()} <= set(shown)
    assert {row.version for row in rows} <= set(shown)
    legend = " ".join(text.get_text() for text in figure.texts)
    letters = {text for text in shown if len(text) == 1} - {"≠"}
    assert letters
    assert all(f"{letter} " in legend for letter in letters)
    save_plot(rows, tmp_path / "table.png")
    assert Image.open(tmp_path / "table.png").width == 1800


def test_a_picture_that_cannot_be_drawn(rows, tmp_path):
    with pytest.raises(ImpKitError, match="no rows to draw"):
        draw([])
    with pytest.raises(ImpKitError, match=r"table\.nothing cannot be written"):
        save_plot(rows, tmp_path / "table.nothing")


# ----------------------------------------------------------------------------------------------- the lesson about it


def test_a_row_as_text_says_what_was_typed_and_what_came():
    assert str(recorded("4.56.2", "model-hub-slash")) == (
        '>>> AutoModelForCausalLM.from_pretrained("MILVLG/Imp-v1.5-3B-Phi2/", trust_remote_code=True)\n'
        "    transformers 4.56.2: HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': "
        "'MILVLG/Imp-v1.5-3B-Phi2/'. Use `repo_type` argument if needed."
    )
    assert str(recorded("4.56.2", "tokenizer-hub")).endswith(
        "\n    transformers 4.56.2: works: PreTrainedTokenizerFast"
    )
    assert "4.37.2: silently wrong: the class of A.1 came" in str(recorded("4.37.2", "model-two-slashes"))


def test_a_version_that_was_not_recorded():
    with pytest.raises(ImpKitError, match=r"no call 'model-hub' in 4\.56\.9\. Its versions are 4\.36\.2, 4\.37\.2, "):
        recorded("4.56.9", "model-hub")


@pytest.mark.slow
def test_an_attempt_is_a_live_call_and_is_made_once(capsys):
    attempt = attempts(OWN)
    row = attempt("model-hub-slash")
    assert row.outcome == ERROR
    assert row.traceback
    assert attempt("model-hub-slash") is row
    assert capsys.readouterr().out == ""


def test_without_the_version_an_attempt_gives_what_was_recorded_and_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    attempt = attempts("4.36.2", tmp_path)
    assert attempt("model-hub") == recorded("4.36.2", "model-hub")
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f"transformers 4.36.2 is put into the folder {tmp_path}, once; no installed package is replaced."
    assert last == "Until then you see what was recorded."
    with pytest.raises(ImpKitError, match=r"pip could not install transformers==4\.0\.999"):
        attempts("4.0.999", tmp_path)


def test_where_no_folder_can_be_made_an_attempt_says_so_and_gives_what_was_recorded(capsys, tmp_path):
    """Before, pip was asked, and its "ERROR: Exception:" was given as the reason."""
    (tmp_path / "runs").write_text("a file")
    attempt = attempts("4.36.2", tmp_path / "runs")
    assert attempt("model-hub") == recorded("4.36.2", "model-hub")
    said = capsys.readouterr().out
    assert "partial cannot be written (Not a directory)" in said
    assert "Exception:" not in said


def test_a_copy_with_code_answers_as_imp_nano_and_its_code_does_not_run(tmp_path):
    for _ in range(2):  # a cell may run twice
        folder = copy_with_code(tmp_path / "imp-nano.with.dots")
    with pytest.raises(SystemExit, match="This code was run"):
        exec((folder / "modeling_imp.py").read_text("utf-8"))
    assert '"modeling_imp.ImpForCausalLM"' in (folder / "config.json").read_text("utf-8")
    answers = [
        imp_kit.load(place, device="cpu").ask(imp_kit.sample("bus.png"), "What is this?")
        for place in (f"{folder}/", NANO_FOLDER)
    ]
    assert str(answers[0]) == str(answers[1])


def says(capsys, check, answer):
    check(answer)
    return capsys.readouterr().out


def test_exercise_missing_module(capsys):
    check = exercises.missing_module
    name = "transformers_modules.someone.tiny"
    for written in (name, f"'{name}'", f"No module named '{name}'", f"ModuleNotFoundError: No module named '{name}'"):
        assert says(capsys, check, written).startswith("Right")
    for answer, hint in {
        "tiny": "begin with `transformers_modules`",
        "transformers_modules.someone/tiny": "a dot for each slash",
        "transformers_modules/someone/tiny": "a dot for each slash",
        "transformers_modules.tiny": "folder of the owner",
        "transformers_modules.someone.model": "before the dot",
        "transformers_modules.someone.tiny.model": "before 'model'",
        "transformers_modules.someone.tiny.model.modeling_tiny": "before 'model'",
        7: "begin with",
    }.items():
        assert re.match(f"Not yet: .*{hint}", says(capsys, check, answer))


def test_exercise_missing_module_is_what_python_says(tmp_path, monkeypatch):
    """With the folders as transformers 4.37.2 makes them."""
    folder = tmp_path / "transformers_modules" / "someone" / "tiny.model"
    folder.mkdir(parents=True)
    (folder / "modeling_tiny.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "transformers_modules", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'transformers_modules\.someone\.tiny'$"):
        importlib.import_module("transformers_modules.someone.tiny.model.modeling_tiny")
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)


def test_exercise_safe_name(capsys):
    check, numbers = exercises.safe_name, iter(range(1000))
    assert says(capsys, check, lambda name: name.replace(".", "_dot_")).startswith("Right")
    assert says(capsys, check, lambda name: name.encode().hex()).startswith("Right")
    for function, hint in (
        (lambda name: name, "still has a dot"),
        (
            lambda name: name.replace(".", "_"),
            "'Imp-v1.5-3B-Phi2' and 'Imp-v1_5-3B-Phi2' both become 'Imp-v1_5-3B-Phi2'",
        ),
        (lambda name: name.replace(".", ""), "one would get the code of the other"),
        (lambda name: name.split(".")[0], "'Imp-v1.5-3B-Phi2' and 'Imp-v1.5-4B-Phi3' both become 'Imp-v1'"),
        (lambda name: name.replace(".", "/"), "a slash ends the name of a folder"),
        (lambda name: "", "not a name"),
        (lambda name: 7, "not a name"),
        (lambda name: f"model{next(numbers)}", "another name each time"),
        (lambda name: ..., "still returns"),
    ):
        said = says(capsys, check, function)
        assert said.startswith("Not yet: ")
        assert hint in said


def test_exercise_versions_that_work(capsys):
    check = exercises.versions_that_work

    def right(rows, calls):
        works = {(row.version, row.call) for row in rows if row.outcome == WORKS}
        return {row.version for row in rows if all((row.version, call) in works for call in calls)}

    said = says(capsys, check, right)
    assert said == (
        "Right: all of Imp's code runs by its name in 0 versions, from the folder in 4.36.2, 4.37.2, 4.39.3, 4.41.2.\n"
    )
    for function, hint in (
        (
            lambda rows, calls: {row.version for row in rows if row.call in calls and row.outcome == WORKS},
            "one of them",
        ),
        (lambda rows, calls: right(rows, calls[:1]), "one of them does not work there"),
        (lambda rows, calls: right(rows, calls[1:]), "one of them does not work there"),
        (lambda rows, calls: [], "model-hub: 4.57.6 is missing"),
        (lambda rows, calls: right(rows, calls) | {"6.0.0"}, "6.0.0 is no version of the table"),
        (lambda rows, calls: "4.37.2", "Return a list, not '4.37.2'"),
        (lambda rows, calls: 4, "Return a list, not 4"),
        (lambda rows, calls: [["4.37.2"]], "['4.37.2'] is no version of the table"),
    ):
        said = says(capsys, check, function)
        assert said.startswith("Not yet: ")
        assert hint in said


# ----------------------------------------------------------------------------------------------------------- the script


def test_the_script_needs_nothing_of_the_kit():
    names = set()
    for node in ast.walk(ast.parse(SCRIPT.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    assert names - sys.stdlib_module_names == {"torch", "transformers", "huggingface_hub", "safetensors", "accelerate"}


def test_every_call_is_told_in_a_line_and_a_sentence():
    assert len(CALLS) == len({call.label for call in CALLS.values()}) > 30
    for call in CALLS.values():
        ast.parse(call.line)
        assert "\n" not in call.line
        assert call.sentence.endswith(".")
        assert len(call.sentence) <= 120
