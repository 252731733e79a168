"""A name, a hub id or a folder -> a snapshot folder on disk."""

import difflib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imp_kit.checkpoints.files import (
    check_adapters,
    check_weights,
    file_names,
    find_tensors,
    follow,
    quote,
    readable,
)
from imp_kit.checkpoints.registry import PUBLISHED
from imp_kit.checkpoints.tokenizer_files import TOKENIZER_FILES, tokenizer_names
from imp_kit.errors import CheckpointError

NANO = "imp-nano"
# Resolved: some installers make every file of a package a link, and `follow` refuses links that leave their folder.
NANO_FOLDER = Path(__file__).resolve().parents[1] / "nano" / "checkpoint"
DEFAULT = "imp-v1-3b"
HUB_IDS = {name: entry.hub_id for name, entry in PUBLISHED.items()}
# Weights as safetensors, settings, tokenizer: neither code nor pickles ever reach the disk, nor anything in a folder.
SETTINGS = ("config.json", "generation_config.json", "adapter_config.json", "model.safetensors.index.json")
WANTED = ("*.safetensors", *SETTINGS, *TOKENIZER_FILES)
UNWANTED = ("*/*", ".*")


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint on disk; `revision` is the hub's commit, None for a folder that is no part of a hub cache."""

    name: str
    folder: Path
    revision: str | None

    def digest(self) -> str | None:
        """SHA-256 of the files that are loaded; None where the revision identifies the folder's content."""
        return None if self.revision else digest(self.folder, loaded_files(self.folder))


def digest(folder: Path, names: Iterable[str]) -> str:
    """SHA-256 of a folder's files of these names, and of the names. Raises CheckpointError for a link elsewhere."""
    total = hashlib.sha256()
    for name in sorted(names):
        total.update(name.encode("utf-8", "surrogateescape"))
        with follow(folder / name).open("rb") as opened:
            total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()


def loaded_files(folder: Path) -> set[str]:
    """The names of the files from which a folder's checkpoint is made. Raises CheckpointError."""
    names = file_names(folder)
    weights = {info.file.name for info in find_tensors(folder).values()}
    unread = {name for name in names if name.endswith(".safetensors")} | {"adapter_config.json"}
    return weights | needed_files(names) - unread


def needed_files(names: Iterable[str]) -> set[str]:
    """Of the names of a repository's files, those that loading needs; without its index it needs all weights."""
    top = {name for name in names if "/" not in name and not name.startswith(".")}
    weights = {name for name in top if name.endswith(".safetensors")}
    return weights | top & set(SETTINGS) | tokenizer_names(top)


def find(checkpoint: str | os.PathLike, revision: str | None = None) -> Snapshot:
    """Turn what a user typed into a folder, downloading it with a progress bar where that is needed.

    `checkpoint` is a folder with a config.json, a short name (`HUB_IDS`, or "imp-nano"), or a hub id; names in any
    case, with or without a slash at the end. `revision` is a branch, tag or commit of the hub, so it goes with neither
    "imp-nano" nor a folder of one's own. Raises CheckpointError.
    """
    found = locate(checkpoint)
    if isinstance(found, str):
        return _download(found, revision)
    if revision is not None and revision != found.revision:
        what = "comes with the kit" if found.folder == NANO_FOLDER else "is a folder on this machine"
        raise CheckpointError(f"A revision, {revision!r}, belongs to a hub id; {str(checkpoint)!r} {what}.")
    check_adapters(str(found.folder), file_names(found.folder))
    return found


def locate(checkpoint: str | os.PathLike) -> Snapshot | str:
    """What `find` takes -> a folder on this machine, or an id of the hub. Raises CheckpointError for neither."""
    if not isinstance(checkpoint, (str, os.PathLike)) or not str(checkpoint).strip():
        raise CheckpointError(f"A checkpoint is a name, a hub id or a folder, not {checkpoint!r}.")
    text = checkpoint.strip() if isinstance(checkpoint, str) else os.fsdecode(checkpoint)
    name = text.rstrip("/")
    known = {**HUB_IDS, **{hub_id.lower(): hub_id for hub_id in HUB_IDS.values()}}
    # os.path's functions say no where Path's own raise: a name too long, a home that nobody has.
    folder = Path(os.path.expanduser(text))
    if name.lower() == NANO:
        return Snapshot(NANO, NANO_FOLDER, None)
    if os.path.isfile(folder / "config.json") or (os.path.isdir(folder) and name.lower() not in known):
        return _local(folder)
    if os.path.isfile(folder):
        raise CheckpointError(f"{text} is a file; give the folder that holds config.json and the weights.")
    if name.lower() in known:
        return known[name.lower()]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return name
    raise CheckpointError(f"There is no folder {quote(text)} and no checkpoint of that name.{_hint(name)}")


def _local(folder: Path) -> Snapshot:
    # A link keeps the name that its owner gave it, but what stands before ".." may be a link to anywhere.
    folder = Path(os.path.realpath(folder) if ".." in folder.parts else os.path.abspath(folder))
    repository = folder.parent.parent.name
    commit = re.fullmatch("[0-9a-f]{40}", folder.name)
    if commit and folder.parent.name == "snapshots" and repository.startswith("models--"):
        # A folder inside a hub cache, models--OWNER--NAME/snapshots/COMMIT: its path says what it is.
        hub_id = repository.removeprefix("models--").replace("--", "/")
        return Snapshot(readable(hub_id), folder, readable(folder.name))
    return Snapshot(readable(folder.name), folder, None)


