"""Reports: from a run's folder alone, each figure with its commands, without torch."""

import json
import re
import subprocess
import sys
from collections import Counter

import nbformat
import pytest
from first_cell import NOTEBOOKS
from PIL import Image
from planted import Planted
from scipy.stats import binomtest
from test_japanese import speaker
from test_reading import reader

import imp_kit
from imp_kit.experiments import plots
from imp_kit.experiments.captcha import probe as reading
from imp_kit.experiments.frames import samples_frame
from imp_kit.experiments.japanese import probe as japanese
from imp_kit.experiments.pope import probe as pope
from imp_kit.experiments.report import published, write
from imp_kit.experiments.runs import Subject, read, run
from imp_kit.experiments.stats import UNLIKE, wilson
from imp_kit.tools.cli import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A small run of each probe by a planted subject: reads all, copies half, speaks Japanese half of the time."""
    folder = tmp_path_factory.mktemp("runs")
    cells = dict.fromkeys(cell for level in (0, 2, 4) for cell in reading.cells("smoke", level))
    cells = [*cells, reading.Cell(changed="glyph height", value=8)]
    cells += [reading.Cell(changed="text", value=value) for value in reading.KINDS_OF_TEXT]
    chosen = [reading.case(cell, n) for cell in cells for n in range(4)]

    design = {"size": "smoke", "seed": 1}
    run("captcha", chosen, Subject.of(Planted(chosen, reader(0.7, 0.5), 0)), folder / "reading", design=design)
    subject = Planted(japanese.cases("smoke", 1, real=True), speaker_of_all, 0)
    japanese.run(subject, "smoke", 1, folder / "japanese")
    return folder


def speaker_of_all(case, rng):
    if case.factors["part"] in ("scene", "general"):
        return speaker(0.8, 0.5)(case, rng)
    return case.truth.get("text") or case.truth["references"][0]


@pytest.mark.slow
def test_a_report_shows_tables_pictures_and_how_to_make_them_again(runs, tmp_path):
    file = write([runs / "reading", runs / "japanese"], tmp_path / "out")
    text = file.read_text("utf-8")
    shown = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(shown) == len(set(shown)) >= 8
    for name in shown:
        assert Image.open(tmp_path / "out" / name).width >= 600
    report = f"python -m imp_kit report {runs / 'reading'} {runs / 'japanese'} --out {tmp_path / 'out'}"
    # A planted subject is an object: no command can ask it.
    again = f"Planted was asked by code of its own. The report is made by\n\n```\n{report}\n```"
    assert text.count(again) == 2  # once a run,
    assert text.count("python -m imp_kit") == text.count(str(tmp_path / "out")) == 2  # and nowhere else
    for name in shown:
        assert re.search(rf"!\[(.*)\]\({name}\)\n\nFigure `{name}`: \1\.\n", text)
    for heading in ("# Reading probe: Planted", "## The caption below the code", "## Glyph height, all else as in L0",
                    "# Japanese limits: Planted", "## Photographs", "## Some answers in full"):  # fmt: skip
        assert f"{heading}\n" in text
    assert "by chance" in text
    assert "exact McNemar p" in text
    assert "chrF 100.0" in text
    assert "answer by answer 100.0 (66.1 – 100.0)" in text  # of ten photographs
    for name in ("captcha", "japanese"):
        assert published(name) in text


@pytest.mark.slow
def test_means_and_differences_have_intervals(runs):
    """Each cell of the columns that are no shares and no chance levels: a number and the bounds around it."""
    text = write([runs / "reading"]).read_text("utf-8") + write([runs / "japanese"]).read_text("utf-8")
    estimates = {"CER", "edits", "place", "repetition", "difference", "in CER", "in edits", "in place"}
    seen = Counter()
    for table in [part.splitlines() for part in text.split("\n\n") if part.startswith("| ")]:
        names, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
        for name, cell in [pair for row in rows for pair in zip(names, row, strict=False)]:
            if name in estimates and cell:
                value, *interval = map(float, re.findall(r"[+-]?\d+\.\d+", cell))
                assert interval or ("CER" in name and cell.endswith("(no interval)")), (name, cell)
                assert not interval or interval[0] <= value <= interval[1], cell
                seen[name] += 1
    assert seen.keys() == estimates
    assert f"where fewer than {UNLIKE} pictures are unlike the commonest" in text


def test_a_smoke_report_claims_no_more_than_two_pairs_can_show(tmp_path):
    """Everything read without a caption, nothing with one: no interval without a width, and none that p contradicts."""
    chosen = reading.cases("smoke", 1, level=4)

    def reply(case, rng):
        return case.truth["caption"] or case.truth["code"]

    run("captcha", chosen, Subject.of(Planted(chosen, reply, 0)), tmp_path, design={"size": "smoke", "seed": 1})
    text = write([tmp_path]).read_text("utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith("| L4 | 2 | 100.0% | 0.0% |")]
    p, difference = float(row.split("|")[5]), row.split("|")[6]
    value, low, high = (float(each) for each in re.findall(r"[+-]\d+\.\d+", difference))
    assert (p, value, low) == (0.5, -100, -100)
    assert high > 0
    for value, low, high in re.findall(r"([+-]?\d+\.\d+)%? \(([+-]?\d+\.\d+)%? (?:to|–) ([+-]?\d+\.\d+)%?\)", text):
        assert float(high) - float(low) > 0.1, (value, low, high)


def test_a_page_and_a_notebook_show_the_same_published_figures():
    page = (NOTEBOOKS.parent / "docs" / "experiments.md").read_text("utf-8")
    cells = nbformat.read(NOTEBOOKS / "04_japanese_limits.ipynb", as_version=4).cells
    for name in ("captcha", "japanese"):
        for line in published(name).splitlines():
            assert line.count("|") == published(name).splitlines()[0].count("|")
    assert page.count(published("captcha")) == 1
    assert [cell.source for cell in cells].count('published_frame("japanese")') == 1


def test_the_figures_are_those_of_the_records(runs, tmp_path):
    text = write([runs / "reading"], tmp_path).read_text("utf-8")
    records = read(runs / "reading")

    def of(*cell, **settings):
        return [r for r in records if r["factors"] == vars(reading.Cell(*cell, **settings))]

    def rights(rows):
        return sum(f'"{r["truth"]["code"]}"' in r["answer"] for r in rows)

    clean = of()
    right = rights(clean)
    level = max(level for level in (0, 2, 4) if rights(of(level)) >= 2)  # of four
    captioned = {r["seed"]: r for r in of(level, "true", codes="captions")}
    pairs = [(r, captioned[r["seed"]]) for r in of(level, "none", codes="captions")]
    without = rights(r for r, _ in pairs)
    differ = [[s["truth"]["code"] in s["answer"] for s in pair] for pair in pairs]
    one, other = (sum(pair == kind for pair in differ) for kind in ([True, False], [False, True]))
    p = binomtest(min(one, other), one + other).pvalue if one + other else 1.0
    assert re.search(rf"\| L{level} \| 4 \| {without / 4:.1%} \| .* \| {p:.3g} \| ", text)
    assert f"gave the code in {rights(captioned.values())} of 4 pictures with a true caption below it" in text
    assert f"and in {without} of 4 pictures of the same codes without a caption, the control" in text
    assert f"The main question, at {reading.RULE} (a rule from before the run" in text
    assert re.search(rf"\| L0 \| {len(clean)} \| {right / len(clean):.1%} \(", text)


WITHOUT_TORCH = """
import json, sys
class NoTorch:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "transformers", "accelerate", "timm"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoTorch())
from imp_kit.experiments import report
from imp_kit.experiments.captcha import probe as reading
from imp_kit.experiments.frames import samples_frame
from imp_kit.experiments.frames import samples_frame
from imp_kit.experiments.japanese import probe as japanese
from imp_kit.experiments.runs import read
report.write(sys.argv[1:3], sys.argv[3])
assert samples_frame(sys.argv[1]).shape[0] and samples_frame(sys.argv[2]).shape[0]
scores = [[sample.exact, sample.outcome] for sample in reading.samples(read(sys.argv[1]))]
scores += [[sample.right, sample.japanese] for sample in japanese.samples(read(sys.argv[2]))]
print(json.dumps(scores))
"""


@pytest.mark.slow
def test_scores_and_a_report_need_the_files_alone_and_no_torch(runs, tmp_path):
    """From copies of the two files of a run, so that nothing else can have been read."""
    for name in ("reading", "japanese"):
        (tmp_path / name).mkdir()
        for file in ("run.json", "samples.jsonl"):
            (tmp_path / name / file).write_bytes((runs / name / file).read_bytes())
    folders = [tmp_path / "reading", tmp_path / "japanese"]
    command = [sys.executable, "-c", WITHOUT_TORCH, *folders, tmp_path / "out"]
    message = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    expected = [[s.exact, s.outcome] for s in reading.samples(read(runs / "reading"))]
    expected += [[s.right, s.japanese] for s in japanese.samples(read(runs / "japanese"))]
    assert json.loads(message) == expected
    # Word for word the report of an environment with torch.
    assert (tmp_path / "out" / "report.md").read_text("utf-8") == write(folders, tmp_path / "out").read_text("utf-8")


def test_failed_samples_are_counted_apart(runs, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    (copy / "run.json").write_text((runs / "reading" / "run.json").read_text("utf-8"), "utf-8")
    lines = (runs / "reading" / "samples.jsonl").read_text("utf-8").splitlines()
    failed = json.loads(lines[0]) | {"status": "error", "error": "RuntimeError: none"}
    del failed["answer"]
    (copy / "samples.jsonl").write_text("\n".join([json.dumps(failed), *lines[1:], ""]), "utf-8")
    assert f"| samples | {len(lines) - 1} answered, 1 failed" in write([copy]).read_text("utf-8")
    assert (copy / "report.md").exists()


@pytest.mark.parametrize("name", ["captcha", "japanese"])
@pytest.mark.slow
def test_whichever_sample_fails_there_is_a_report(name, tmp_path):
    """In a smoke run a condition may have one sample, so each failure may leave one empty."""
    made = {"captcha": reading, "japanese": japanese}[name].cases("smoke", 1)
    reply = {"captcha": reader(0.5, 0.5), "japanese": speaker_of_all}[name]
    run(name, made, Subject.of(Planted(made, reply, 0)), tmp_path, design={"size": "smoke", "seed": 1})
    lines = (tmp_path / "samples.jsonl").read_text("utf-8").splitlines()
    for number in range(0, len(lines), 2):
        failed = json.loads(lines[number]) | {"status": "error", "error": "none"}
        (tmp_path / "samples.jsonl").write_text(
            "\n".join([*lines[:number], json.dumps(failed), *lines[number + 1 :], ""])
        )
        assert ", 1 failed" in write([tmp_path]).read_text("utf-8")


def test_imp_nano_is_not_passed_off_as_imp(runs, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for file in ("run.json", "samples.jsonl"):
        (run / file).write_text((runs / "reading" / file).read_text("utf-8").replace("Planted", "imp-nano"), "utf-8")
    assert "they say nothing about Imp" in write([run]).read_text("utf-8")


@pytest.mark.parametrize("name", ["reading", "japanese"])
@pytest.mark.slow
def test_a_run_of_an_earlier_version_has_a_report_or_one_error_that_names_it(runs, tmp_path, name):
    """Each key missing in turn, of run.json and of the records; then a condition that this version does not know."""
    head = json.loads((runs / name / "run.json").read_text("utf-8"))
    records = [json.loads(line) for line in (runs / name / "samples.jsonl").read_text("utf-8").splitlines()[:3]]

    def report(head, records):
        (tmp_path / "run.json").write_text(json.dumps(head), "utf-8")
        (tmp_path / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
        return write([tmp_path]).read_text("utf-8")

    for key in head.keys() - {"experiment", "checkpoint"}:
        text = report({other: value for other, value in head.items() if other != key}, records)
        assert ("not recorded" in text) == (key not in ("place", "imp-kit")), key
    few = {other: head[other] for other in ("experiment", "checkpoint")}
    assert report(few, records).count("not recorded") == 7
    spare = {"versions", "prompt", "prompt_sha256", "token_ids", "tokens", "finish", "seconds", "extracted", "scores"}
    spare |= {"picture_sha256", "number", *head} - {"seed"}
    for key in records[0].keys() - {"sample_id", "status", "key"}:
        older = [{other: value for other, value in record.items() if other != key} for record in records]
        if key in spare:
            assert report(head, older)
        else:
            with pytest.raises(imp_kit.RunError, match=rf"{tmp_path}: the record of .* \({key}\)"):
                report(head, older)
    for key, needed in {"level": False, "part": True, "code": True, "glyph": True, "picture": False}.items():
        for part in ("factors", "truth"):
            if key in records[-1][part]:
                older = records[-1] | {part: {k: v for k, v in records[-1][part].items() if k != key}}
                if needed:
                    with pytest.raises(imp_kit.RunError, match=rf"{tmp_path}: .* \({key}\)"):
                        report(head, [*records[:-1], older])
                else:
                    assert report(head, [*records[:-1], older])
    newer = [record | {"factors": record["factors"] | {"weather": "fine"}} for record in records]
    with pytest.raises(imp_kit.RunError, match=rf"{tmp_path}: .*weather"):
        report(head, newer)


def test_what_is_no_run(tmp_path, capsys):
    with pytest.raises(imp_kit.RunError, match=rf"^{tmp_path} holds no run: there is no run\.json"):
        write([tmp_path])
    (tmp_path / "file").write_text("")
    for name in ("file", "none"):
        with pytest.raises(imp_kit.RunError, match=f"{name} is no folder"):
            write([tmp_path / name])
    (tmp_path / "odd" / "run.json").mkdir(parents=True)
    with pytest.raises(imp_kit.RunError, match=r"odd.run\.json cannot be read \(Is a directory\)"):
        write([tmp_path / "odd"])
    (tmp_path / "none yet").mkdir()
    (tmp_path / "none yet" / "run.json").write_text(json.dumps({"experiment": "captcha", "checkpoint": "a"}))
    with pytest.raises(imp_kit.RunError, match="none yet holds no answered sample"):
        write([tmp_path / "none yet"])
    (tmp_path / "none yet" / "samples.jsonl").mkdir()
    with pytest.raises(imp_kit.RunError, match=r"samples\.jsonl cannot be read \(Is a directory\)"):
        write([tmp_path / "none yet"])
    with pytest.raises(imp_kit.RunError, match="no run to report"):
        write([])
    (tmp_path / "run.json").write_text(json.dumps({"experiment": "echo"}))
    with pytest.raises(imp_kit.RunError, match="'echo'; there are reports of captcha, japanese"):
        write([tmp_path])
    (tmp_path / "run.json").write_text(json.dumps({"experiment": "captcha"}))
    with pytest.raises(imp_kit.RunError, match=r"run\.json does not say which checkpoint was asked"):
        write([tmp_path])
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "nowhere")])
    assert (
        capsys.readouterr().err == f"imp-kit: {tmp_path / 'nowhere'} is no folder. Name a folder that a probe wrote.\n"
    )


@pytest.mark.slow
def test_a_probe_and_its_report_from_a_shell(tmp_path, capsys):
    for name in ("captcha", "japanese"):
        out = tmp_path / name
        arguments = ["probe", name, "--checkpoint", "imp-nano", "--device", "cpu", "--size", "smoke", "--out", str(out)]
        main(arguments)
        said = capsys.readouterr().out
        message = re.search(
            rf"(\d+) samples of imp-nano are answered and stand in {out}: (\d+) were asked now\.\n", said
        )
        assert message[1] == message[2]
        assert len(re.findall(r"Captions were compared at L\d: the hardest level of the ladder", said)) == (
            name == "captcha"
        )
        main(arguments)
        again = f"{message[1]} samples of imp-nano are answered and stand in {out}: all were there already, "
        again += "nothing was asked"
        assert again in capsys.readouterr().out
        main(["report", str(out)])
        text = (out / "report.md").read_text("utf-8")
        assert text.count("](") >= 2
        again = f"python -m imp_kit probe {name} --checkpoint imp-nano --out {out} --size smoke --seed 1 --dtype fp32"
        assert text.count(f"by\n\n```\n{again} --device cpu\npython -m imp_kit report {out}\n```\n") == 1
        assert text.count("python -m") == 2
        # Again with nothing left to ask: no model is loaded.
        code = (
            "import sys; from imp_kit import imp as assistant; from imp_kit.tools.cli import main\n"
            "def no(*args, **settings): raise AssertionError('loaded')\nassistant.load = no\nmain(sys.argv[1:])"
        )
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


@pytest.mark.slow
def test_a_probe_says_what_failed_and_what_is_new(tmp_path, capsys):
    """Two samples of a run are made failed ones in its file: they alone are asked again."""
    arguments = ["probe", "captcha", "--checkpoint", "imp-nano", "--device", "cpu", "--size", "smoke", "--out"]
    main([*arguments, str(tmp_path)])
    lines = (tmp_path / "samples.jsonl").read_text("utf-8").splitlines()
    failed = [json.dumps(json.loads(line) | {"status": "error", "error": "none"}) for line in lines[:2]]
    (tmp_path / "samples.jsonl").write_text("\n".join([*failed, *lines[2:], ""]), "utf-8")
    capsys.readouterr()
    main([*arguments, str(tmp_path)])
    message = f"{len(lines)} samples of imp-nano are answered and stand in {tmp_path}: 2 were asked now.\n"
    assert message in capsys.readouterr().out


class Backwards(Planted):
    """As an endpoint with several requests at once: answers come in another order than the questions."""

    def ask_each(self, pairs, **settings):
        for number, pair in reversed(list(enumerate(pairs))):
            yield number, self.ask(*pair)


def test_a_report_is_the_same_in_whichever_order_answers_came(tmp_path):
    made, texts = pope.cases("smoke", 1), []
    for kind in (Planted, Backwards):
        subject, folder = (
            kind(made, lambda case, rng: "Yes." if rng.random() < 0.7 else "No.", 0),
            tmp_path / kind.__name__,
        )
        subject.name = "planted"
        run("pope", made, Subject.of(subject), folder, design={"size": "smoke", "seed": 1})
        texts.append(write([folder]).read_text("utf-8").replace(str(folder), "run"))
    assert texts[0] == texts[1]


def test_plots_show_the_shares_with_their_intervals(runs):
    """The ladder's points are the shares of codes in the answers, its bars from one end of Wilson's to the other."""
    samples = reading.samples(read(runs / "reading"))
    (axes,) = plots.ladder({"planted": samples_frame(runs / "reading")}).axes
    plain = [sample for sample in samples if sample.cell == reading.Cell(level=sample.cell.level)]
    levels = sorted({sample.cell.level for sample in plain})
    rows = [[sample for sample in plain if sample.cell.level == level] for level in levels]
    shares = [wilson(sum(s.code in s.reply for s in row), len(row)) for row in rows]
    assert 0 < sum(share.right for share in shares) < sum(share.total for share in shares)
    points, _, (bars,) = axes.containers[0]
    assert points.get_xdata().tolist() == levels
    assert points.get_ydata() == pytest.approx([share.share for share in shares])
    ends = [ends for bar in bars.get_segments() for ends in bar[:, 1]]
    assert ends == pytest.approx([end for share in shares for end in (share.low, share.high)])


def test_a_guess_is_a_line_of_its_own_on_the_ladder(runs):
    frame = samples_frame(runs / "reading")
    (axes,) = plots.ladder({"planted": frame}, [90, 70, 50, 30, 10]).axes
    (guess,) = [line for line in axes.lines if line.get_label() == "your guess"]
    assert guess.get_xdata().tolist() == [0, 1, 2, 3, 4]
    assert guess.get_ydata().tolist() == [0.9, 0.7, 0.5, 0.3, 0.1]
    (axes,) = plots.ladder({"planted": frame}).axes
    assert "your guess" not in [line.get_label() for line in axes.lines]


def test_images_in_a_grid():
    tile = Image.new("RGB", (40, 20), "red")
    sheet = plots.grid([("one", tile), ("two", tile), ("three", tile)], columns=2)
    assert sheet.size == (2 * 48 + 8, 2 * 52 + 8)
    assert sheet.getpixel((10, 36)) == (255, 0, 0)
