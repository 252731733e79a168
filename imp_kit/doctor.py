"""What is wrong on this machine, or behind an error message, and the mend."""

import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from textwrap import shorten

from imp_kit.errors import CheckpointError, SettingError
from imp_kit.registry import PUBLISHED

TESTED = {  # as constraints.txt pins it, and the newest
    "Python": ("3.11", "3.13"),
    "torch": ("2.13.0", "2.15.0"),
    "transformers": ("4.37.2", "5.24.0"),
    "tokenizers": ("0.15.2", "0.23.3"),
    "huggingface_hub": ("0.36.2", "2.4.0"),
    "safetensors": ("0.8.0", "0.8.0"),
    "numpy": ("2.4.6", "2.5.5"),
    "pillow": ("13.0.0", "13.0.0"),
    "einops": ("0.8.2", "0.8.2"),
    "accelerate": ("1.15.0", "1.15.0"),
    "timm": ("1.0.31", "1.0.31"),
}
CORE = ("torch", "tokenizers", "huggingface_hub", "safetensors", "numpy", "PIL", "einops", "tqdm")  # to import
OPTIONAL = ("transformers", "accelerate", "timm")
SIZES = {name: round(entry.weight_bytes, -8) for name, entry in PUBLISHED.items()}  # bytes in 16 bit, also in memory
WORKING = 1.1e9  # bytes of memory beside the weights, for a picture and an answer


@dataclass(frozen=True)
class Finding:
    """One line of the examination: `level` is "OK", "WARN" or "FAIL", `mend` what to do, if there is anything."""

    level: str
    what: str
    mend: str | None = None

    def __str__(self) -> str:
        return f"[{self.level}] {self.what}" + (f"\n    {self.mend}" if self.mend else "")


def examine() -> list[Finding]:
    """Look at this machine: Python, packages, GPU, hub, memory, disk, checkpoints, what `imp_kit.load()` would choose.

    Nothing is loaded, downloaded or written. The hub gets at most two requests, of 5 s each, or none where
    HF_HUB_OFFLINE is set.
    """
    findings = [*_versions(), *_broken()]
    if any(finding.level == "FAIL" for finding in findings):  # the rest is built on these packages
        return findings
    gpu, gpu_memory = _gpu()
    return [*findings, *_conflicts(), *_official(), gpu, _hub(), *_places(gpu_memory), _choice()]


def _versions() -> Iterator[Finding]:
    have = {"Python": "{}.{}".format(*sys.version_info)}
    have |= {name: version for name in TESTED if (version := _version(name))}
    if sys.version_info < (3, 11):  # noqa: UP036 - pip refuses an older one, a path to the sources does not
        yield Finding("FAIL", f"Python {have['Python']} is too old", "Use Python 3.11 or later.")
    same = [name for name in have if have[name].split("+")[0] in TESTED[name]]
    yield Finding("OK", f"In tested versions: {', '.join(f'{name} {have[name]}' for name in same)}")
    if others := [f"{name} {have[name]} ({', '.join(TESTED[name])})" for name in have if name not in same]:
        mend = "Only if something fails: the README's make commands set up an environment with the tested ones."
        yield Finding("WARN", f"Not in a tested version, given in brackets: {'; '.join(others)}", mend)
    if absent := [name for name in OPTIONAL if name not in have]:
        yield Finding("OK", f"Not installed: {', '.join(absent)}; only MILVLG's own code and the tests need them")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _broken() -> Iterator[Finding]:
    """The packages that the kit cannot do without and that cannot be imported."""
    for module in CORE:
        try:
            import_module(module)
        except Exception as error:  # not only ImportError: a CUDA library that does not match is an OSError
            package = {"PIL": "pillow"}.get(module, module)
            mend = f"pip install --force-reinstall --no-deps {package}, then restart Python."
            if isinstance(error, ModuleNotFoundError) and error.name == module:
                mend = f"Activate the virtual environment (. .venv/bin/activate), or else: pip install {package}"
            if module == "torch":
                mend = "Install it anew as https://pytorch.org/get-started says for this machine, then restart Python."
            yield Finding("FAIL", f"{package} cannot be imported ({_reason(error)})", mend)


def _reason(error: BaseException) -> str:
    return shorten(f"{type(error).__name__}: {error}".rstrip(".: "), 160, placeholder=" ...")


