"""python -m imp_kit.nano train | evaluate: how the bundled checkpoint was made and is measured."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from imp_kit.checkpoints.hub import NANO, find
from imp_kit.errors import ImpKitError, SettingError
from imp_kit.imp import load
from imp_kit.nano.training.card import check_target, table, write
from imp_kit.nano.training.evaluation import evaluate
from imp_kit.nano.training.outside import PACKAGES
from imp_kit.nano.training.train import CONFIGS, train
from imp_kit.system.extras import require


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m imp_kit.nano", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    learn = commands.add_parser("train", help="train imp-nano, or go on where a run stopped")
    learn.add_argument("--out", type=Path, required=True, help="folder of the run")
    learn.add_argument("--plan", choices=CONFIGS, default="first", help="further: from the checkpoint of --start")
    learn.add_argument("--samples", type=int, help="pictures to learn from")
    learn.add_argument("--seed", type=int)
    learn.add_argument("--start", help="name or folder of an earlier imp-nano to begin from")
    learn.add_argument("--device", default="cpu")
    measure = commands.add_parser("evaluate", help="score a checkpoint on unseen drawings")
    measure.add_argument("--checkpoint", default=NANO, help="name or folder")
    measure.add_argument("--seed", type=int, default=1)
    measure.add_argument("--samples", type=int, default=500, help="images for each skill, in each wording")
    measure.add_argument("--json", type=Path, help="write the figures here, and a card (README.md) beside them")
    measure.add_argument("--device", default="auto")
    measure.add_argument("--quantize", help="int8: the language model's weights in 8 bits")
    args = parser.parse_args()
    try:
        if args.command == "train":
            require("measure", *PACKAGES, what="Training")
            chosen = {name: getattr(args, name) for name in ("samples", "seed") if getattr(args, name) is not None}
            config = replace(CONFIGS[args.plan], **chosen)
            start = find(args.start).folder if args.start else None
            if args.plan == "further" and start is None and not (args.out / "state.pt").exists():
                raise SettingError("The plan further goes on from a checkpoint: name it after --start.")
            train(args.out, config, device=args.device, start=start)
        else:
            if args.json:
                check_target(args.json)
            # Before the first answer, not after it.
            require("measure", "matplotlib", "scipy", "scikit-image", what="The exam")
            imp = load(args.checkpoint, device=args.device, dtype="fp32", quantize=args.quantize)
            figures = evaluate(imp, args.seed, args.samples)
            print(table(figures))
            if args.json:
                write(figures, args.json)
    except (ImpKitError, OSError) as error:
        print(f"imp-kit: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
