"""Several subjects in one report: on the same samples only, each figure as counted by hand."""

import json
import re
import shutil
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from loopback_openai import completion, serve
from planted import Planted
from scipy.stats import binomtest
from test_openai_endpoint import identify
from test_reading import reader

from imp_kit.experiments import side_by_side
from imp_kit.experiments.captcha import probe as captcha
from imp_kit.experiments.documents import probe as documents
from imp_kit.experiments.documents.probe import Known
from imp_kit.experiments.frames import PROBES, samples_frame
from imp_kit.experiments.japanese import probe as japanese
from imp_kit.experiments.pope import probe as pope
from imp_kit.experiments.report import write
from imp_kit.experiments.runs import Subject, _digest, read, read_head, run
from imp_kit.experiments.side_by_side import MEASURES, Run, differences, figures, labels, p_value, pairs, same_design
from imp_kit.experiments.stats import bounded_difference, holm, wilson
from imp_kit.tools.cli import main


def yes_man(case, rng):
    return "Yes." if rng.random() < 0.8 else "No."


def right_man(case, rng):
    return case.truth["answer"] if rng.random() < 0.9 else "I do not know."


def loaded(folder) -> Run:
    return Run(folder, read_head(folder), read(folder), samples_frame(folder))


def ask(experiment, made, who, name: str, folder, size: str = "lesson", seed: int = 1) -> Run:
    who.name = name
    run(
        experiment.NAME,
        made,
        Subject.of(who),
        folder,
        settings=experiment.SETTINGS,
        design={"size": size, "seed": seed},
    )
    return loaded(folder)


@pytest.fixture(scope="module")
def popes(tmp_path_factory):
    """Three subjects about 20 images: one that differs much from the second, and one that is nearly the second."""
    made = [case for seed in range(20) for case in pope.image_cases(seed)] + pope.cases("smoke", 1)[-12:]
    made = [replace(case, drawn=case.picture) for case in made]
    replies = {"always yes": (yes_man, 0), "good": (right_man, 1), "as good": (right_man, 3)}
    folder = tmp_path_factory.mktemp("popes")
    return [ask(pope, made, Planted(made, reply, seed), name, folder / name) for name, (reply, seed) in replies.items()]


def rows_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line][2:]


def rights(run: Run) -> dict[str, bool]:
    return {
        each["sample_id"]: pope.yes_or_no(each["answer"], each["truth"]["kind"]) == each["truth"]["answer"]
        for each in run.records
        if each["factors"]["control"] == "none" and each["status"] == "ok"
    }


def test_figures_are_those_of_the_records(popes):
    rows = rows_of(figures(popes))
    assert [row[0] for row in rows] == ["always yes", "good", "as good"]
    for row, each in zip(rows, popes, strict=True):
        found = rights(each)
        assert row[1:4] == [str(len(each.records)), "0", "0"]  # though "I do not know." declines in words
        assert row[4].startswith(f"{sum(found.values()) / len(found):.1%} (")


def test_differences_are_of_the_same_samples_after_holm(popes):
    """Six questions about an image are no six pieces of evidence: the test counts images."""
    rows = rows_of(differences(popes))
    p_values = []
    for row, (one, other) in zip(rows, combinations(popes, 2), strict=True):
        first, second = rights(one), rights(other)
        more = {name: int(first[name]) - int(second[name]) for name in first}
        images = {}
        for name, value in more.items():
            images.setdefault(name.split("/")[-1], []).append(value)
        signs = [np.sign(sum(values)) for values in images.values()]
        p_values.append(binomtest(signs.count(1), signs.count(1) + signs.count(-1)).pvalue)
        interval = bounded_difference(list(more.values()), [name.split("/")[-1] for name in more])
        shares = [f"{sum(each.values()) / 120:.1%}" for each in (first, second)]
        assert row[2:7] == ["right", "120", *shares, f"{interval:+.1%}"]
    assert [row[7] for row in rows] == [f"{p:.3g}" for p in holm(p_values)]
    assert float(rows[0][7]) < 0.001 < 0.2 < float(rows[2][7])


def test_one_sample_of_a_kind_is_mcnemar_and_tango(tmp_path):
    made = documents.cases("lesson", 1)[:72]
    readers = {share: Known(made, share, seed=2) for share in (0.3, 0.8)}
    runs = [ask(documents, made, reader, f"{share}", tmp_path / f"{share}") for share, reader in readers.items()]
    (measure,) = [each for each in MEASURES["documents"] if each.main]
    paired = pairs(measure, *runs)
    first, second = (paired[name].to_numpy(bool) for name in ("first", "second"))
    only, other = (first & ~second).sum(), (~first & second).sum()
    assert (only, len(paired)) == (0, 72)
    assert other > 20
    table = paired[paired.kind == "table"]  # with one question about each
    differ = int((table["first"] != table["second"]).sum())
    assert p_value(measure, table) == pytest.approx(binomtest(0, differ).pvalue)
    assert p_value(measure, paired) < 0.01
    rows = rows_of(figures(runs))
    for row, each in zip(rows, runs, strict=True):
        own = each.frame[each.frame.control == "none"]
        assert row[4].startswith(f"{own.right.mean():.1%} (")
    names = [measure.name for measure in MEASURES["documents"]]
    right = runs[0].frame[runs[0].frame.kind == "table"].right
    assert rows[0][4 + names.index("table")] == str(wilson(int(right.sum()), len(right)))