def _conflicts() -> Iterator[Finding]:
    """What a package asks of another and does not get; pip lets it happen."""
    from packaging.requirements import Requirement

    for name in filter(_version, ("imp-kit", *TESTED)):
        for need in map(Requirement, metadata.requires(name) or ()):
            version = _version(need.name)
            wanted = not need.marker or need.marker.evaluate({"extra": ""})
            if wanted and version and not need.specifier.contains(version, prereleases=True):
                level = "WARN" if name in OPTIONAL else "FAIL"
                mend = f'pip install "{need.name}{need.specifier}", then restart Python.'
                yield Finding(level, f"{name} needs {need.name}{need.specifier}, but {version} is installed", mend)


def _official() -> Iterator[Finding]:
    """Whether the installed transformers, if any, can run MILVLG's own code."""
    from imp_kit.official import check_version

    if version := _version("transformers"):
        try:
            check_version(version)
        except SettingError as error:
            yield Finding("OK", f"The kit needs no transformers. MILVLG's own code does: {error}")


def _gpu() -> tuple[Finding, int | None]:
    """The GPU as torch and nvidia-smi see it, and its free bytes if torch can use it."""
    import torch

    from imp_kit.machine import free_memory

    build = f"torch {torch.__version__} ({f'CUDA {torch.version.cuda}' if torch.version.cuda else 'without CUDA'})"
    with warnings.catch_warnings(record=True) as caught:  # torch warns of a driver that is too old
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if available:
        try:
            torch.ones(1, device="cuda").add(1).item()
            name, free = torch.cuda.get_device_name(), free_memory(torch.device("cuda"))
        except RuntimeError as error:
            mend = 'python -m imp_kit doctor --why "..." explains such errors; device="cpu" works without the GPU.'
            return Finding("FAIL", f"{build} finds a GPU, but cannot use it ({_reason(error)})", mend), None
        return Finding("OK", f"{build} uses {name}, {free / 1e9:.1f} GB free"), free
    seen = _nvidia_smi()
    if not seen:
        return Finding("OK", f"{build}, no GPU: imp-nano is quick on the CPU, the large checkpoints are slow"), None
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        mend = f"CUDA_VISIBLE_DEVICES is {os.environ['CUDA_VISIBLE_DEVICES']!r} and may hide it: unset it."
    elif not torch.version.cuda:
        mend = "Install torch's build with CUDA, as https://pytorch.org/get-started says."
    else:
        mend = "Update the NVIDIA driver, or install a torch that was built for an older CUDA."
    reason = f" ({str(caught[0].message).splitlines()[0]})" if caught else ""
    return Finding("FAIL", f"nvidia-smi shows {seen}, but {build} cannot use it{reason}", mend), None


def _nvidia_smi() -> str:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return ", ".join(done.stdout.split("\n")).strip(", ")


def _hub() -> Finding:
    """Whether the hub answers, and whether it takes the token."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import get_session

    from imp_kit.checkpoints import DEFAULT, HUB_IDS

    if constants.HF_HUB_OFFLINE:
        return Finding("OK", "HF_HUB_OFFLINE is set: the hub is not asked, only its cache is used")
    token = get_token()
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:  # without HfApi, whose requests tell more: torch's version, the program that runs this one
        url = f"{constants.ENDPOINT}/api/models/{HUB_IDS[DEFAULT]}"
        status = get_session().get(url, headers=headers, timeout=5).status_code
    except Exception as error:  # requests, httpx: the errors of the client's session have no common parent
        fault = f"cannot be reached ({_reason(error)})"
    else:
        if status == 200:
            return Finding("OK", f"{constants.ENDPOINT} answers")
        if token and status in (401, 403):
            mend = "Imp's checkpoints need no token: unset HF_TOKEN and run `hf auth logout`, or make a new one."
            return Finding("FAIL", f"{constants.ENDPOINT} refuses your token ({status}); downloads will fail", mend)
        fault = f"answers {status}"
    mend = "Check the network, the proxy and HF_ENDPOINT. imp-nano and complete downloads work without the hub."
    return Finding("WARN", f"{constants.ENDPOINT} {fault}", mend)


def _places(gpu: int | None) -> Iterator[Finding]:
    """Memory, the hub cache's folder, and each checkpoint; `gpu` is its free bytes."""
    import torch
    from huggingface_hub import constants

    from imp_kit.checkpoints import HUB_IDS, NANO, NANO_FOLDER
    from imp_kit.machine import free_memory

    memory = free_memory(torch.device("cpu"))
    yield Finding("OK", f"Memory: {memory / 1e9:.1f} GB free")
    cache = Path(constants.HF_HUB_CACHE).absolute()
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    disk = shutil.disk_usage(place).free
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        yield Finding("OK", f"Hub cache: {cache}, {disk / 1e9:.1f} GB of disk free")
    else:
        level = "WARN" if constants.HF_HUB_OFFLINE else "FAIL"
        yield Finding(level, f"Hub cache: {cache} cannot be written to", "Set HF_HUB_CACHE to a folder of your own.")
    yield Finding("OK", f"{NANO}: bundled, {_size(NANO_FOLDER) / 1e9:.2f} GB; fits everywhere")
    for name, hub_id in HUB_IDS.items():
        level, state, mends = _state(name, hub_id, cache / f"models--{hub_id.replace('/', '--')}", disk)
        needs = f"needs {(SIZES[name] + WORKING) / 1e9:.1f} GB of memory in 16 bit"
        fits = [kind for kind, free in (("GPU", gpu), ("CPU", memory)) if free and free >= SIZES[name] + WORKING]
        if not fits:
            level, needs = "WARN", f"{needs}, more than is free"
            mends.append("Close other programs, or take a smaller checkpoint.")
        where = f", fits the {' and the '.join(fits)}" if fits else ""
        yield Finding(level, f"{name}: {state}; {needs}{where}", " ".join(mends) or None)


