"""Everything that only a GPU can show, in one go, and one report of it: `make gpu`, or

    python tests/tools/gpu.py [PART ...] [--without PART ...] [--device cpu] [--minutes N] [--out FOLDER]

on the first GPU that CUDA_VISIBLE_DEVICES leaves. The parts are environment, tests, notebooks, loading, benchmark and
steps; all of them unless some are named. A part has its share of the time in all (20 minutes; 8 on a GPU from compute
capability 9.0 on, such as an H100) and what the parts before it left; what is not done by then is stopped, and the next
part goes on, as it does after a failure. A new folder (runs/gpu/DATE) gets report.md, report.json, report.xml (JUnit),
and what each command wrote. Nothing is downloaded.

Without a GPU it says what it would do, and does nothing; `--device cpu` rehearses it with imp-nano and one notebook.
The exit status is 1 where something failed or was stopped.
"""

import argparse
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import torch
from first_cell import NOTEBOOKS
from notebook_outputs import with_size

from imp_kit.device import choose_device
from imp_kit.errors import SettingError
from imp_kit.tools.bench import has_static_cache

ROOT = Path(__file__).parents[2]
TOOLS = Path(__file__).parent
LARGE = "imp-v1-3b"
SHARES = {"environment": 0.03, "tests": 0.15, "notebooks": 0.35, "loading": 0.07, "benchmark": 0.28, "steps": 0.12}
PACKAGES = ("torch", "transformers", "accelerate", "numpy", "nbmake")
CPUS_FOR_A_NOTEBOOK = 4  # notebooks run side by side where there are so many for each
GIB = 2**30


@dataclass(frozen=True)
class Job:
    """A command of a part; `output` is where its stdout goes, else into the log. `left_out`: why it is not run."""

    part: str
    name: str
    command: list[str]
    output: Path | None = None
    left_out: str = ""


@dataclass
class Outcome:
    """What became of a job: "passed", "failed", "stopped" at its limit, or "left out" for a reason."""

    part: str
    name: str
    state: str
    seconds: float = 0.0
    detail: str = ""
    command: list[str] = field(default_factory=list)