def _hint(name: str) -> str:
    names = [known for known in (*HUB_IDS, *HUB_IDS.values(), NANO) if known.lower() != name.lower()]
    # A path is not a misspelled name, so no similar name is suggested.
    wanted = "" if name.count("/") > 1 or name.startswith((".", "/", "~")) else name.lower()
    lower = [name.lower() for name in names]
    begun = [name for name in lower if len(wanted) > 3 and name.startswith(wanted)]
    close = begun[:1] or difflib.get_close_matches(wanted, lower, n=1, cutoff=0.6)
    meant = next((f" Did you mean {name!r}?" for name in names if [name.lower()] == close), "")
    return f"{meant} The kit knows {', '.join([*HUB_IDS, NANO])}."


def _download(hub_id: str, revision: str | None) -> Snapshot:
    with hub_errors(hub_id, revision):
        commit, sizes = list_files(hub_id, revision)
        if commit:
            check_weights(hub_id, sizes)
        announce(hub_id, commit, {name: sizes[name] for name in needed_files(sizes)})
        folder = _fetch(hub_id, revision)
    return Snapshot(hub_id, folder, folder.name)


def announce(hub_id: str, commit: str | None, sizes: dict[str, int]) -> None:
    """Say what is about to be downloaded: those of the files, with their bytes, that are not in the cache."""
    from huggingface_hub import try_to_load_from_cache

    missing = [name for name in sizes if not isinstance(try_to_load_from_cache(hub_id, name, revision=commit), str)]
    if missing:
        total = f"{sum(sizes[name] for name in missing) / 1e9:.3g} GB"
        print(f"imp-kit: {hub_id} comes from the hub: {len(missing)} files, {total}.")


def _fetch(hub_id: str, revision: str | None, *, local_files_only: bool = False) -> Path:
    """The snapshot's folder, after a download of what is not in the cache."""
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        hub_id,
        revision=revision,
        allow_patterns=list(WANTED),
        ignore_patterns=list(UNWANTED),
        local_files_only=local_files_only,
    )
    return Path(folder)


def list_files(hub_id: str, revision: str | None) -> tuple[str | None, dict[str, int]]:
    """A repository's commit, and its files with their bytes; None and no files if the hub cannot be asked."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return None, {}
    try:
        info = HfApi().model_info(hub_id, revision=revision, files_metadata=True)
    except Exception:  # the download itself then says what is wrong, or finds everything in the cache
        return None, {}
    return info.sha, {file.rfilename: file.size or 0 for file in info.siblings or ()}


@contextmanager
def hub_errors(hub_id: str, revision: str | None) -> Iterator[None]:
    """Turn whatever the hub's client raises into a CheckpointError that says what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted = f"{hub_id} at {revision}" if revision else hub_id
    try:
        yield
    except CheckpointError:
        raise
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise _unreachable(wanted) from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{hub_id} has no revision {revision!r} on the hub.") from None
    except GatedRepoError:
        raise CheckpointError(
            f"{hub_id} is given only to those who accepted its terms: accept them on its page on the hub, then run "
            "`hf auth login` with a token of your account."
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise CheckpointError(
            f"There is no folder {hub_id!r} here and no checkpoint {hub_id} that the hub would give you.{_hint(hub_id)}"
        ) from None
    except Exception as error:  # requests, httpx, xet: what the hub's client lets through has no common parent
        if type(error).__name__ in ("ConnectError", "ConnectionError", "ConnectTimeout"):
            raise _unreachable(wanted) from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"The download of {wanted} failed ({type(error).__name__}: {reason}). "
            "Run the same again: it goes on where it stopped."
        ) from error


class UnreachableError(CheckpointError):
    """A checkpoint is not on this machine, and the hub cannot be reached."""


def _unreachable(wanted: str) -> UnreachableError:
    return UnreachableError(
        f"{wanted} is not on this machine and the hub cannot be reached. "
        f"Go online once, or copy the checkpoint's folder here and give its path; {NANO!r} needs neither."
    )


def cached_folder(hub_id: str, revision: str | None = None) -> Path:
    """The snapshot folder in the hub cache, whole or not. Raises what the hub's client raises where there is none."""
    return _fetch(hub_id, revision, local_files_only=True)


def cached(hub_id: str, revision: str | None = None) -> Path | None:
    """The snapshot folder of a checkpoint whose weights are complete in the hub cache, else None."""
    try:
        folder = cached_folder(hub_id, revision)
        find_tensors(folder)
    except Exception:  # not cached, or only half of it: the client's errors have no common parent
        return None
    return folder


def is_available(hub_id: str) -> bool:
    """Whether a checkpoint is complete in the hub cache, or the hub answers within a few seconds."""
    from huggingface_hub import HfApi

    if cached(hub_id):
        return True
    try:
        HfApi().model_info(hub_id, timeout=5)
    except Exception:  # offline mode, no network, no answer: whatever the reason, it is not in reach
        return False
    return True
