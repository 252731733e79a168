"""A published checkpoint's files on the hub beside the kit's registry: settings, tokenizer and headers, no weights."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from imp_kit.checkpoints.files import TensorInfo, read_json
from imp_kit.checkpoints.hub import hub_errors, needed_files
from imp_kit.checkpoints.plan import plan, read_configs
from imp_kit.checkpoints.published import published_tensors
from imp_kit.checkpoints.registry import PUBLISHED
from imp_kit.checkpoints.tokenizer import TextTokenizer
from imp_kit.errors import CheckpointError

INDEX = "model.safetensors.index.json"


@dataclass
class Look:
    """What was seen of one checkpoint; `trouble` says why nothing was."""

    name: str
    commit: str = ""
    differences: list[tuple[str, str, str]] = field(default_factory=list)  # what, in the registry, on the hub
    facts: dict[str, str] = field(default_factory=dict)  # what no page shows, for the registry to learn
    trouble: str = ""


def index_bytes(tensors: dict[str, tuple[int, ...]], shards: int, itemsize: int = 2) -> int:
    """How long model.safetensors.index.json is for these tensors, as transformers' `save_pretrained` writes it."""
    total = itemsize * sum(map(math.prod, tensors.values()))
    file = f"model-{1:05}-of-{shards:05}.safetensors"  # each name of a shard is as long
    index = {"metadata": {"total_size": total}, "weight_map": dict.fromkeys(tensors, file)}
    return len(json.dumps(index, indent=2, sort_keys=True)) + 1


def look(name: str) -> Look:
    """Read everything but the weights of a published checkpoint's main branch, and compare it."""
    seen, entry = Look(name), PUBLISHED[name]
    try:
        with hub_errors(entry.hub_id, None):
            folder, sizes, found = _fetch(name, seen)
        if not seen.commit.startswith(entry.commit):
            seen.differences.append(("commit of main", entry.commit, seen.commit))
        seen.differences += _files(name, sizes)
        for file, content in entry.contents.items():
            if file in sizes:
                seen.differences += _contents(file, content, read_json(folder / file))
        seen.differences += _tensors(name, found)
        if INDEX in sizes:
            shapes = {key: stored.shape for key, stored in found.items()}
            length = index_bytes(shapes, len({stored.file for stored in found.values()}))
            if length != sizes[INDEX]:
                seen.differences.append((f"{INDEX}, bytes from its keys", str(length), str(sizes[INDEX])))
        seen.differences += _loads(name, folder, found, seen.facts)
    except CheckpointError as error:
        seen.trouble = str(error)
    return seen


def _fetch(name: str, seen: Look) -> tuple[Path, dict[str, int], dict[str, TensorInfo]]:
    """The folder with the small files, the sizes of all files that loading needs, and the headers."""
    from huggingface_hub import HfApi, hf_hub_download

    api, hub_id = HfApi(), PUBLISHED[name].hub_id
    info = api.model_info(hub_id, files_metadata=True, timeout=10)
    seen.commit = info.sha
    all_sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    sizes = {file: all_sizes[file] for file in needed_files(all_sizes)}
    for file in sizes:
        if not file.endswith(".safetensors"):
            folder = Path(hf_hub_download(hub_id, file, revision=info.sha)).parent
    headers = api.get_safetensors_metadata(hub_id, revision=info.sha).files_metadata
    found = {
        key: TensorInfo(Path(file), tuple(tensor.shape), tensor.dtype)
        for file, header in headers.items()
        for key, tensor in header.tensors.items()
    }
    return folder, sizes, found


def _files(name: str, sizes: dict[str, int]) -> Iterator[tuple[str, str, str]]:
    entry = PUBLISHED[name]
    needed = {file: size for file, size in entry.files.items() if file in needed_files({*entry.files, *sizes})}
    for file in sorted(needed.keys() | sizes.keys()):
        if file not in sizes:
            yield file, "there", "missing"
        elif file not in needed:
            yield file, "may be there" if file in entry.possible else "not there", f"{sizes[file]} bytes"
        elif needed[file] is not None and not _same(needed[file], sizes[file]):
            known = f"{needed[file]:.2e}" if type(needed[file]) is float else str(needed[file])
            yield f"{file}, bytes", known, str(sizes[file])


def _same(known: int | float, size: int) -> bool:
    """Whole numbers are exact; others were read on a page that shows three digits."""
    return size == known if type(known) is int else f"{size:.2e}" == f"{known:.2e}"


def _contents(file: str, known: dict, found: dict) -> Iterator[tuple[str, str, str]]:
    for key in [*known, *(key for key in found if key not in known)]:
        if key not in found or key not in known or found[key] != known[key]:
            if isinstance(known.get(key), dict) and isinstance(found.get(key), dict):
                yield from _contents(f"{file}: {key}", known[key], found[key])
            else:
                yield f"{file}: {key}", *(repr(each[key]) if key in each else "–" for each in (known, found))


def _tensors(name: str, found: dict[str, TensorInfo]) -> Iterator[tuple[str, str, str]]:
    known = published_tensors(name)
    missing, new = ([key for key in a if key not in b] for a, b in ((known, found), (found, known)))
    for what, keys in (("missing", missing), ("not in the registry", new)):
        if keys:
            yield f"{len(keys)} tensors, the first {keys[0]}", "there" if keys is missing else "–", what
    for key in known.keys() & found.keys():
        if found[key].shape != known[key]:
            yield key, str(known[key]), str(found[key].shape)
    dtypes = sorted({stored.dtype for stored in found.values()})
    if dtypes != [PUBLISHED[name].dtype]:
        yield "dtype of the weights", PUBLISHED[name].dtype, ", ".join(dtypes)


def _loads(name: str, folder: Path, found: dict[str, TensorInfo], facts: dict) -> Iterator[tuple[str, str, str]]:
    """Whether the kit would load it, and what no page shows of its tokenizer."""
    try:
        raw, ends = read_configs(folder)
        checked = plan(raw, found, str(folder), ends)
        for fault in list(checked.problems.values())[:1]:
            yield "loading", "the kit loads it", fault
        config = checked.model.config
        facts["picture"] = f"{config.vision.num_patches} tokens, {'pad' if config.pad else 'square'}"
        facts["ends"] = str(config.eos_token_ids)
        tokenizer = TextTokenizer(folder)
        facts["tokenizer"] = tokenizer.file.name
        facts["around a prompt"] = f"{list(tokenizer.prefix)} before, {list(tokenizer.suffix)} behind"
        facts["control tokens"] = ", ".join(f"{token} {id}" for token, id in tokenizer.control.items())
    except CheckpointError as error:
        yield "loading", "the kit loads it", str(error)


def table(looks: list[Look]) -> str:
    """One row a difference, as Markdown."""
    lines = ["| checkpoint | what | in the registry | on the hub |", "| --- | --- | --- | --- |"]
    for seen in looks:
        rows = [("–", "–", f"not read: {seen.trouble}")] if seen.trouble else seen.differences
        rows = rows or [("nothing differs", f"main at {PUBLISHED[seen.name].commit[:7]}", f"main at {seen.commit[:7]}")]
        lines += [f"| {seen.name} | {' | '.join(cell.replace('|', '/')[:300] for cell in row)} |" for row in rows]
    return "\n".join(lines)