def gpu_tests() -> list[str]:
    """The files with tests of CUDA; to collect all files would take a minute."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if "pytest.mark.gpu" in file.read_text("utf-8")]


def plan(gpu: bool, out: Path, bf16: bool = True) -> list[Job]:
    """All commands for a GPU, with or without bf16, or for a rehearsal on the CPU; in their order."""
    python, device = sys.executable, "cuda" if gpu else "cpu"
    pytest = [python, "-m", "pytest", "-p", "no:cacheprovider"]
    jobs = [
        Job("environment", "doctor", [python, "-m", "imp_kit", "doctor"]),
        Job("tests", "CUDA", [*pytest, "-m", "gpu", f"--junitxml={out / 'tests.xml'}", *gpu_tests()]),
    ]
    notebooks = sorted(NOTEBOOKS.glob("*.ipynb")) if gpu else [NOTEBOOKS / "06_contrastive.ipynb"]
    for notebook in notebooks:
        copy = out / "notebooks" / notebook.name
        junit = f"--junitxml={out / 'notebooks' / notebook.stem}.xml"
        jobs.append(Job("notebooks", notebook.stem, [*pytest, "--nbmake", "--nbmake-timeout=1800", junit, str(copy)]))
    load = [python, str(TOOLS / "full_size.py"), "--folder", str(out / "sparse"), "--device", device]
    load += [LARGE, "--sparse", "--dtype", "fp16"] if gpu else ["--plot", str(out / "loading.png")]
    jobs.append(Job("loading", LARGE if gpu else "imp-nano", load, out / "loading.json"))
    bench = [python, "-m", "imp_kit", "bench", "--device", device]
    if gpu:
        bench += ["--random", LARGE, "--repeats", "3"]
        runs = {
            "fp16": ["--dtype", "fp16", "--against", "transformers"],
            "fp16, static": ["--dtype", "fp16", "--against", "transformers-static"],
            "fp16, int8": ["--dtype", "fp16", "--quantize", "int8"],
            "bf16": ["--dtype", "bf16"],
        }
    else:
        bench += ["--checkpoint", "imp-nano", "--repeats", "1"]
        runs = {"fp32": ["--against", "transformers"]}
    left_out = {"bf16": "" if bf16 else "this GPU only emulates bf16"}
    if not has_static_cache():
        left_out["fp16, static"] = f"transformers {metadata.version('transformers')} compiles no steps"
    for name, options in runs.items():
        written = out / f"bench-{name.replace(', ', '-')}.json"
        jobs.append(Job("benchmark", name, [*bench, *options, "--json", str(written)], left_out=left_out.get(name, "")))
    for way in ("captured", "compiled") if gpu else ("captured",):
        steps = [python, str(TOOLS / "steps.py"), "--device", device, "--json", str(out / f"steps-{way}.json")]
        steps += ["--ways", "plain", way] + (["--random", LARGE, "--dtype", "fp16"] if gpu else [])
        jobs.append(Job("steps", f"plain, {way}", steps))
    return jobs


def copy_notebooks(jobs: list[Job], size: str | None) -> None:
    """Each notebook into the folder where it is run, in `size` where it has sizes."""
    for job in jobs:
        if job.part == "notebooks":
            copy = Path(job.command[-1])
            copy.parent.mkdir(parents=True, exist_ok=True)
            notebook = nbformat.read(NOTEBOOKS / copy.name, as_version=4)
            if size:
                with_size(notebook, size)
            nbformat.write(notebook, copy)


def execute(job: Job, out: Path, end: float, environment: dict[str, str], running: set[subprocess.Popen]) -> Outcome:
    """Run a job until `end`, a time of time.monotonic; its output goes into a log of its own."""
    if job.left_out:
        return Outcome(job.part, job.name, "left out", detail=job.left_out, command=job.command)
    log = out / f"{job.part}-{re.sub(r'[^a-z0-9_]+', '-', job.name.lower())}.log"
    begun = time.monotonic()
    with log.open("wb") as errors, job.output.open("wb") if job.output else nullcontext(errors) as output:
        child = subprocess.Popen(
            job.command, cwd=ROOT, env=environment, stdout=output, stderr=errors, start_new_session=True
        )
        running.add(child)
        try:
            status = child.wait(max(0.0, end - begun))
            state, detail = ("passed", "") if status == 0 else ("failed", f"exit status {status}; see {log.name}")
        except subprocess.TimeoutExpired:
            kill(child)
            state, detail = "stopped", f"not done after {max(0.0, end - begun):.0f} s; see {log.name}"
        running.discard(child)
    return Outcome(job.part, job.name, state, round(time.monotonic() - begun, 1), detail, job.command)


def kill(child: subprocess.Popen) -> None:
    """End a command and what it started, such as a notebook's kernel."""
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def run(jobs: list[Job], out: Path, minutes: float, environment: dict[str, str]) -> list[Outcome]:
    """All jobs, part by part; each part may take its share of the time and what those before it left."""
    parts = list(dict.fromkeys(job.part for job in jobs))
    end, shares = time.monotonic() + 60 * minutes, sum(SHARES[part] for part in parts)
    outcomes: list[Outcome] = []
    running: set[subprocess.Popen] = set()
    for number, part in enumerate(parts):
        later = sum(SHARES[other] for other in parts[number + 1 :]) / shares * 60 * minutes
        workers = max(1, (os.cpu_count() or 1) // CPUS_FOR_A_NOTEBOOK) if part == "notebooks" else 1
        print(f"{part} ...", flush=True)
        with ThreadPoolExecutor(workers) as pool:
            work = partial(execute, out=out, end=end - later, environment=environment, running=running)
            try:
                for outcome in pool.map(work, [job for job in jobs if job.part == part]):
                    print(f"  {outcome.name}: {outcome.state}, {outcome.seconds:.0f} s {outcome.detail}", flush=True)
                    outcomes.append(outcome)
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                for child in list(running):
                    kill(child)
                return [*outcomes, Outcome(part, "all", "stopped", detail="interrupted")]
    return outcomes


# The report ------------------------------------------------------------------------------------------------------


def read(file: Path) -> dict:
    """What a command wrote as JSON; {} where it did not come so far."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


@dataclass(frozen=True)
class Goal:
    """A goal, from `low` to `high`, and what was measured of it; None where nothing was."""

    what: str
    goal: str
    value: float | None
    unit: str
    low: float = 0.0
    high: float = float("inf")

    def row(self) -> dict:
        """As it stands in the report."""
        reached = None if self.value is None else self.low <= self.value <= self.high
        return {"what": self.what, "goal": self.goal, "value": self.value, "unit": self.unit, "reached": reached}


def goals(out: Path) -> list[Goal]:
    """What the commands measured, beside the goals."""
    bench, static = (read(out / f"bench-fp16{kind}.json") for kind in ("", "-static"))
    share = peak = None
    if bench:
        decode, copy = bench["figures"]["decode 1"], bench["limits"]["bandwidths"]["copy"]["median"]
        share = 100 * decode["work"][0][1] / decode["seconds"]["median"] / copy
        peak = bench["memory"]["gpu_peak_bytes"] / GIB
    eager, compiled = (each["against"]["decode 1"]["ratio"]["median"] if each else None for each in (bench, static))
    loads = [load["peak_bytes"] / GIB for load in read(out / "loading.json").get(LARGE, [])]
    start = read(out / "steps-captured.json").get("ways", {}).get("captured", {}).get("start_seconds")
    return [
        Goal("bytes of decoding, of those of a copy in the same time", "80 % or more", share, "%", low=80),
        Goal("tokens, against transformers", "10 times as many", eager, "times", low=10),
        Goal("tokens, against its static cache with compiled steps", "as many", compiled, "times", low=1),
        Goal("GPU memory of a long answer in fp16", "7.0 GiB at most", peak, "GiB", high=7.0),
        Goal("memory of the host while loading", "1.5 GiB at most", max(loads, default=None), "GiB", high=1.5),
        Goal("start of the captured step", "2 s at most", start, "s", high=2.0),
    ]


def cases(out: Path) -> list[ElementTree.Element]:
    """The test cases of all JUnit files that pytest wrote."""
    files = [out / "tests.xml", *sorted((out / "notebooks").glob("*.xml"))]
    return [case for file in files if file.exists() for case in ElementTree.parse(file).iter("testcase")]


def junit(outcomes: list[Outcome], found: list[ElementTree.Element]) -> ElementTree.Element:
    """A case for each command, and those that pytest wrote."""
    suite = ElementTree.Element("testsuite", name="gpu")
    for outcome in outcomes:
        case = ElementTree.SubElement(
            suite, "testcase", classname=outcome.part, name=outcome.name, time=str(outcome.seconds)
        )
        if outcome.state == "left out":
            ElementTree.SubElement(case, "skipped", message=outcome.detail)
        elif outcome.state != "passed":
            ElementTree.SubElement(case, "failure", message=f"{outcome.state}: {outcome.detail}")
    suite.extend(found)
    kinds = {tag: sum(case.find(tag) is not None for case in suite) for tag in ("failure", "error", "skipped")}
    suite.set("tests", str(len(suite)))
    for tag, name in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(name, str(kinds[tag]))
    return suite


def machine(gpu: bool) -> dict:
    """The card and the versions that stand beside every figure."""
    versions = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count() if gpu else 0)]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "GPUs": [f"{card.name}, {card.total_memory / GIB:.1f} GiB, {card.major}.{card.minor}" for card in cards],
        "CUDA of torch": torch.version.cuda,
        "CPUs": os.cpu_count(),
        "versions": versions,
    }


def markdown(result: dict, out: Path) -> str:
    """The report: the machine, the parts, goals beside what was measured, and what the commands printed."""
    about = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    where = "; ".join(about["GPUs"]) or "no GPU: a rehearsal on the CPU, whose figures say nothing of a GPU"
    lines = ["# On a GPU", "", f"{about['date']}, {where}; {about['CPUs']} CPUs; {versions}.", ""]
    lines += ["| part | what | outcome | seconds | |", "| --- | --- | --- | --- | --- |"]
    for each in result["outcomes"]:
        lines.append(f"| {each['part']} | {each['name']} | {each['state']} | {each['seconds']} | {each['detail']} |")
    counts = result["cases"]
    lines += ["", f"{counts['tests']} test cases: {counts['failed']} failed, {counts['skipped']} skipped.", ""]
    lines += ["| measured | goal | here | reached |", "| --- | --- | --- | --- |"]
    for row in result["goals"]:
        value = "not measured" if row["value"] is None else f"{row['value']:.3g} {row['unit']}"
        verdict = {None: "", True: "yes", False: "**no**"}[row["reached"]]
        lines.append(f"| {row['what']} | {row['goal']} | {value} | {verdict} |")
    for log in sorted(out.glob("*.log")):
        if log.name.startswith(("environment", "benchmark", "steps")):
            text = re.sub(r"[^\n]*\r", "", log.read_bytes().decode("utf-8", "replace")).strip()
            shown = text if "\n| " in text else f"```\n{text}\n```"
            lines += ["", f"## {log.stem}", "", shown]
    return "\n".join(lines) + "\n"


def write_report(outcomes: list[Outcome], gpu: bool, out: Path) -> dict:
    """report.json, report.md and report.xml."""
    found = cases(out)
    failed = [case for case in found if case.find("failure") is not None or case.find("error") is not None]
    result = {
        "machine": machine(gpu),
        "outcomes": [asdict(outcome) for outcome in outcomes],
        "cases": {
            "tests": len(found),
            "failed": len(failed),
            "skipped": sum(case.find("skipped") is not None for case in found),
        },
        "goals": [goal.row() for goal in goals(out)],
    }
    (out / "report.json").write_text(json.dumps(result, indent=2), "utf-8")
    (out / "report.md").write_text(markdown(result, out), "utf-8")
    ElementTree.ElementTree(junit(outcomes, found)).write(out / "report.xml", encoding="utf-8", xml_declaration=True)
    return result


def describe(jobs: list[Job], minutes: float) -> str:
    """What would be run, as text."""
    shares = sum(SHARES[part] for part in {job.part for job in jobs})
    lines = [f"In {minutes:g} minutes at most it would run:"]
    for part in dict.fromkeys(job.part for job in jobs):
        lines.append(f"{part} ({60 * minutes * SHARES[part] / shares:.0f} s, and what is left of the time before):")
        for job in jobs:
            if job.part == part:
                command = shlex.join(job.command).replace(f"{ROOT}/", "")
                lines.append(f"  {command}{f'  (left out: {job.left_out})' if job.left_out else ''}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(SHARES)} (default: all)")
    parser.add_argument("--without", nargs="+", metavar="PART", default=[], help="leave these out")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal")
    parser.add_argument("--minutes", type=float, help="for all (default: 20; 8 on an H100)")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu" / now, metavar="FOLDER", help="a new one")
    options = parser.parse_args(arguments)
    if unknown := [part for part in (*options.parts, *options.without) if part not in SHARES]:
        parser.error(f"there is no part {unknown[0]!r}; choose from {', '.join(SHARES)}")
    if options.minutes is not None and not 0 < options.minutes < float("inf"):
        parser.error(f"--minutes is {options.minutes:g}; give a number above 0")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        parser.error(f"{options.out} is there already; its figures would be taken for new ones")
    chosen = [part for part in options.parts or SHARES if part not in options.without]
    if not chosen:
        parser.error("every part is left out")
    gpu, capability = options.device == "cuda", (8, 0)
    problem = None
    if gpu:
        try:
            capability = torch.cuda.get_device_capability(choose_device("cuda"))
        except SettingError as error:
            problem = str(error)
    minutes = options.minutes or (8 if capability >= (9, 0) and gpu else 20)
    out = options.out.absolute()
    jobs = [job for job in plan(gpu, out, capability >= (8, 0)) if job.part in chosen]
    if problem is not None:
        print(f"{problem} Nothing is run. {describe(jobs, minutes)}")
        print("To rehearse it on the CPU, with imp-nano and one notebook: python tests/tools/gpu.py --device cpu")
        return 0
    out.mkdir(parents=True, exist_ok=True)
    copy_notebooks(jobs, None if gpu else "smoke")
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
    if not gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    outcomes = run(jobs, out, minutes, environment)
    outcomes += [Outcome(part, "all", "left out", detail="not asked for") for part in SHARES if part not in chosen]
    write_report(outcomes, gpu, out)
    print(f"\nThe report: {out / 'report.md'}")
    return int(any(outcome.state in ("failed", "stopped") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
