"""Compare the kit with what is published: the hub's files with its registry, then its answers with the authors' code.

    python tests/tools/verify_real.py --trust-remote-code imp-v1-3b

For whoever has the hub. Its first minute downloads no weights and runs no code: it reads the settings, the tokenizer
and the headers of every checkpoint, tells what differs from the kit's registry, and writes that as JSON to paste into
an issue. Without `--trust-remote-code` it ends there.

The rest is for whoever has a GPU, too. It runs code from the hub: read that code first, and name the commit that you
read with `--revision NAME=COMMIT`. Each route has a process of its own, so that the memory of one is free for the
other. The report is Markdown. Exit status: 0 all answers have equal tokens, 1 all were compared and some differ,
2 something that was asked for could not be compared.
"""

import argparse
import json
import multiprocessing
import platform
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path

from published_files import look, table
from tqdm import tqdm

import imp_kit
from imp_kit.checkpoints.hub import HUB_IDS, cached, hub_errors
from imp_kit.checkpoints.registry import PUBLISHED
from imp_kit.errors import CheckpointError, MemoryLimitError

ROOT = Path(__file__).parents[2]
TASKS = (
    ("bus.png", "What are the colors of the bus in the image?"),
    ("astronaut.jpg", "Describe the person in the image."),
    ("camera.jpg", "この男は何をしていますか?"),  # What is this man doing?
    ("diagram.png", "What text can you see in this image? Please tell me what is written."),
)
PACKAGES = ("imp-kit", "torch", "transformers", "tokenizers", "accelerate", "huggingface_hub")


@dataclass(frozen=True)
class Run:
    """What one route said to each task; without answers, `trouble` tells why."""

    device: str = ""
    load_seconds: float = 0.0
    answers: tuple = ()
    trouble: str = ""
    fits: bool = True


@dataclass(frozen=True)
class Result:
    """Both routes on one checkpoint."""

    name: str
    commit: str
    official: Run
    kit: Run

    @property
    def trouble(self) -> str:
        return self.official.trouble or self.kit.trouble

    @property
    def differences(self) -> list[int | None]:
        """For each task, the place of the first token that differs; None where all are equal."""
        pairs = zip(self.official.answers, self.kit.answers, strict=True)
        return [first_difference(theirs.token_ids, ours.token_ids) for theirs, ours in pairs]


def first_difference(theirs: tuple[int, ...], ours: tuple[int, ...]) -> int | None:
    return next((place for place, (a, b) in enumerate(zip_longest(theirs, ours)) if a != b), None)


def ask(route: str, name: str, commit: str, device: str, dtype: str) -> Run:
    """Load a checkpoint by one route and give it every task. Runs in a process of its own."""
    try:
        import torch

        import imp_kit
        from imp_kit.tools import official

        start = time.perf_counter()
        if route == "official":
            imp = official.load(name, revision=commit, trust_remote_code=True, device=device, dtype=dtype)
        else:
            imp = imp_kit.load(name, revision=commit, device=device, dtype=dtype)
        seconds = time.perf_counter() - start
        answers = tuple(imp.ask(ROOT / "images" / picture, question) for picture, question in TASKS)
        place = torch.device(answers[0].device)
        where = torch.cuda.get_device_name(place) if place.type == "cuda" else platform.processor() or "CPU"
        return Run(f"{answers[0].device} ({where})", seconds, answers)
    except MemoryLimitError as error:
        return Run(trouble=f"{route}: {error}", fits=False)
    except Exception as error:  # also what the code of others raises: it goes into the report
        return Run(trouble=f"{route}: {type(error).__name__}: {error}")


def ask_apart(route: str, *arguments: str) -> Run:
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(ask, route, *arguments).result()
    except BrokenProcessPool:
        return Run(trouble=f"{route}: its process was ended from outside, as happens when memory runs out")


def main_commit(hub_id: str) -> str:
    """The commit of the branch main, on the hub or else in its cache. Raises CheckpointError where neither has one."""
    from huggingface_hub import HfApi

    try:
        with hub_errors(hub_id, None):
            return HfApi().model_info(hub_id, timeout=10).sha
    except CheckpointError:
        if folder := cached(hub_id):
            return folder.name
        raise


def compare(name: str, commit: str | None, device: str, dtype: str) -> Result:
    """Both routes on one checkpoint; the second is not tried where the first has nothing to compare with."""
    try:
        commit = commit or main_commit(HUB_IDS[name])
    except CheckpointError as error:
        return Result(name, "", Run(trouble=f"no commit: {error}"), Run())
    print(f"{name}: running the code of {HUB_IDS[name]} at commit {commit}", flush=True)
    theirs = ask_apart("official", name, commit, device, dtype)
    ours = Run() if theirs.trouble else ask_apart("kit", name, commit, device, dtype)
    return Result(name, commit, theirs, ours)


def comparable(result: Result) -> str:
    """One line on one checkpoint."""
    if result.trouble:
        return f"not compared: {result.trouble.splitlines()[0]}"
    equal = result.differences.count(None)
    return f"{equal} of {len(TASKS)} answers have equal tokens"


