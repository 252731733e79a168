"""From a checkpoint and examples to a new checkpoint in a folder of its own."""

import gc
import json
import os
import shutil
import traceback
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from imp_kit import __version__
from imp_kit.checkpoints.files import check_space, readable
from imp_kit.checkpoints.hub import HUB_IDS, NANO, find
from imp_kit.checkpoints.load import check_tokenizer, fill
from imp_kit.checkpoints.plan import LoadPlan, plan_folder
from imp_kit.checkpoints.tokenizer import TextTokenizer
from imp_kit.device import LONG_DTYPES, choose_device, choose_dtype
from imp_kit.errors import RunError, SettingError, Stopped
from imp_kit.finetuning.adapters import TARGETS, add_adapters, collect_adapters, write_merged
from imp_kit.finetuning.examples import Example, ImageFeatures, encode_example, opening_ids, read_examples
from imp_kit.finetuning.training import train
from imp_kit.model.memory import out_of_memory_errors, trim_heap
from imp_kit.system.extras import require

LARGEST_RANK = 4096
LARGEST_FACTOR = 1e30  # alpha or learning rate: far beyond use; above 1e38 fp32 has no numbers


def finetune(
    checkpoint: str | os.PathLike,
    examples: str | os.PathLike | Iterable[tuple[Any, str, str]],
    out: str | os.PathLike,
    *,
    rank: int = 16,
    alpha: float | None = None,
    epochs: int = 1,
    learning_rate: float = 2e-4,
    batch_size: int = 8,
    targets: str | Collection[str] | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Teach a checkpoint's language model new answers with LoRA; return the new folder, which `load` loads.

    `examples` is a CSV file with the columns image, question and answer (an image's path is relative to the file's
    folder), or a list of (image, question, answer). `out` is a new folder: it gets the checkpoint's files, in which
    what was learned is merged into the weights (rounded to the dtype of the files), log.csv with the loss of each
    step, and finetune.json, which says how it was made.

    Adapters of `rank`, times `alpha` / `rank` (`alpha` None: 1), are put beside the linear layers that `targets` names
    in each block: of "qkv", "out", "up" and "down", by default all. All other weights stay as they are; they are
    computed in `dtype`, "auto" being bf16 or fp16 on a GPU and fp32 on a CPU, and the adapters in fp32. The learning
    rate rises in the first 3 % of the steps and then falls to 0. `seed` decides the adapters' first values and the
    order of the examples.

    A run that fails or is interrupted leaves nothing in `out`; one that is killed leaves a folder beside it, whose name
    ends in ".unfinished" and which may be removed. Needs the package peft. Raises SettingError,
    CheckpointError, ImageError, PromptError, MemoryLimitError, or RunError where the training diverges; Ctrl-C raises
    `imp_kit.errors.Stopped`, a KeyboardInterrupt.
    """
    check_peft()
    settings = check_settings(rank, alpha, epochs, learning_rate, batch_size, targets, seed)
    target = check_out(out)
    try:
        _make(checkpoint, examples, target, settings, device, dtype, progress)
    except BaseException as error:
        _free_frames(error)
        if isinstance(error, KeyboardInterrupt):
            raise Stopped(f"nothing was written to {target}, so it begins anew") from None
        if isinstance(error, OSError):
            raise RunError(f"The new checkpoint could not be written ({error}); nothing was left of it.") from error
        raise
    finally:
        gc.collect()  # what refers to itself, as recomputed blocks do, keeps its memory until Python looks for it
    return target


def _free_frames(error: BaseException | None) -> None:
    """Empty the frames that an error refers to: a notebook keeps its last error, and with it a whole model's memory."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _make(
    checkpoint: str | os.PathLike,
    examples: str | os.PathLike | Iterable[tuple[Any, str, str]],
    target: Path,
    settings: dict[str, Any],
    device: str | torch.device,
    dtype: str | torch.dtype,
    progress: bool,
) -> None:
    """Train and write the new checkpoint's folder."""
    found = read_examples(examples)
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device) or torch.float32
    snapshot = find(checkpoint)
    if Path(os.path.realpath(target)).is_relative_to(os.path.realpath(snapshot.folder)):
        raise SettingError(f"out is {str(target)!r}, inside the checkpoint's own folder; choose one elsewhere.")
    plan = plan_folder(snapshot.folder)
    size = sum(os.path.getsize(file) for file in {info.file for info in plan.found.values()})
    check_space(target, size, "the new checkpoint")
    with unfinished(target) as folder:
        _tune(snapshot.folder, plan, found, folder, settings, chosen_device, chosen_dtype, progress)
        record = {
            "base": snapshot.name,
            "revision": snapshot.revision,
            "files": snapshot.digest(),
            "examples": len(found),
            **settings,
            "dtype": LONG_DTYPES[str(chosen_dtype).removeprefix("torch.")],
            "device": chosen_device.type,
            "imp_kit": __version__,
        }
        (folder / "finetune.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")


