"""The tests and the notebooks on several stacks of packages, side by side: `python tests/tools/matrix.py PYTHON...`

Each argument is the Python of a virtual environment (`make matrix` sets up two). Nothing is downloaded.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "transformers", "huggingface_hub", "tokenizers", "numpy", "pillow")
VERSIONS = f"""
import json, platform
from importlib.metadata import version
print(json.dumps({{"python": platform.python_version(), **{{name: version(name) for name in {PACKAGES!r}}}}}))
"""


def versions(python: str) -> dict[str, str]:
    """The version of Python and of each of PACKAGES in an environment."""
    return json.loads(subprocess.run([python, "-c", VERSIONS], stdout=subprocess.PIPE, text=True, check=True).stdout)


def run_suite(python: str) -> tuple[int, str, dict[str, float]]:
    """Run all tests, showing them as they go; return pytest's exit status, its last line, each notebook's seconds.

    A notebook is a case of `test_outputs`, which runs it and does its exercises.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [python, "-m", "pytest", f"--junitxml={report}"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        with subprocess.Popen(
            [*command, "tests"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        ) as suite:
            last = ""
            for last in suite.stdout:
                print(last, end="", flush=True)
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    found = [(re.fullmatch(r"test_outputs\[(.*)\]", case.get("name")), case) for case in cases]
    seconds = {name[1]: float(case.get("time")) for name, case in found if name}
    return suite.returncode, last.strip("= \n"), seconds


def main(pythons: list[str]) -> int:
    """Print a column for each stack, as Markdown; return 1 where something failed or no notebook was run."""
    stacks = []
    for python in pythons:
        stack = {"": python, **versions(python)}
        print(", ".join(f"{name} {value}".strip() for name, value in stack.items()), flush=True)
        status, closing, seconds = run_suite(python)
        stack |= {name: f"{value / 60:.1f} minutes" for name, value in sorted(seconds.items())}
        stacks.append({**stack, "pytest": closing, "all passed": "yes" if status == 0 and seconds else "NO"})
    rows = list(dict.fromkeys(name for stack in stacks for name in stack))
    print()
    for number, name in enumerate(rows):
        print(f"| {name} |", " | ".join(stack.get(name, "-") for stack in stacks), "|")
        if number == 0:
            print("| --- " * (len(stacks) + 1) + "|")
    return int(any(stack["all passed"] == "NO" for stack in stacks))


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