def status(results: list[Result], chosen: bool) -> int:
    """The exit status. A checkpoint that does not fit in memory counts only if it was `chosen` by name."""
    wanted = [result for result in results if chosen or (result.official.fits and result.kit.fits)]
    if not wanted or any(result.trouble for result in wanted):
        return 2
    return int(any(place is not None for result in wanted for place in result.differences))


def report(results: list[Result], dtype: str) -> str:
    """The whole comparison as Markdown."""
    lines = ["# The kit beside the code of Imp's authors", "", f"`{' '.join(['python', *sys.argv])}`", ""]
    lines += [f"- Python {platform.python_version()}", *(f"- {package} {installed(package)}" for package in PACKAGES)]
    lines += [f"- {time.strftime('%Y-%m-%d %H:%M:%S %z')}", "", "| checkpoint | commit | device | result |"]
    lines += ["| --- | --- | --- | --- |"]
    for result in results:
        device = f"{result.official.device} {dtype}" if result.official.device else "–"
        lines.append(f"| {result.name} | {result.commit or '–'} | {device} | {comparable(result).replace('|', '/')} |")
    for result in results:
        lines += ["", f"## {result.name}", ""]
        lines += [f"    {line}" for line in result.trouble.splitlines()] if result.trouble else details(result)
    return "\n".join(lines) + "\n"


def details(result: Result) -> list[str]:
    """A checkpoint's load and memory, then each task with both answers."""
    lines = ["| route | load | peak memory |", "| --- | --- | --- |"]
    for route, run in (("official", result.official), ("kit", result.kit)):
        peak = max(answer.peak_memory or 0 for answer in run.answers)
        lines.append(f"| {route} | {run.load_seconds:.1f} s | {f'{peak / 1e9:.2f} GB' if peak else '–'} |")
    pairs = zip(TASKS, result.official.answers, result.kit.answers, result.differences, strict=True)
    for (picture, question), theirs, ours, place in pairs:
        lines += ["", f"### {picture}: {question}", ""]
        if place is None:
            lines.append(f"Tokens equal ({len(ours.token_ids)}).")
        else:
            tokens = [", ".join(map(str, answer.token_ids[place : place + 3])) or "none" for answer in (theirs, ours)]
            lines.append(f"Tokens differ from place {place} on: {tokens[0]} (official), {tokens[1]} (kit).")
        for route, answer in (("official", theirs), ("kit", ours)):
            head = f"{route}, {answer.tokens} tokens, finish {answer.finish}, {answer.seconds.total:.2f} s:"
            lines += ["", head, "", "    " + json.dumps(answer.text, ensure_ascii=False)]
    return lines


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "is not installed"


def named_commit(text: str) -> tuple[str, str]:
    name, _, commit = text.partition("=")
    if name not in HUB_IDS or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=COMMIT, a known name and 40 digits 0-9 and a-f")
    return name, commit


def first_minute(names: list[str], out: Path) -> None:
    """Print what differs from the registry, and write it as JSON."""
    print(
        "Comparing the hub's files with the kit's registry; no weights are downloaded and no code is run.", flush=True
    )
    looks = [look(name) for name in tqdm(names, unit="checkpoint")]
    print(table(looks))
    if all(look.trouble for look in looks):
        print("nothing could be read, so there is nothing to report", flush=True)
        return
    file = out / time.strftime("%Y%m%d-%H%M%S-files.json")
    versions = {"imp-kit": imp_kit.__version__, "huggingface_hub": installed("huggingface_hub")}
    comparable = {"versions": versions, "checkpoints": [asdict(look) for look in looks]}
    file.write_text(json.dumps(comparable, indent=2, ensure_ascii=False) + "\n", "utf-8")
    print(f"to paste into an issue: {file}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = f"{', '.join(HUB_IDS)} (default: all that fit in memory)"
    parser.add_argument("checkpoints", nargs="*", metavar="NAME", help=names)
    parser.add_argument("--revision", action="append", default=[], type=named_commit, metavar="NAME=COMMIT")
    parser.add_argument("--trust-remote-code", action="store_true", help="yes, run the code from the hub")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="fp16", help="fp32, bf16 or fp16 (default: fp16, as on the model card)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "verify_real", help="folder of the report")
    args = parser.parse_args()
    if unknown := [name for name in args.checkpoints if name not in HUB_IDS]:
        parser.error(f"unknown checkpoint {unknown[0]!r}; choose from {', '.join(HUB_IDS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    first_minute(args.checkpoints or list(PUBLISHED), args.out)
    if not args.trust_remote_code:
        parser.error(
            "the rest runs Python code from the hub on your machine. Read it, then pass --trust-remote-code "
            "(with make: make verify-real TRUST_REMOTE_CODE=1)"
        )
    commits = dict(args.revision)
    results = []
    for name in args.checkpoints or HUB_IDS:
        result = compare(name, commits.get(name), args.device, args.dtype)
        print(f"{name}: {comparable(result)}", flush=True)
        results.append(result)
    file = args.out / time.strftime("%Y%m%d-%H%M%S.md")
    file.write_text(report(results, args.dtype), "utf-8")
    print(f"report: {file}")
    return status(results, chosen=bool(args.checkpoints))


if __name__ == "__main__":
    raise SystemExit(main())
