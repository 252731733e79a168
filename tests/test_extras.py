"""Packages that are missing are named all at once, by names that are on an index."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from set_repository import repository

import imp_kit
from imp_kit.experiments import frames, plots, report, scores, stats
from imp_kit.experiments import runs as record
from imp_kit.experiments.captcha import codes as captcha
from imp_kit.experiments.captcha import probe as reading
from imp_kit.experiments.japanese import probe as japanese
from imp_kit.experiments.transformers_matrix import measure as loading
from imp_kit.system.extras import EXTRAS, has, require
from imp_kit.tools import bench

TOP = Path(__file__).parent.parent
TEXTS = [*(TOP / "imp_kit").rglob("*.py"), *(TOP / "notebooks").glob("*.ipynb"), TOP / "README.md"]


def test_the_table_is_that_of_pyproject():
    """But for what the tests install."""
    extras = tomllib.loads((TOP / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    del extras["test"]
    assert {extra: list(packages) for extra, packages in EXTRAS.items()} == extras


def test_modules_are_those_of_the_packages():
    """As the installed packages themselves say it."""
    from importlib.metadata import packages_distributions

    known = packages_distributions()
    found = {
        (package, module) for packages in EXTRAS.values() for package, module in packages.items() if module in known
    }
    assert len(found) > 6
    for package, module in found:
        assert package in map(canonicalize_name, known[module])


def test_all_that_is_missing_is_named_at_once(monkeypatch):
    for module in ("scipy", "skimage", "sacrebleu"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(imp_kit.SettingError) as caught:
        require("measure")
    message = "This needs scipy, scikit-image and sacrebleu: pip install scipy scikit-image sacrebleu."
    assert str(caught.value) == message
    with pytest.raises(imp_kit.SettingError, match="^The exam needs scipy: pip install scipy.$"):
        require("measure", "matplotlib", "scipy", what="The exam")
    require("measure", "matplotlib", "rapidfuzz")
    assert not has("no_such_package_as_this")
    assert not has("scipy")


USES = {
    "a share": (lambda: stats.wilson(1, 2), ["scipy"]),
    "a test": (lambda: stats.mcnemar([True, True], [False, True]), ["scipy"]),
    "a mean": (lambda: stats.bounded_mean([0.5, 0.6], "ab"), ["scipy"]),
    "a bootstrap": (lambda: stats.bootstrap(range(9), range(9)), ["scipy"]),
    "edits": (lambda: scores.edits("a", "b"), ["rapidfuzz"]),
    "a plot": (lambda: plots.chain([], "name"), ["matplotlib"]),
    "a report": (lambda: report.write(["nowhere"]), ["matplotlib", "pandas"]),
    "a table of samples": (lambda: frames.samples_frame("nowhere"), ["pandas"]),
    "a copied caption": (lambda: scores.is_copied("caption", "caption"), ["rapidfuzz"]),
    "chrF": (lambda: scores.chrf(["a"], [["a"]]), ["sacrebleu"]),
    "chrF of each": (lambda: scores.chrf_each(["a"], [["a"]]), ["sacrebleu"]),
    "a code": (lambda: captcha.face.__wrapped__("DejaVuSans.ttf", 20), ["matplotlib"]),
    "a table's picture": (lambda: loading.draw(loading.read_table()), ["matplotlib"]),
    "a result's picture": (lambda: bench.check_files(None, "a.png"), ["matplotlib"]),
    "a score of Japanese": (lambda: japanese.run(None, "smoke", 1, "nowhere"), ["sudachipy", "sudachidict-small"]),
    "a table of published results": (lambda: frames.published_frame("japanese"), ["pandas"]),
    "Japanese text in a picture": (japanese.written_cases, ["matplotlib-fontja"]),
    "the reading probe": (lambda: reading.run(None, "smoke", 1, "nowhere"), ["matplotlib", "rapidfuzz"]),
}


@pytest.mark.parametrize("use", USES)
def test_each_use_of_a_package_names_it(use, monkeypatch):
    call, packages = USES[use]
    modules = {package: module for extra in EXTRAS.values() for package, module in extra.items()}
    for package in packages:
        monkeypatch.setitem(sys.modules, modules[package], None)
    with pytest.raises(imp_kit.SettingError, match=f"needs {' and '.join(packages)}: pip install {' '.join(packages)}"):
        call()


def test_several_processes_name_their_package(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(
        imp_kit.SettingError, match="A run of several processes needs accelerate: pip install accelerate"
    ):
        record._processes()


WITHOUT = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
from imp_kit.tools.cli import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["probe", "captcha", "--checkpoint", "imp-nano", "--device", "cpu", "--size", "smoke", "--out", "nowhere"],
            "The probe with its report needs scipy, matplotlib and rapidfuzz: pip install scipy matplotlib rapidfuzz.",
        ),
        (
            ["report", "nowhere"],
            "A report needs matplotlib, rapidfuzz and scipy: pip install matplotlib rapidfuzz scipy.",
        ),
        (["probe", "loading", "--plot", "a.png"], "The plot needs matplotlib: pip install matplotlib."),
    ],
)
def test_a_command_names_all_at_once_and_before_the_work(arguments, message, tmp_path):
    code = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(TOP)!r})\n{WITHOUT}",
        "matplotlib,rapidfuzz,scipy",
    ]
    ended = subprocess.run([*code, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (ended.returncode, ended.stderr) == (2, f"imp-kit: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_no_text_advises_the_kits_name_with_an_extra():
    """It is on no index, so a stranger could take it; from the repository's address it is the kit's own."""
    ours = f"git+https://github.com/{repository()}"
    advice = re.compile(rf"imp-kit\[[\w,-]+\](?! @ {re.escape(ours)})|pip install ['\"]?imp-kit(?![/\w\[])")
    found = {file.name: advice.findall(file.read_text("utf-8")) for file in TEXTS}
    assert {name: texts for name, texts in found.items() if texts} == {}
    assert advice.search('pip install "imp-kit[measure]"')
    assert advice.search("pip install imp-kit")
    assert not advice.search(f'pip install "imp-kit[measure] @ {ours}"')
    assert not advice.search(f"pip install {ours}")
