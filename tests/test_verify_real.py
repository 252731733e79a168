"""The comparison on real checkpoints, tried on a tiny one that lies in a hub cache under a real one's name."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from remote_code import COMMIT, INSTALLED, REFUSED, put, route
from verify_real import Result, Run, first_difference, status

ROOT = Path(__file__).parents[1]
CPU = ("--device", "cpu", "--dtype", "fp32")


@pytest.fixture
def verify(tmp_path):
    """Returns a function that runs the script offline, with a hub cache in `tmp_path`, and gives the report, too."""
    environment = {
        **os.environ,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
    }

    def run(*arguments: str, trust: bool = True) -> tuple[subprocess.CompletedProcess, str]:
        command = [
            sys.executable,
            str(ROOT / "tests" / "tools" / "verify_real.py"),
            *arguments,
            "--out",
            str(tmp_path / "out"),
        ]
        command += ["--trust-remote-code"] * trust
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
        reports = list((tmp_path / "out").glob("*.md"))
        return done, reports[0].read_text("utf-8") if reports else ""

    return run


@route
@pytest.mark.slow
def test_equal_routes(verify, tmp_path):
    put(tmp_path / "hub")
    done, report = verify("imp-v1-3b", *CPU)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"running the code of MILVLG/imp-v1-3b at commit {COMMIT}" in done.stdout
    assert "imp-v1-3b: 4 of 4 answers have equal tokens" in done.stdout
    assert f"- transformers {INSTALLED}\n" in report
    assert f"| imp-v1-3b | {COMMIT} | cpu (" in report
    assert report.count("Tokens equal (100).") == 4
    assert "### camera.jpg: この男は何をしていますか?" in report
    assert report.count("official, 100 tokens, finish length,") == report.count("kit, 100 tokens, finish length,") == 4


@route
@pytest.mark.slow
def test_code_that_does_something_else_is_found_out(verify, tmp_path):
    code = put(tmp_path / "hub") / "modeling_imp.py"
    right, wrong = "hidden_states[self.config.mm_vision_select_layer]", "hidden_states[-1]"
    source = code.read_text("utf-8")
    assert right in source
    code.write_text(source.replace(right, wrong), "utf-8")
    done, report = verify("imp-v1-3b", *CPU, "--revision", f"imp-v1-3b={COMMIT}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "imp-v1-3b: 0 of 4 answers have equal tokens" in done.stdout
    assert report.count("Tokens differ from place ") == 4


@route
@pytest.mark.slow
def test_code_that_ends_its_process_is_told(verify, tmp_path):
    put(tmp_path / "hub", head="import os\n\nos._exit(3)\n")
    done, report = verify("imp-v1-3b", *CPU)
    assert done.returncode == 2
    assert "not compared: official: its process was ended from outside" in report


@pytest.mark.skipif(not REFUSED, reason=f"the route is right with transformers {INSTALLED}")
def test_a_transformers_that_the_route_refuses_is_told(verify, tmp_path):
    put(tmp_path / "hub")
    done, report = verify("imp-v1-3b", *CPU)
    assert done.returncode == 2
    assert f"not compared: official: SettingError: transformers {INSTALLED} is installed" in report


@pytest.mark.slow
def test_what_is_not_there_is_told_for_each_checkpoint(verify):
    done, report = verify(*CPU)
    assert done.returncode == 2
    for name in ("imp-v1-3b", "imp-v1.5-3b-phi2", "imp-v1.5-2b-qwen1.5", "imp-v1.5-4b-phi3", "imp-v1.5-3b-196"):
        assert f"{name}: not compared: no commit: " in done.stdout
        assert f"| {name} | – | – | not compared: no commit: " in report
    assert "the hub cannot be reached" in report


@pytest.mark.slow
def test_a_device_that_is_not_there_is_told(verify, tmp_path):
    put(tmp_path / "hub")
    done, report = verify("imp-v1-3b", "--device", "cuda:99")
    assert done.returncode == 2
    assert REFUSED or "There is no device 'cuda:99' here" in report


@pytest.mark.slow
def test_no_code_runs_without_the_trust_flag(verify, tmp_path):
    marker = tmp_path / "ran"
    put(tmp_path / "hub", head=f"import pathlib\n\npathlib.Path({str(marker)!r}).touch()\n")
    done, report = verify("imp-v1-3b", *CPU, trust=False)
    assert (done.returncode, report) == (2, "")
    assert "--trust-remote-code" in done.stderr
    assert "TRUST_REMOTE_CODE=1" in done.stderr
    assert not marker.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["imp-v2"], "unknown checkpoint 'imp-v2'"),
        (["--revision", "imp-v1-3b=main"], "'imp-v1-3b=main' is not NAME=COMMIT"),
        (["--revision", COMMIT], "is not NAME=COMMIT"),
    ],
)
@pytest.mark.slow
def test_slips_on_the_command_line(verify, arguments, message):
    done, report = verify(*arguments)
    assert (done.returncode, report) == (2, "")
    assert message in done.stderr


def test_the_exit_status_counts_what_was_asked_for():
    compared = Result("imp-v1-3b", COMMIT, Run(), Run())
    too_large = Result("imp-v1.5-4b-phi3", COMMIT, Run(), Run(trouble="kit: needs 9 GB", fits=False))
    missing = Result("imp-v1.5-3b-196", "", Run(trouble="no commit"), Run())
    assert status([compared, too_large], chosen=False) == 0
    assert status([compared, too_large], chosen=True) == 2
    assert status([too_large], chosen=False) == 2
    assert status([compared, missing], chosen=False) == 2


@pytest.mark.parametrize(
    ("theirs", "ours", "place"), [((), (), None), ((1, 2), (1, 2), None), ((1, 2), (1, 3), 1), ((1, 2), (1,), 1)]
)
def test_the_first_token_that_differs(theirs, ours, place):
    assert first_difference(theirs, ours) == first_difference(ours, theirs) == place


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
@pytest.mark.parametrize(
    ("setting", "passed"), [("", False), ("TRUST_REMOTE_CODE=0", False), ("TRUST_REMOTE_CODE=1", True)]
)
def test_make_passes_trust_on_only_if_it_is_set(setting, passed):
    command = ["make", "--dry-run", "verify-real", *setting.split()]
    environment = {name: value for name, value in os.environ.items() if name != "TRUST_REMOTE_CODE"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if "tests/tools/verify_real.py" in line)
    assert ("--trust-remote-code" in line) == passed
