"""`make gpu`: what it would do, its parts and their time, and the report; on a CPU, with commands that really run."""

import json
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import gpu
import pytest
import steps
import torch
from gpu import Job
from oracle import write_checkpoint

import imp_kit
from imp_kit.checkpoints.load import load_weights
from imp_kit.tools.cli import parser

ROOT = Path(__file__).parents[1]


def says(text: str, code: int = 0) -> list[str]:
    return [sys.executable, "-c", f"import sys; print({text!r}); sys.exit({code})"]


@pytest.fixture
def environment():
    return dict(gpu.os.environ)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_what_it_would_do_and_does_nothing(capsys, tmp_path):
    out = tmp_path / "out"
    assert gpu.main(["--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("There is no device 'cuda' here (")
    assert "Nothing is run. In 20 minutes at most it would run:" in said
    for part in gpu.SHARES:
        assert f"\n{part} (" in said
    assert said.count("--nbmake ") == len(list((ROOT / "notebooks").glob("*.ipynb")))
    assert "--against transformers " in said
    assert "--against transformers-static " in said
    assert "--device cpu" in said
    assert not out.exists()


def test_parts_can_be_chosen_and_left_out(capsys):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    assert gpu.main(["tests", "steps", "--without", "steps", "--minutes", "3"]) == 0
    said = capsys.readouterr().out
    assert "In 3 minutes" in said
    assert "tests (180 s" in said
    assert "steps (" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["training"], "there is no part 'training'; choose from environment, tests"),
        (["--without", "test"], "there is no part 'test'"),
        (["steps", "--without", "steps"], "every part is left out"),
        (["--minutes", "0"], "give a number above 0"),
        (["--minutes", "nan"], "give a number above 0"),
        (["--device", "mps"], "invalid choice"),
        (["--out", str(ROOT / "images")], "is there already"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        gpu.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("on_gpu", [True, False])
def test_every_command_is_one_that_exists(on_gpu, tmp_path):
    """Its files are there, and the kit's and the tools' own parsers take it."""
    jobs = gpu.plan(on_gpu, tmp_path)
    assert {job.part for job in jobs} == set(gpu.SHARES)
    for job in jobs:
        command = job.command
        assert command[0] == sys.executable
        if command[1:3] == ["-m", "imp_kit"]:
            parser().parse_args(command[3:])
        elif command[1:3] == ["-m", "pytest"]:
            assert all((ROOT / file).exists() for file in command if file.startswith("tests/"))
        else:
            assert Path(command[1]).exists()
    assert {file for job in jobs if job.name == "CUDA" for file in job.command if file.startswith("tests/")} == {
        f"tests/{file.name}" for file in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in file.read_text("utf-8")
    } - {"tests/test_gpu.py"}


def test_a_gpu_without_bf16_is_not_asked_for_it(tmp_path):
    left_out = [job for job in gpu.plan(True, tmp_path, bf16=False) if "emulates" in job.left_out]
    assert [job.name for job in left_out] == ["bf16"]
    assert "emulates" not in "".join(job.left_out for job in gpu.plan(True, tmp_path))


def test_it_goes_on_after_a_failure_and_after_a_limit(tmp_path, environment, monkeypatch):
    """A command that starts another one is ended with it."""
    mark = tmp_path / "still there"
    child = f"import time; time.sleep(4); open({str(mark)!r}, 'w')"
    sleeper = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"]
    jobs = [
        Job("tests", "too long", sleeper),
        Job("environment", "it fails", says("so much", 3)),
        Job("steps", "with a file", says("{}"), tmp_path / "steps.json"),
        Job("steps", "not here", ["no such program"], left_out="this GPU only emulates bf16"),
    ]
    monkeypatch.setattr(gpu, "SHARES", {"tests": 0.02, "environment": 0.49, "steps": 0.49})
    begun = time.monotonic()
    outcomes = gpu.run(jobs, tmp_path, 2, environment)
    assert [outcome.state for outcome in outcomes] == ["stopped", "failed", "passed", "left out"]
    assert outcomes[0].detail == "not done after 2 s; see tests-too-long.log"
    assert outcomes[1].detail == "exit status 3; see environment-it-fails.log"
    assert (tmp_path / "environment-it-fails.log").read_text() == "so much\n"
    assert (tmp_path / "steps.json").read_text() == "{}\n"
    time.sleep(max(0.0, begun + 6 - time.monotonic()))
    assert not mark.exists()


def test_the_report(tmp_path, environment):
    """As Markdown, JSON and JUnit, from files as the commands write them."""
    figures = {
        "figures": {"decode 1": {"seconds": {"median": 0.01}, "work": [[1e9, 6e9]]}},
        "limits": {"bandwidths": {"copy": {"median": 700e9}}},
        "memory": {"gpu_peak_bytes": 7 * 2**30},
        "against": {"decode 1": {"ratio": {"median": 9.5}}},
    }
    (tmp_path / "bench-fp16.json").write_text(json.dumps(figures))
    (tmp_path / "loading.json").write_text(json.dumps({"imp-v1-3b": [{"peak_bytes": 2**30}, {"peak_bytes": 2**31}]}))
    (tmp_path / "steps-captured.json").write_text(json.dumps({"ways": {"captured": {"start_seconds": 0.4}}}))
    (tmp_path / "tests.xml").write_text(
        "<testsuites><testsuite><testcase name='a'/><testcase name='b'><failure/></testcase>"
        "<testcase name='c'><skipped/></testcase></testsuite></testsuites>"
    )
    (tmp_path / "steps-a.log").write_text("half\rwhole\n")
    outcomes = [gpu.Outcome("tests", "CUDA", "failed", 12.5, "exit status 1"), gpu.Outcome("steps", "a", "passed", 1.0)]
    result = gpu.write_report(outcomes, False, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text("utf-8")) == json.loads(json.dumps(result))
    assert result["cases"] == {"tests": 3, "failed": 1, "skipped": 1}
    assert [row["reached"] for row in result["goals"]] == [True, False, None, True, False, True]
    report = (tmp_path / "report.md").read_text("utf-8")
    assert "no GPU: a rehearsal on the CPU" in report
    assert f"torch {torch.__version__}" in report
    assert "| tests | CUDA | failed | 12.5 | exit status 1 |" in report
    assert "| 80 % or more | 85.7 % | yes |" in report
    assert "| 10 times as many | 9.5 times | **no** |" in report
    assert "compiled steps | as many | not measured |  |" in report
    assert "## steps-a\n\n```\nwhole\n```" in report
    suite = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "5",
        "failures": "2",
        "errors": "0",
        "skipped": "1",
    }


def test_a_report_of_nothing(tmp_path):
    result = gpu.write_report([], False, tmp_path)
    assert {row["reached"] for row in result["goals"]} == {None}
    (tmp_path / "bench-fp16.json").write_text("{ cut sh")
    assert gpu.read(tmp_path / "bench-fp16.json") == {}


@pytest.mark.slow
def test_a_rehearsal_on_the_cpu(tmp_path):
    """As the command does it, but for the notebook, which other tests run: the tests of CUDA skip."""
    command = [sys.executable, ROOT / "tests" / "tools" / "gpu.py", "--device", "cpu", "--out", tmp_path]
    command += ["--without", "notebooks", "--minutes", "120"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    result = json.loads((tmp_path / "report.json").read_text("utf-8"))
    states = {(each["part"], each["name"]): each["state"] for each in result["outcomes"]}
    assert set(states.values()) == {"passed", "left out"}, done.stdout
    assert {part for (part, _), state in states.items() if state == "passed"} == set(gpu.SHARES) - {"notebooks"}
    assert result["cases"]["failed"] == 0
    assert result["cases"]["skipped"] > 10
    assert done.returncode == 0


# The ways of a step --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return imp_kit.load("imp-nano", device="cpu", dtype="fp32").model


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_way_that_is_not_here_leaves_the_others(model):
    found = steps.measure(model, ["captured", "plain"], context=20, steps=2)
    assert found["captured"] == {"lines": found["captured"]["lines"], "error": "RuntimeError: a CUDA graph needs a GPU"}
    assert found["plain"]["token_seconds"] > 0
    assert found["plain"]["difference"] == 0
    assert 1 <= found["plain"]["lines"] < found["captured"]["lines"] < 100


@pytest.mark.slow
def test_the_compiled_step_is_the_plain_one(oracle, tmp_path):
    """On a CPU without the graph; of a tiny network, since compiling takes long."""
    folder = write_checkpoint(oracle, tmp_path / "tiny")
    model, _ = load_weights(folder, torch.device("cpu"), torch.float32)
    found = steps.measure(model, ["plain", "compiled"], context=20, steps=2)
    assert found["compiled"].get("error") is None
    assert found["compiled"]["difference"] < 1e-4
    assert found["compiled"]["start_seconds"] > 0


def test_the_table_of_the_ways(capsys, tmp_path):
    steps.main(["--device", "cpu", "--ways", "plain", "--json", str(tmp_path / "steps.json")])
    result = json.loads((tmp_path / "steps.json").read_text("utf-8"))
    assert capsys.readouterr().out == steps.table(result) + "\n"
    assert result["network"] == "imp-nano"
    with pytest.raises(SystemExit, match="There is no published size 'imp-v9'"):
        steps.main(["--random", "imp-v9", "--device", "cpu"])
