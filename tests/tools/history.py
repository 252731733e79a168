"""imp-nano's exam after its runs, from the third on, from the repository's history: a table, and a picture.

    python tests/tools/history.py --plot images/imp_nano_runs.png

The runs and their commits are those of the table in docs/imp_nano.md; the last result is the checkpoint in this clone.
"""

import argparse
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from imp_kit.nano.training.lessons import SKILLS

ROOT = Path(__file__).resolve().parents[2]
STORY = ROOT / "docs/imp_nano.md"
FIGURES = "imp_kit/nano/checkpoint/evaluation.json"
FIRST = 3  # the first run whose exam is similar to today's
AIM, LOWER_AIM, LOWER = 0.97, 0.95, ("describe", "read", "line")  # share of right answers, and which skills have less


class HistoryError(Exception):
    """A result that the history does not hold."""


@dataclass(frozen=True)
class Run:
    """A run of the table: its number, its pictures, and the commit of its result: "" is this folder, None is none."""

    number: int
    pictures: int
    commit: str | None


def runs(story: str) -> list[Run]:
    """The runs that the page's first table lists."""
    found = []
    for number, pictures, *_, result in re.findall(
        r"^\| (\d+) \| ([\d,]+)[^|]*\|([^|]*)\|([^|]*)\| ([^|]*) \|$", story, re.M
    ):
        commit = re.search(r"\b[0-9a-f]{7}\b", result)
        here = "comes with the kit" in result
        found.append(Run(int(number), int(pictures.replace(",", "")), "" if here else commit and commit[0]))
    return found


def skills_after(run: Run) -> dict:
    """What a run's exam found, by skill. Raises HistoryError where the history lacks it."""
    if not run.commit:
        return json.loads((ROOT / FIGURES).read_text("utf-8"))["skills"]
    try:
        shown = subprocess.run(["git", "show", f"{run.commit}:{FIGURES}"], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        raise HistoryError("git is not installed, and the results lie in the repository's history.") from None
    if shown.returncode:
        raise HistoryError(f"{run.commit} has no {FIGURES}: is this a whole clone? ({shown.stderr.strip()})")
    return json.loads(shown.stdout)["skills"]


def table(results: dict[int, dict]) -> str:
    """Markdown: percent of right answers by skill and run, in trained and unseen wordings, and the overlap of boxes."""

    def both(entry: dict, form: str, key: str, times: float) -> str:
        return " / ".join(format(times * entry[wording][key], form) for wording in ("trained", "unseen"))

    lines = [f"| skill | {' | '.join(map(str, results))} |", f"| --- |{' --- |' * len(results)}"]
    for skill in SKILLS:
        cells = (both(skills[skill], ".1f", "share", 100) for skills in results.values())
        lines.append(f"| {skill.replace('_', ' ')} | {' | '.join(cells)} |")
    cells = (both(skills["locate"], ".2f", "mean_overlap", 1) for skills in results.values())
    return "\n".join([*lines, f"| mean overlap of boxes | {' | '.join(cells)} |"])


def plot(pictures: dict[int, int], results: dict[int, dict], target: Path) -> None:
    """Draw the shares against all pictures up to each run as a PNG, a panel for each skill."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), dpi=80, layout="constrained")
    across = 5
    panels = figure.subplots(-(-len(SKILLS) // across), across, sharex=True, sharey=True).flatten().tolist()
    shown = [pictures[number] / 1000 for number in results]
    for axes, skill in zip(panels, SKILLS, strict=False):
        for wording, style in (("trained", "o-"), ("unseen", "s--")):
            shares = [skills[skill][wording]["share"] for skills in results.values()]
            axes.plot(shown, shares, style, markersize=3, linewidth=1.2, label=f"{wording} wordings")
        axes.axhline(LOWER_AIM if skill in LOWER else AIM, color="black", linewidth=0.8, linestyle=":", label="aim")
        axes.set_title(skill.replace("_", " "), fontsize=10)
        axes.grid(alpha=0.3)
    for axes in panels[len(SKILLS) :]:
        axes.set_axis_off()
    panels[0].set_ylim(top=1.01)
    panels[-1].legend(*panels[0].get_legend_handles_labels(), loc="center")
    figure.supxlabel("pictures in all runs up to then, thousands")
    figure.supylabel("share of right answers in the exam")
    figure.savefig(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="draw the picture there")
    args = parser.parse_args()
    listed = runs(STORY.read_text("utf-8"))
    pictures = {run.number: sum(each.pictures for each in listed if each.number <= run.number) for run in listed}
    try:
        results = {run.number: skills_after(run) for run in listed if run.commit is not None and run.number >= FIRST}
    except HistoryError as error:
        raise SystemExit(f"imp-kit: {error}") from None
    print(table(results))
    if args.plot:
        try:
            plot(pictures, results, args.plot)
        except OSError as error:
            raise SystemExit(f"imp-kit: --plot {args.plot} cannot be written ({error.strerror})") from None


if __name__ == "__main__":
    main()