def test_each_experiment_has_its_table(tmp_path):
    """Of two subjects each, at the smallest size."""
    replies = {
        captcha: (reader(0.8, 0.0), reader(0.2, 0.5)),
        japanese: (lambda case, rng: "赤いです。", lambda case, rng: "It is red."),
        pope: (right_man, yes_man),
    }
    for probe, given in replies.items():
        runs = []
        made = {captcha: captcha.possible_cases, pope: pope.cases, japanese: japanese.cases}[probe]("smoke", 1)
        for name, reply in zip(("one", "other"), given, strict=True):
            runs.append(ask(probe, made, Planted(made, reply, 3), name, tmp_path / probe.NAME / name, "smoke"))
        assert len(same_design(runs)) == 1
        lines = rows_of(differences(runs))
        assert [row[2] for row in lines] == [each.name for each in MEASURES[probe.NAME] if each.main]
        assert all(len(row) == 8 and int(row[3]) > 0 for row in lines)
        assert [row[0] for row in rows_of(figures(runs))] == ["one", "other"]
    assert set(MEASURES) == set(PROBES)


def test_another_picture_or_a_failed_sample_is_no_pair(popes, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(popes[1].folder, folder)
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text("utf-8").splitlines()]
    own = [each for each in lines if each["factors"]["control"] == "none"]
    own[0]["picture_sha256"] = "0" * 64
    own[1]["question"] += "?"
    own[2]["status"] = "error"
    (folder / "samples.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines), "utf-8")
    runs = [popes[0], loaded(folder)]
    assert rows_of(differences(runs))[0][3] == "117"
    assert rows_of(figures(runs))[1][1:4] == [str(len(lines) - 1), "0", "1"]
    for each in lines:
        each["picture_sha256"] = "0" * 64
    (folder / "samples.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines), "utf-8")
    assert differences([popes[0], loaded(folder)]).startswith("No two subjects have answered the same sample")


def test_only_runs_of_one_design_stand_side_by_side(popes, tmp_path):
    one, two = (pope.cases("smoke", seed)[:12] for seed in (1, 2))
    other_seed = ask(pope, two, Planted(two, right_man, 0), "good", tmp_path / "2", "lesson", 2)
    other_size = ask(pope, one, Planted(one, right_man, 0), "good", tmp_path / "1", "smoke", 1)
    assert same_design([popes[0], other_seed, other_size]) == []
    assert same_design([popes[0], other_seed, popes[1]]) == [[popes[0], popes[1]]]
    text = write([other_seed.folder, other_size.folder], tmp_path / "out").read_text("utf-8")
    assert "side by side" not in text
    assert labels([popes[1], other_seed, popes[0]]) == ["good (good)", "good (2)", "always yes"]
    assert [line for line in text.splitlines() if line.startswith("# ")] == [
        "# Things that are not there: good (2)",
        "# Things that are not there: good (1)",
    ]


def test_imp_nano_beside_an_endpoint_from_the_command_line(tmp_path, capsys):
    """The endpoint refuses one question, and says that imp-nano answers: so its name is no other model's either."""
    made, runs = captcha.possible_cases("smoke", 1), [str(tmp_path / name) for name in ("nano", "endpoint")]
    codes = {f"{_digest(case.picture)} {case.question}": case.truth["code"] for case in made}

    def answer(talk, number):
        refused = {"refusal": "No codes.", "text": None} if number == 3 else {}
        talk.give(completion(**{"text": codes[identify(talk.body)], "model": "imp-nano", **refused}))

    with serve(answer) as server:
        smoke = ["--size", "smoke", "--out"]
        main(["probe", "captcha", "--checkpoint", "imp-nano", "--device", "cpu", *smoke, runs[0]])
        main(["probe", "captcha", "--subject", f"{server.url}#model", "--concurrency", "3", *smoke, runs[1]])
    main(["report", *runs, "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "report.md").read_text("utf-8")
    beginning, *parts = re.split("(?m)^# ", text)
    assert beginning == ""
    assert [part.splitlines()[0] for part in parts] == [
        "Reading probe: 2 subjects side by side",
        "Reading probe: imp-nano",
        "Reading probe: model",
    ]
    assert all("they say nothing about Imp" in part for part in parts)
    nano, model = rows_of(parts[0].partition(side_by_side.NOTE)[0])
    assert "| subject | answered | stopped by a filter | failed |" in parts[0]
    assert (nano[0], nano[2], model[0], model[2]) == ("imp-nano", "0", "model", "1")
    assert model[1] == str(len(read(runs[1])))
    (row,) = rows_of(parts[0].partition(side_by_side.NOTE)[2])
    assert row[:3] == ["imp-nano", "model", "code in reply, all levels"]
    assert "1 of them with a refusal" in parts[2]
    commands = re.findall(r"python -m imp_kit probe .*", text)
    assert commands[1].startswith(f"python -m imp_kit probe captcha --subject '{server.url}#model' --concurrency 3 ")