def _state(name: str, hub_id: str, repo: Path, disk: int) -> tuple[str, str, list[str]]:
    """Whether a checkpoint is in the hub cache: level, words, mends."""
    level, state, mends = "OK", f"not downloaded, about {SIZES[name] / 1e9} GB", []
    if repo.exists():
        fault = _fault(hub_id)
        if not fault:
            return "OK", f"complete in the hub cache, {_size(repo) / 1e9:.2f} GB", []
        level, state = "WARN", f"only partly in the hub cache, {_size(repo) / 1e9:.2f} GB: {fault}"
        mends.append(f'imp_kit.load("{name}") fetches what is missing; if a file is damaged, delete {repo} first.')
    if disk < SIZES[name]:
        mends.append("Free some disk, or set HF_HUB_CACHE to a folder on a larger one.")
        return "WARN", f"{state}, more than the disk has free", mends
    return level, state, mends


def _fault(hub_id: str) -> str | None:
    """What keeps a checkpoint in the hub cache from being loaded."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    from imp_kit.checkpoints import cached_folder
    from imp_kit.stored import find_tensors, read_json
    from imp_kit.tokens import TextTokenizer

    try:
        folder = cached_folder(hub_id)
        read_json(folder / "config.json")
        find_tensors(folder)
        TextTokenizer(folder)
    except LocalEntryNotFoundError:
        return "it has no complete file of the main branch"
    except CheckpointError as error:
        return str(error).rstrip(".")
    return None


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def _choice() -> Finding:
    from imp_kit.assistant import choose_checkpoint
    from imp_kit.machine import choose_device

    try:
        name, why = choose_checkpoint(choose_device("auto"))
    except RuntimeError as error:  # the GPU fails as soon as it is used
        return Finding("FAIL", f"imp_kit.load() fails here ({_reason(error)})", 'Use imp_kit.load(device="cpu").')
    return Finding("OK", f"imp_kit.load() chooses {name}, because {why}")


@dataclass(frozen=True)
class Explanation:
    """What is behind an error message. `signs` are the regular expressions that it is known by."""

    signs: tuple[str, ...]
    cause: str
    mend: str

    def __str__(self) -> str:
        return f"Cause: {self.cause}\nMend: {self.mend}"


KIT = "Use imp_kit.load(): it reads the same checkpoint and runs no code of it."
LESS = 'Take dtype="fp16" on a GPU or "bf16" on a CPU, or a smaller checkpoint: imp-nano fits everywhere.'
OUTDATED = {  # of MILVLG's own code: sign -> what it does, and the last transformers with which that works
    r"Cache only has 0 layers|Cache' object is not subscriptable": ("reads the first layer of an empty cache", "4.41"),
    r"_load_state_dict_into_meta_model": ("calls _load_state_dict_into_meta_model, a private function", "4.44"),
    r"Cannot copy out of meta tensor": ("leaves weights without values, on the device 'meta'", "4.44"),
    r"Cache' (object )?has no attribute 'get_max_length'": ("calls get_max_length of a cache", "4.48"),
    r"'Imp\w*' object has no attribute 'generate'": ("takes generate from transformers' base class", "4.51"),
    r"Cache' (object )?has no attribute '(seen_tokens|get_usable_length)'": ("asks a cache for its length", "4.53"),
    r"Cache' (object )?has no attribute '(from|to)_legacy_cache'": ("converts caches", "4.57"),
    r"'is_torch_fx_available'": ("imports is_torch_fx_available", "4.57"),
    r"'_set_token_in_kwargs'": ("calls _set_token_in_kwargs, a private function", "4.57"),
    r"'Imp\w*Config' object has no attribute 'pad_token_id'": ("expects that pad_token_id has a default", "4.57"),
    r"KeyError: 'type'": ("probably, if this is about Phi-3, reads rope_scaling['type']", "4.57"),
}
KNOWN = (
    *(
        Explanation(
            (sign,),
            f"MILVLG's own code {what}. That works up to transformers {last}, not with later ones.",
            f"{KIT} To run MILVLG's code: pip install transformers==4.37.2, in an environment of its own.",
        )
        for sign, (what, last) in OUTDATED.items()
    ),
    Explanation(
        (r"No module named 'transformers_modules[./\\]([^./\\']+[./\\])?[Ii]mp-v1(\.5[^']*)?'",),
        "The name Imp-v1.5-... has a dot. transformers makes a module's name of it, and there a dot means a folder: "
        "Python looks inside of a folder Imp-v1, which nobody made.",
        'imp_kit.load("imp-v1.5-3b-phi2") needs no such module. Or give transformers 4.37.2 a folder without dots in '
        "its name, such as .../models--MILVLG--Imp-v1.5-3B-Phi2/snapshots/COMMIT in the hub cache, where COMMIT is a "
        "folder whose name is 40 digits and letters. If the entry auto_map of its config.json has "
        "MILVLG/Imp-v1.5-3B-Phi2-- before the names, delete these words. A slash after a hub id is no help.",
    ),
    Explanation(
        (r"requires the following packages that were not found in your environment",),
        "The checkpoint's own code, which runs with trust_remote_code=True, imports packages that are not installed.",
        f"Install the packages that the message names. {KIT}",
    ),
    Explanation(
        (r"No module named 'imp_kit'",),
        "This Python does not have the kit: probably it is not the one of the virtual environment.",
        "Type . .venv/bin/activate in the kit's folder (Windows: .venv\\Scripts\\activate); in a notebook run "
        "the first cell; elsewhere pip install git+https://github.com/imp-kit/imp-kit",
    ),
    Explanation(
        (r"Incorrect path_or_model_id: '", r"Repo id must be in the form '"),
        "This is neither a folder on this machine nor a hub id, which is OWNER/NAME without a slash at its end.",
        "Check the folder's path, or take the slash away from the hub id. If transformers then stumbles over the dot "
        'in Imp-v1.5-..., use imp_kit.load("imp-v1.5-3b-phi2"), which also forgives the slash.',
    ),
    Explanation(
        (r"loading state_dict for Imp\w+:\s+size mismatch for",),
        "The class does not fit the weights. Probably two folders were loaded in one process, both with a slash at the "
        "end: transformers 4.37 then takes the first one's class for the second.",
        f"Start Python anew and leave the slash away, with folders that have no dots in their names. {KIT}",
    ),
    Explanation(
        (r"CUDA out of memory", r"CUDA error: out of memory", r"needs [\d.]+ GB on cuda"),
        "The GPU has too little free memory.",
        f"End what else uses the GPU (nvidia-smi lists it; other notebooks' kernels do). {LESS}",
    ),
    Explanation(
        (r"DefaultCPUAllocator: ", r"^MemoryError", r"needs [\d.]+ GB on cpu", r"too large for this machine's memory"),
        "The computer has too little free memory.",
        f"Close other programs. {LESS}",
    ),
    Explanation(
        (r"[Kk]ernel (appears to have )?died", r"using all available RAM", r"\bKilled\b", r"exit (code|status) 137"),
        "The system ended the program, most often because memory ran out.",
        f"Close other programs and start it again. {LESS}",
    ),
    Explanation(
        (r"Torch not compiled with CUDA enabled",),
        "This build of torch cannot use a GPU.",
        'Use device="cpu", or install the build with CUDA that https://pytorch.org/get-started names.',
    ),
    Explanation(
        (r"operator torchvision::\w+ does not exist",),
        "torchvision was built for another torch: one of the two was changed alone.",
        "Install both together, as https://pytorch.org/get-started says, then restart Python. The kit itself needs no "
        "torchvision.",
    ),
    Explanation(
        (r"no NVIDIA driver", r"driver on your system is too old", r"No CUDA GPUs are available"),
        "torch finds no NVIDIA GPU, or a driver that is older than torch's CUDA.",
        'Use device="cpu". Where there is a GPU: update its driver and unset CUDA_VISIBLE_DEVICES; in Colab choose a '
        "runtime with a GPU.",
    ),
    Explanation(
        (r"no kernel image is available",),
        "This build of torch has no code for this GPU: the GPU is too old or too new for it.",
        'Install a build for this GPU, as https://pytorch.org/get-started says, or use device="cpu".',
    ),
    Explanation(
        (r"40[13] Client Error: ", r"403 Forbidden", r"[Cc]annot access gated repo", r"a gated repo(\.|sitory)"),
        "The hub refuses access: a wrong or expired token, or a checkpoint that asks for its owner's consent.",
        "Imp's checkpoints need no token: unset HF_TOKEN and run `hf auth logout`. For others: accept the terms on the "
        "checkpoint's page, make a new token, run `hf auth login`.",
    ),
    Explanation(
        (r"Repository Not Found for url", r"is not a valid model identifier", r"that the hub would give you"),
        "The hub has no checkpoint of this name, or does not show it to you.",
        "Compare the name with those of `python -m imp_kit checkpoints`.",
    ),
    Explanation(
        (r"\[Errno 28\]", r"No space left on device"),
        "The disk is full.",
        "Free some disk, or set HF_HUB_CACHE to a folder on a larger one; `python -m imp_kit doctor` tells the sizes. "
        "Then run the same again: a download goes on where it stopped.",
    ),
    Explanation(
        (
            r"couldn't connect to '",
            r"outgoing traffic has been disabled",
            r"locate the files? on the Hub",
            r"offline mode is enabled",
            r"Max retries exceeded with url",
            r"[Nn]ame resolution|Name or service not known|getaddrinfo failed",
            r"the hub cannot be reached",
        ),
        "The checkpoint is not complete on this machine, and the hub cannot be reached or is switched off.",
        "Check the network, the proxy and HF_ENDPOINT, unset HF_HUB_OFFLINE, then run the same again. Or copy the "
        "checkpoint's folder here and give its path. imp-nano needs no network.",
    ),
    Explanation(
        (r"Do you wish to run the custom code", r"`trust_remote_code=True`"),
        "transformers can load this checkpoint only by running Python code that comes with it, and wants your consent.",
        f"{KIT} Set trust_remote_code=True only for code that you have read.",
    ),
    Explanation(
        (r"does not recognize this architecture", r"KeyError: 'imp(_\w+)?'"),
        "transformers has no classes of its own for Imp, in no version; updating it does not help.",
        f"{KIT} To run MILVLG's code: transformers==4.37.2 with trust_remote_code=True.",
    ),
    Explanation(
        (r"is required for a normal functioning of this module", r"requires [\w-]+[<>=!~].*, but you have "),
        "transformers does not fit the version of another package, mostly of tokenizers or huggingface_hub.",
        "Let pip choose them together: pip install transformers==4.37.2 (or: pip install -U transformers), without "
        "--no-deps; then restart Python.",
    ),
)
UNKNOWN = (
    "The kit does not know this error. To report it at https://github.com/imp-kit/imp-kit/issues, give the whole "
    "traceback, what you ran, and what `python -m imp_kit doctor` prints."
)
ERROR = re.compile(r"^(?:E +)?(?=(?:imp-kit|[\w.]*(?:Error|ERROR|Exception))(?::|\s*$))", re.M)
CHAINED = re.compile(r"The above exception was the direct cause|During handling of the above exception")


def explain(text: str) -> Explanation | None:
    """What is behind a pasted error, be it a line or tracebacks; None if the kit does not know it."""
    for message in _messages(text):
        for known in KNOWN:
            if any(re.search(sign, message, re.M) for sign in known.signs):
                return known
    return None


def _messages(text: str) -> list[str]:
    """The errors in a text, without the lines of code around them, which may quote other errors.

    The last chain of exceptions comes first, and in a chain the error that caused the others.
    """
    starts = [match.end() for match in ERROR.finditer(text)]
    if not starts:
        return [text]
    chains: list[list[str]] = []
    chained = None
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        if not chained:
            chains.append([])
        chained = CHAINED.search(text, start, end)
        chains[-1].append(re.split(rf"Traceback \(most recent call last\)|{CHAINED.pattern}", text[start:end])[0])
    return [message for chain in reversed(chains) for message in chain]
