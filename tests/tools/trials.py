"""Which ways to train imp-nano are worth their lines: each learns from equally many pictures, from the same weights.

    python tests/tools/trials.py [--start imp-nano] [--pictures 1440] [--ways "as it is" "AdamW alone" ...]

Every way sees as many pictures as --pictures says, the same ones, at a rate that falls to nothing over them or at their
end. All begin with one new head, which learned alone before. None is steered but the one that is named so, and that
once, before it learns. Then all answer the same questions about the same new pictures; an answer is right if each of
its tokens is the likeliest after the true ones before it. Prints a table as Markdown, with the CPU time that learning
took: the seconds of all cores added up.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from torch import Tensor
from tqdm import tqdm

from imp_kit.checkpoints.hub import NANO_FOLDER
from imp_kit.nano.training import train
from imp_kit.nano.training.train import CONFIGS, Batch, Lessons, Run, TrainConfig, collate, steer

SEED, EXAM_SEED = 100, 101  # of streams that no run has used; the two after them, too
HEAD_PICTURES, HEAD_RATE = 960, 4e-3
EXAM = 320  # pictures
AVERAGING = 0.95  # so few steps are averaged over fewer
WARM_UP = 0.1  # share of the pictures


@dataclass(frozen=True)
class Way:
    """A change of the trainer: of its plan, its optimizers, its constants, or how long its rate falls."""

    config: Callable[[TrainConfig], TrainConfig] = lambda config: config
    prepare: Callable[[Run], None] = lambda run: None
    constants: dict[str, float] = field(default_factory=dict)  # of train.py, while it learns
    averaged: bool = True  # whether the mean of the weights is examined, or the last ones
    decay: float = 1.0  # share of the pictures, at their end, in which the rate falls


def adamw_alone(run: Run) -> None:
    one, two = run.optimizers
    groups = [*one.param_groups, *two.param_groups]
    plain = [{key: group[key] for key in ("params", "weight_decay", "times")} for group in groups]
    run.optimizers = [torch.optim.AdamW(plain, lr=run.config.learning_rate, betas=(0.9, 0.98))]


WAYS = {
    "as it is": Way(),
    "the last weights, not their mean": Way(averaged=False),
    "AdamW alone": Way(prepare=adamw_alone),
    "a rate twice as high": Way(lambda config: replace(config, learning_rate=2 * config.learning_rate)),
    "one conversation about each picture": Way(constants={"BRANCHES": 1, "PAGE_BRANCHES": 1}),
    "no labels of how many are alike": Way(constants={"NUMBERS_WEIGHT": 0.0}),
    "batches of 16": Way(lambda config: replace(config, batch=16)),
    "the rate falls in the last fifth only": Way(decay=0.2),
    "skills that are behind asked about more": Way(lambda config: replace(config, steered=True)),
    "torch's own attention and GELU": Way(prepare=lambda run: setattr(run, "kernels", nullcontext)),
}


def batches(run: Run, seed: int) -> Iterator[Batch]:
    config = replace(run.config, seed=seed)
    lessons = Lessons(config, run.out, range(10**9), run.weights if seed == SEED else {})
    for start in count(0, config.batch):
        yield collate([lessons[index] for index in range(start, start + config.batch)])


def new_run(way: Way, start: Path, folder: Path) -> Run:
    # the head learns in taught_head, so no sample of a trial is for it alone
    plan = replace(CONFIGS["further"], seed=SEED, head_alone=0, steered=False, averaging=AVERAGING)
    run = Run(folder, way.config(plan), torch.device("cpu"), start)
    way.prepare(run)
    return run


def trial(way: Way, start: Path, head: dict[str, Tensor], pictures: int, folder: Path) -> tuple[float, float, float]:
    """Learn from so many pictures, then answer: seconds of the CPU's time, loss of the answers, share of right ones."""
    run = new_run(way, start, folder)
    run.learner.head.load_state_dict(head)
    with run.kernels():
        if run.config.steered:
            _, results = examine(run, EXAM_SEED + 2)
            run.weights = steer(results)
        with patch.dict(vars(train), way.constants):
            seconds = learn(run, pictures, way.decay)
        if way.averaged:
            run.learner.model.load_state_dict(run.mean.module.state_dict())
        loss, results = examine(run, EXAM_SEED)
        marks = [right for rights in results.values() for right in rights]
        return seconds, loss, sum(marks) / len(marks)


def learn(run: Run, pictures: int, decay: float) -> float:
    """Learn, and return the CPU time in seconds, all cores added up; not of drawing, which workers do in a real run."""
    seconds, drawn = 0.0, batches(run, SEED)
    while run.done < pictures:
        batch, share = next(drawn), run.done / pictures
        begun = time.process_time()
        answer_loss, patch_loss, _ = run.losses(batch)
        rate = min(1.0, share / WARM_UP + 0.01, (1.0 - share) / decay)
        run.update(answer_loss + patch_loss, rate * run.config.learning_rate)
        seconds += time.process_time() - begun
        run.done += run.config.batch
    return seconds


def taught_head(start: Path, folder: Path) -> dict[str, Tensor]:
    """What a new head has learned alone; all ways begin with it."""
    run = new_run(WAYS["as it is"], start, folder)
    optimizer = torch.optim.AdamW(run.learner.head.parameters(), lr=HEAD_RATE)
    steps = HEAD_PICTURES // run.config.batch
    rates = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    with run.kernels():
        for _, (pixels, labels, _, _) in zip(range(steps), batches(run, EXAM_SEED + 1), strict=False):
            with torch.autocast("cpu", torch.bfloat16, enabled=run.bf16):
                _, loss = run.learner.encode(pixels, labels, head_alone=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
    return run.learner.head.state_dict()


@torch.inference_mode()
def examine(run: Run, seed: int) -> tuple[float, dict[str, list[bool]]]:
    """The mean loss of the answers about new pictures, and by skill which of them are right."""
    losses, results = [], defaultdict(list)
    for _, batch in zip(range(EXAM // run.config.batch), batches(run, seed), strict=False):
        loss, _, answered = run.losses(batch)
        losses.append(loss)
        for name, right in answered:
            results[name].append(right)
    return float(torch.stack(losses).mean()), results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", type=Path, default=NANO_FOLDER, help="folder of the imp-nano to begin from")
    parser.add_argument("--pictures", type=int, default=1440)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    if args.pictures < 1 or args.pictures % CONFIGS["further"].batch:
        parser.error(f"--pictures is {args.pictures}; give a multiple of {CONFIGS['further'].batch}, the batch's size")
    bf16 = train.bf16_is_faster()
    print(f"learning in {'bf16' if bf16 else 'fp32'}\n")
    with patch.object(train, "bf16_is_faster", lambda: bf16):  # measured once: a busy machine may say otherwise later
        compare(args.ways, args.start, args.pictures)


def compare(ways: list[str], start: Path, pictures: int) -> None:
    with TemporaryDirectory() as folder:
        head = taught_head(start, Path(folder))
    print("| way | CPU seconds | loss of answers | right answers |\n| --- | --- | --- | --- |")
    for name in tqdm(ways):
        with TemporaryDirectory() as folder:
            seconds, loss, right = trial(WAYS[name], start, head, pictures, Path(folder))
        print(f"| {name} | {seconds:.0f} | {loss:.4f} | {right:.1%} |", flush=True)


if __name__ == "__main__":
    main()
