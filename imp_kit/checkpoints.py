"""A name, a hub id or a folder -> a snapshot folder on disk."""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from imp_kit.errors import CheckpointError

NANO = "imp-nano"
NANO_FOLDER = Path(__file__).parent / "nano" / "checkpoint"
DEFAULT = "imp-v1-3b"
HUB_IDS = {  # those that stand on Phi-2
    "imp-v1-3b": "MILVLG/imp-v1-3b",
    "imp-v1.5-3b-phi2": "MILVLG/Imp-v1.5-3B-Phi2",
    "imp-v1.5-3b-196": "MILVLG/Imp-v1.5-3B-196",
}
# Weights as safetensors, settings, tokenizer: neither code nor pickles ever reach the disk.
WANTED = ("*.safetensors", "*.json", "*.txt", "*.model")


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint on disk; `revision` is the hub's commit, None for a folder that is no part of a hub cache."""

    name: str
    folder: Path
    revision: str | None


def find(checkpoint: str | os.PathLike, revision: str | None = None) -> Snapshot:
    """Turn what a user typed into a folder, downloading it with a progress bar where that is needed.

    `checkpoint` is a short name (`HUB_IDS`, or "imp-nano"), a hub id in any case, with or without a slash at its end,
    or a folder. `revision` is a branch, tag or commit of the hub. Raises CheckpointError.
    """
    if not isinstance(checkpoint, (str, os.PathLike)) or not str(checkpoint).strip():
        raise CheckpointError(f"A checkpoint is a name, a hub id or a folder, not {checkpoint!r}.")
    text = str(checkpoint).strip()
    plain = text.rstrip("/")
    name = plain.lower()
    if name == NANO:
        return Snapshot(NANO, NANO_FOLDER, None)
    known = {**HUB_IDS, **{hub_id.lower(): hub_id for hub_id in HUB_IDS.values()}}
    if name in known:
        return _download(known[name], revision)
    folder = Path(text).expanduser()
    if folder.is_dir():
        folder = folder.absolute()
        commit = folder.name if folder.parent.name == "snapshots" else None
        return Snapshot(
            folder.parent.parent.name.replace("models--", "").replace("--", "/") if commit else folder.name,
            folder,
            commit,
        )
    if folder.exists():
        raise CheckpointError(f"{text} is a file; give the folder that holds config.json and the weights.")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", plain) and not text.startswith("."):
        return _download(plain, revision)
    near = difflib.get_close_matches(name, [*HUB_IDS, NANO], n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise CheckpointError(
        f"There is no folder {text!r} and no checkpoint of that name.{hint} Known: {', '.join([*HUB_IDS, NANO])}."
    )


def _download(hub_id: str, revision: str | None) -> Snapshot:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(WANTED)))
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{hub_id}{f' at {revision}' if revision else ''} is not on this machine and the hub cannot be reached. "
            f"Go online once, or copy the checkpoint's folder here and give its path; {NANO!r} needs neither."
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"The hub does not give out {hub_id} ({type(error).__name__}: {reason}).") from error
    return Snapshot(hub_id, folder, folder.name)


def at_hand(hub_id: str) -> bool:
    """Whether a checkpoint is in the hub cache, or the hub answers within a few seconds."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(hub_id, "config.json"), str):
        return True
    try:
        HfApi().model_info(hub_id, timeout=5)
    except Exception:  # offline mode, no network, no answer: whatever the reason, it is not in reach
        return False
    return True
