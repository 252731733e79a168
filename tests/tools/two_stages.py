"""What notebook 07 teaches, for several seeds, as Markdown: `python tests/tools/two_stages.py [--seeds N]`.

The seed decides drawings, first weights and the order of examples; imp-nano's exam is the same for all. Takes about ten
minutes of one CPU core a seed.
"""

import argparse
import tempfile
from pathlib import Path

import imp_kit
from imp_kit.lessons.two_stages import new_shape, stages

KITE = new_shape.NewShape("kite", [(0.5, 0), (1, 0.35), (0.5, 1), (0, 0.35)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--size", choices=tuple(stages.SIZES), default="lesson")
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    print("| seed | asked | after stage 1 | after stage 2 |\n| --- | --- | --- | --- |")
    for seed in range(chosen.seeds):
        course = stages.Course(chosen.size, seed)
        course.look()
        course.read()
        course.stage_one()
        course.exam("after stage 1")
        course.stage_two()
        course.exam("after stage 2")
        for about in course.exams["after stage 1"]:
            print(
                f"| {seed} | {about} |", " | ".join(str(exam[about]) for exam in course.exams.values()), "|", flush=True
            )
    print("\n| seed | imp-nano | new shape right | old skills right | named where it is not |\n|" + " --- |" * 5)
    before = new_shape.exam(imp_kit.load("imp-nano"), KITE, chosen.size)
    show("", "before", before)
    for seed in range(chosen.seeds):
        for replay in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "tuned"
                examples = new_shape.lessons(KITE, chosen.size, replay=replay, seed=seed)
                settings = {"rank": 16, "epochs": 2, "learning_rate": new_shape.RATE, "seed": seed}
                imp_kit.finetune("imp-nano", examples, out, **settings)
                exam = new_shape.exam(imp_kit.load(out), KITE, chosen.size)
            show(seed, "with replay" if replay else "new shape alone", exam)


def show(seed: object, name: str, exam: new_shape.Exam) -> None:
    print(f"| {seed} | {name} | {exam.new} | {exam.old} | {exam.confused} |", flush=True)


if __name__ == "__main__":
    main()
