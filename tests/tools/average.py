"""The mean of two imp-nanos' weights, as a checkpoint (model soups, M. Wortsman and others, arXiv:2203.05482).

    python tests/tools/average.py FOLDER FOLDER --out FOLDER

The second one's run began from the first one, so both lie close together. Where the first has fewer layers in its
vision tower, it is made deeper as for a run.
"""

import argparse
from pathlib import Path
from shutil import copyfile

import torch

from imp_kit.checkpoints.tokenizer import TextTokenizer
from imp_kit.errors import ImpKitError, SettingError
from imp_kit.nano.training.train import init_from, new_model, save_checkpoint


def average(folders: list[Path], out: Path) -> None:
    """Write the mean into the folder `out`. Raises SettingError where it is a source, or one has no imp-nano."""
    if out.resolve() in {folder.resolve() for folder in folders}:
        raise SettingError(f"--out is {out}, which is one of the two folders; choose another one.")
    models = [new_model(0) for _ in folders]
    for folder, model in zip(folders, models, strict=True):
        init_from(folder, model)
    mean = new_model(0)
    with torch.no_grad():
        for parameter, *given in zip(*(model.parameters() for model in (mean, *models)), strict=True):
            parameter.copy_(torch.stack(given).mean(dim=0))
    out.mkdir(parents=True, exist_ok=True)
    copyfile(folders[-1] / "tokenizer.json", out / "tokenizer.json")
    save_checkpoint(mean, TextTokenizer(out), out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs=2, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        average(args.folders, args.out)
    except ImpKitError as error:
        raise SystemExit(f"imp-kit: {error}") from None
