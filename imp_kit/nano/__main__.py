"""python -m imp_kit.nano train | evaluate: how the bundled checkpoint was made and is measured."""

import argparse
from pathlib import Path

from imp_kit.nano.train import Plan, train


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m imp_kit.nano", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    learn = commands.add_parser("train", help="train imp-nano, or go on where a run stopped")
    learn.add_argument("--out", type=Path, required=True, help="folder of the run")
    learn.add_argument("--samples", type=int, default=Plan.samples, help="conversations to learn from")
    learn.add_argument("--seed", type=int, default=Plan.seed)
    learn.add_argument("--device", default="cpu")
    args = parser.parse_args()
    train(args.out, Plan(samples=args.samples, seed=args.seed), device=args.device)


if __name__ == "__main__":
    main()