def _tune(
    source: Path,
    plan: LoadPlan,
    found: Sequence[Example],
    folder: Path,
    settings: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    progress: bool,
) -> None:
    """Train, and write the new checkpoint's files, made from those in `source`, and log.csv into `folder`."""
    tokenizer, family = TextTokenizer(source), plan.model.config.family
    check_tokenizer(tokenizer, plan)
    rows = [encode_example(example, plan.model.config, tokenizer) for example in found]
    trim_heap()
    advice = "choose a smaller batch_size, a smaller checkpoint or dtype='fp16'"
    with out_of_memory_errors(f"Fine-tuning with batches of {settings['batch_size']}", advice):
        model = fill(plan, device, dtype)
        features = ImageFeatures(model)
        images = {example.key: example for example in found}
        for example in tqdm(images.values(), unit="image", desc="images", disable=not progress):
            features.prepare(example)
        trained = add_adapters(model, *(settings[name] for name in ("rank", "alpha", "targets", "seed")))
        schedule = {name: settings[name] for name in ("epochs", "learning_rate", "batch_size", "seed")}
        opening = opening_ids(tokenizer, family)
        train(model, trained, opening, rows, features, folder / "log.csv", **schedule, progress=progress)
    write_merged(plan, source, collect_adapters(model), folder, progress)


def check_peft() -> None:
    """Raise SettingError where peft is missing, or does not go with the transformers that is here."""
    require("finetune", what="Fine-tuning")
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise SettingError(
            f"Fine-tuning needs peft, and the one here cannot be imported ({error}). Versions of peft and transformers "
            "may not fit each other: with transformers 4.37 pip install 'peft<0.14', else the newest of both."
        ) from error


def check_settings(
    rank: Any, alpha: Any, epochs: Any, learning_rate: Any, batch_size: Any, targets: Any, seed: Any
) -> dict[str, Any]:
    """The settings of a run as it uses them. Raises SettingError for the first that makes no sense."""
    whole = {"rank": (rank, LARGEST_RANK), "epochs": (epochs, 10_000), "batch_size": (batch_size, 100_000)}
    for name, (value, largest) in whole.items():
        if not _is_whole(value) or not 1 <= value <= largest:
            raise SettingError(f"{name} is {value!r:.80}; give a whole number from 1 to {largest}.")
    if not _is_whole(seed) or not 0 <= seed < 2**63:
        raise SettingError(f"seed is {seed!r:.80}; give a whole number from 0.")
    alpha = rank if alpha is None else alpha
    for name, value in (("alpha", alpha), ("learning_rate", learning_rate)):
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number or not 0 < value <= LARGEST_FACTOR:
            raise SettingError(f"{name} is {value!r:.80}; give a number above 0, at most {LARGEST_FACTOR:g}.")
    names = [targets] if isinstance(targets, str) else list(TARGETS if targets is None else _items(targets))
    if not names or not all(isinstance(name, str) and name in TARGETS for name in names):
        raise SettingError(f"targets is {targets!r:.80}; give one or more of {', '.join(map(repr, TARGETS))}.")
    return {
        "rank": int(rank),
        "alpha": float(alpha),
        "epochs": int(epochs),
        "learning_rate": float(learning_rate),
        "batch_size": int(batch_size),
        "targets": [name for name in TARGETS if name in names],
        "seed": int(seed),
    }


def _items(values: Any) -> Iterable:
    return values if isinstance(values, Iterable) else [values]


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_out(out: Any) -> Path:
    """The folder that is to be made. Raises SettingError where it cannot be a new checkpoint's."""
    if not isinstance(out, (str, os.PathLike)) or not str(out).strip() or "\0" in str(out):
        raise SettingError(f"out is {out!r:.80}; give the path of a new folder.")
    target = Path(os.path.abspath(os.path.expanduser(os.fsdecode(out))))
    if readable(str(target)) != str(target):
        raise SettingError(f"out is {str(target)!r}, with bytes that are no UTF-8; choose another name.")
    if os.path.lexists(target):
        raise SettingError(f"out is {str(out)!r}, which is there already; choose a new folder, or remove it first.")
    if target.name.lower() in (NANO, *HUB_IDS):
        raise SettingError(f"out is {str(out)!r}, named as a published checkpoint; choose a name of its own.")
    return target


@contextmanager
def unfinished(target: Path) -> Iterator[Path]:
    """A folder beside `target` that gets its name at the end; it is removed where that is not reached."""
    folder = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.unfinished"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        reason = f"no folder can be made there ({error.strerror})"
        raise SettingError(f"out is {str(target)!r}, and {reason}; choose another.") from error
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    try:
        folder.rename(target)
    except OSError as error:  # the work is done, and is not thrown away
        raise RunError(
            f"{target} was made by another program meanwhile ({error.strerror}); the new checkpoint is in {folder}, "
            "which you may rename."
        ) from error
