"""What is wrong on this machine, or what caused an error message, and what helps."""

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata, resources
from pathlib import Path
from textwrap import shorten
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from imp_kit.checkpoints.registry import PUBLISHED, WORKING_BYTES
from imp_kit.errors import CheckpointError, SettingError

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
WORKING = WORKING_BYTES  # its earlier name
SIZES = {name: round(entry.weight_bytes, -8) for name, entry in PUBLISHED.items()}  # bytes in 16 bit, also in memory


@dataclass(frozen=True)
class Finding:
    """One line of the examination: `level` is "OK", "WARN" or "FAIL", `fix` what to do, if there is anything."""

    level: str
    what: str
    fix: str | None = None

    def __str__(self) -> str:
        return f"[{self.level}] {self.what}" + (f"\n    {self.fix}" if self.fix else "")


def examine() -> list[Finding]:
    """Look at this machine: Python, packages, GPU, hub, memory, disk, checkpoints, what `imp_kit.load()` would choose.

    Nothing is loaded, downloaded or written. The hub gets at most two requests, of 5 s each, or none where
    HF_HUB_OFFLINE is set.
    """
    findings = [*_versions(), *_broken()]
    if any(finding.level == "FAIL" for finding in findings):  # the rest is built on these packages
        return findings
    gpu, gpu_memory = _gpu()
    hub, reachable = _hub()
    cpu = [] if gpu_memory else [_cpu()]
    return [*findings, *_conflicts(), *_official(), gpu, *cpu, hub, *_storage(gpu_memory, reachable), _choice()]


def _versions() -> Iterator[Finding]:
    have = {"Python": "{}.{}".format(*sys.version_info)}
    have |= {name: version for name in TESTED if (version := _version(name))}
    if sys.version_info < (3, 11):  # noqa: UP036 - pip refuses an older one, a path to the sources does not
        yield Finding("FAIL", f"Python {have['Python']} is too old", "Use Python 3.11 or later.")
    same = [name for name in have if have[name].split("+")[0] in TESTED[name]]
    yield Finding("OK", f"In tested versions: {', '.join(f'{name} {have[name]}' for name in same)}")
    if others := [f"{name} {have[name]} ({', '.join(TESTED[name])})" for name in have if name not in same]:
        fix = "Only if something fails: the README's make commands set up an environment with the tested ones."
        yield Finding("WARN", f"Not in a tested version, given in brackets: {'; '.join(others)}", fix)
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
            fix = f"pip install --force-reinstall --no-deps {package}, then restart Python."
            if isinstance(error, ModuleNotFoundError) and error.name == module:
                fix = f"Activate the virtual environment (. .venv/bin/activate), or else: pip install {package}"
            if module == "torch":
                fix = "Install it anew as https://pytorch.org/get-started says for this machine, then restart Python."
            yield Finding("FAIL", f"{package} cannot be imported ({_reason(error)})", fix)


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
                fix = f'pip install "{need.name}{need.specifier}", then restart Python.'
                yield Finding(level, f"{name} needs {need.name}{need.specifier}, but {version} is installed", fix)


def _official() -> Iterator[Finding]:
    """Whether the installed transformers, if any, can run MILVLG's own code."""
    from imp_kit.tools.official import check_version

    if version := _version("transformers"):
        try:
            check_version(version)
        except SettingError as error:
            yield Finding("OK", f"The kit needs no transformers. MILVLG's own code does: {error}")


def _gpu() -> tuple[Finding, int | None]:
    """The GPU as torch and nvidia-smi see it, and its free bytes if torch can use it."""
    import torch

    from imp_kit.model.memory import free_memory

    build = f"torch {torch.__version__} ({f'CUDA {torch.version.cuda}' if torch.version.cuda else 'without CUDA'})"
    with warnings.catch_warnings(record=True) as caught:  # torch warns of a driver that is too old
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if available:
        try:
            torch.ones(1, device="cuda").add(1).item()
            name, free = torch.cuda.get_device_name(), free_memory(torch.device("cuda"))
        except RuntimeError as error:
            fix = 'python -m imp_kit doctor --why "..." explains such errors; device="cpu" works without the GPU.'
            return Finding("FAIL", f"{build} finds a GPU, but cannot use it ({_reason(error)})", fix), None
        others = [
            f"cuda:{index} is {torch.cuda.get_device_name(index)}" for index in range(1, torch.cuda.device_count())
        ]
        more = f" ({', '.join(others)}; device= chooses)" if others else ""
        return Finding("OK", f"{build} uses {name}, {free / 1e9:.1f} GB free{more}"), free
    gpus = _nvidia_smi()
    if not gpus:
        return Finding("OK", f"{build}, no GPU: imp-nano is quick on the CPU, the large checkpoints are slow"), None
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        fix = f"CUDA_VISIBLE_DEVICES is {os.environ['CUDA_VISIBLE_DEVICES']!r} and may hide it: unset it."
    elif not torch.version.cuda:
        fix = "Install torch's build with CUDA, as https://pytorch.org/get-started says."
    else:
        fix = "Update the NVIDIA driver, or install a torch that was built for an older CUDA."
    reason = f" ({str(caught[0].message).splitlines()[0]})" if caught else ""
    return Finding("FAIL", f"nvidia-smi shows {gpus}, but {build} cannot use it{reason}", fix), None


def _cpu() -> Finding:
    """How a large checkpoint answers soonest without a GPU."""
    from imp_kit.checkpoints.hub import DEFAULT
    from imp_kit.device import bf16_is_faster
    from imp_kit.system.extras import EXTRAS, has

    if bf16_is_faster():
        quick = f'imp_kit.load("{DEFAULT}", dtype="bf16", quantize="int8")'
        fix = f'Large checkpoints: {quick}; for a conversation about one picture, engine="llama.cpp", quantize="q4_0".'
        return Finding("OK", "This CPU is quick in bf16", fix)
    missing = [package for package, module in EXTRAS["llama-cpp"].items() if not has(module)]
    first = f"pip install {' '.join(missing)}, then " if missing else ""
    fix = f'Large checkpoints: {first}imp_kit.load("{DEFAULT}", engine="llama.cpp", quantize="q4_0").'
    return Finding("OK", 'This CPU is slower in bf16 than in fp32, and with quantize="int8" slowest', fix)


def _nvidia_smi() -> str:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return ", ".join(done.stdout.split("\n")).strip(", ")


def _hub() -> tuple[Finding, bool]:
    """Whether the hub answers and takes the token, and whether a checkpoint can be downloaded now."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import get_session

    from imp_kit.checkpoints.hub import DEFAULT, HUB_IDS

    hub = constants.ENDPOINT
    if constants.HF_HUB_OFFLINE:
        return Finding("OK", "HF_HUB_OFFLINE is set: the hub is not asked, only its cache is used"), False
    token = get_token()
    headers = {"authorization": f"Bearer {token}"} if token else {}
    fix = "Check the network, the proxy and HF_ENDPOINT. imp-nano and complete downloads work without the hub."
    try:  # without HfApi, whose requests send more: torch's version, the program that runs this one
        status = get_session().get(f"{hub}/api/models/{HUB_IDS[DEFAULT]}", headers=headers, timeout=5).status_code
    except Exception as error:  # requests, httpx: the errors of the client's session have no common parent
        problem = _network_problem(error)
        if _has_proxy(hub) and "proxy" not in problem:
            problem += ", through the proxy that is set"
        return Finding("WARN", f"{hub} cannot be reached: {problem}", fix), False
    if status == 200:
        return Finding("OK", f"{hub} answers"), True
    if token and status in (401, 403):
        what = f"{hub} refuses your token ({status}); downloads will fail"
        fix = "Imp's checkpoints need no token: unset HF_TOKEN and run `hf auth logout`, or make a new one."
        return Finding("FAIL", what, fix), False
    if status == 429 or status >= 500:
        fix = "Wait some minutes. imp-nano and complete downloads work without the hub."
    return Finding("WARN", f"{hub} {_status_problem(status)} ({status})", fix), False


def _has_proxy(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in getproxies() and not proxy_bypass(parts.hostname or "")


def _network_problem(error: BaseException) -> str:
    """Why a request got no answer, in words."""
    links: list[BaseException] = []
    todo = [error]
    while todo:  # the original error is a cause, or only an argument of the one that was raised
        link = todo.pop()
        if not any(link is known for known in links):
            links.append(link)
            causes = (link.__cause__, link.__context__, *link.args)
            todo += [cause for cause in causes if isinstance(cause, BaseException)]
    names = {type(link).__name__ for link in links}
    for words, kinds, classes in (
        ("the proxy refuses it", {"ProxyError"}, ()),
        ("its certificate is not trusted here", set(), (ssl.SSLCertVerificationError,)),
        ("the secure connection cannot be made", set(), (ssl.SSLError,)),
        ("its name is not found", set(), (socket.gaierror,)),
        ("the connection is refused", set(), (ConnectionRefusedError,)),
        ("it does not answer in time", {"ReadTimeout", "ConnectTimeout"}, (TimeoutError,)),
        ("its address is not a whole one", {"UnsupportedProtocol", "InvalidSchema", "InvalidURL"}, ()),
    ):
        if names & kinds or any(isinstance(link, classes) for link in links):
            return words
    return "the connection breaks off"


def _status_problem(status: int) -> str:
    """What a hub does that gives an answer without what was asked for."""
    if status == 407:
        return "cannot be reached: the proxy wants a name and a password"
    if status in (401, 403):
        return "refuses the request: probably a proxy or a firewall does"
    if status == 429:
        return "wants fewer requests from here"
    return "has a problem of its own" if status >= 500 else "does not answer as a hub does"


def _storage(gpu: int | None, reachable: bool) -> Iterator[Finding]:
    """Memory, the hub cache's folder, and each checkpoint; `gpu` is its free bytes."""
    import torch
    from huggingface_hub import constants

    from imp_kit.checkpoints.hub import HUB_IDS, NANO, NANO_FOLDER
    from imp_kit.model.memory import free_memory

    memory = free_memory(torch.device("cpu"))
    yield Finding("OK", f"Memory: {memory / 1e9:.1f} GB free")
    cache = Path(constants.HF_HUB_CACHE).absolute()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    disk = shutil.disk_usage(existing).free
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        yield Finding("OK", f"Hub cache: {cache}, {disk / 1e9:.1f} GB of disk free")
    else:
        level = "WARN" if constants.HF_HUB_OFFLINE else "FAIL"
        yield Finding(level, f"Hub cache: {cache} cannot be written to", "Set HF_HUB_CACHE to a folder of your own.")
    yield Finding("OK", f"{NANO}: bundled, {_size(NANO_FOLDER) / 1e9:.2f} GB; fits everywhere")
    for name, hub_id in HUB_IDS.items():
        repo = cache / f"models--{hub_id.replace('/', '--')}"
        level, state, fixes = _state(name, hub_id, repo, disk, reachable)
        needs = f"needs {PUBLISHED[name].needed_bytes / 1e9:.1f} GB of memory in 16 bit"
        fits = [kind for kind, free in (("GPU", gpu), ("CPU", memory)) if free and free >= PUBLISHED[name].needed_bytes]
        if not fits:
            level, needs = "WARN", f"{needs}, more than is free"
            fixes.append("Close other programs, or take a smaller checkpoint.")
        where = f", fits the {' and the '.join(fits)}" if fits else ""
        yield Finding(level, f"{name}: {state}; {needs}{where}", " ".join(fixes) or None)


def _state(name: str, hub_id: str, repo: Path, disk: int, reachable: bool) -> tuple[str, str, list[str]]:
    """Whether a checkpoint is in the hub cache: level, words, fixes."""
    level, state, fixes = "OK", f"not downloaded, about {SIZES[name] / 1e9} GB", []
    if repo.exists():
        problem = _cache_problem(hub_id)
        if not problem:
            return "OK", f"complete in the hub cache, {_size(repo) / 1e9:.2f} GB", []
        level, state = "WARN", f"only partly in the hub cache, {_size(repo) / 1e9:.2f} GB: {problem}"
        when = "" if reachable else ", once the hub can be reached"
        fixes.append(
            f'imp_kit.load("{name}") fetches what is missing{when}; if a file is damaged, delete {repo} first.'
        )
    if not reachable:
        level, state = "WARN", f"{state}, and cannot be downloaded now"
    if disk < SIZES[name]:
        fixes.append("Free some disk, or set HF_HUB_CACHE to a folder on a larger one.")
        return "WARN", f"{state}, more than the disk has free", fixes
    return level, state, fixes


def _cache_problem(hub_id: str) -> str | None:
    """What keeps a checkpoint in the hub cache from being loaded."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    from imp_kit.checkpoints.files import find_tensors, read_json
    from imp_kit.checkpoints.hub import cached_folder
    from imp_kit.checkpoints.tokenizer import TextTokenizer

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
    from imp_kit.device import choose_device
    from imp_kit.imp import choose_checkpoint

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a GPU that cannot be used, which has a finding of its own
            name, why = choose_checkpoint(choose_device("auto"))
    except RuntimeError as error:  # the GPU fails as soon as it is used
        return Finding("FAIL", f"imp_kit.load() fails here ({_reason(error)})", 'Use imp_kit.load(device="cpu").')
    return Finding("OK", f"imp_kit.load() chooses {name}, because {why}")


@dataclass(frozen=True)
class Explanation:
    """The cause of an error message, and what helps."""

    cause: str
    fix: str

    def __str__(self) -> str:
        return f"Cause: {self.cause}\nFix: {self.fix}"


@dataclass(frozen=True)
class KnownError:
    """A row of known_errors.json: a message fits if it matches one of `signs`.

    Where `near` is given, it must also match somewhere in the whole text: for a message that says too little by itself.
    `checked` is "tried" where the error was provoked and the fix helped, or "read: " and the page that says so.
    """

    signs: tuple[re.Pattern, ...]
    explanation: Explanation
    checked: str
    near: re.Pattern | None = None

    def fits(self, message: str, text: str) -> bool:
        """Whether this is what an error `message`, a part of `text`, is about."""
        return any(sign.search(message) for sign in self.signs) and (not self.near or bool(self.near.search(text)))


@cache
def known_errors() -> tuple[KnownError, ...]:
    """The table of known errors; of two rows that fit a message, the first counts."""
    table = json.loads(resources.files("imp_kit.tools").joinpath("known_errors.json").read_text("utf-8"))
    return tuple(
        KnownError(
            tuple(re.compile(sign, re.M) for sign in row["signs"]),
            Explanation(row["cause"], row["fix"]),
            row["checked"],
            re.compile(row["near"]) if "near" in row else None,
        )
        for row in table
    )


UNKNOWN = (
    "The kit does not know this error. To report it at https://github.com/imp-kit/imp-kit/issues, give the whole "
    "traceback, what you ran, and what `python -m imp_kit doctor` prints."
)
ERROR = re.compile(r"^(?:E +)?(?=(?:imp-kit|[\w.]*(?:Error|ERROR|Exception))(?::|\s*$))", re.M)
KIT_NAMES = "(?:Checkpoint|Image|MemoryLimit|Prompt|Run|Setting|Unreachable)Error"  # as a notebook writes them
OWN = re.compile(rf"(?:(?P<sure>imp-kit|imp_kit\.[\w.]*Error)|{KIT_NAMES}): (?P<words>.+)")
PLAIN_QUOTES = str.maketrans("‘’“”", "''\"\"")  # as some programs make of what is pasted into them
CHAINED = re.compile(r"The above exception was the direct cause|During handling of the above exception")


def explain(text: str) -> Explanation | None:
    """The cause of a pasted error, one line or tracebacks, and what helps; None if the kit does not know it."""
    text = text.translate(PLAIN_QUOTES)
    for message in _messages(text):
        for form in (message, " ".join(message.split())):  # as it is, and as one line, where it was wrapped
            for known in known_errors():
                if known.fits(form, text):
                    return known.explanation
        own = OWN.match(message)
        if own and (own["sure"] or "imp_kit" in text):
            return Explanation("This is a message of the kit itself.", f"It says what to do: {own['words']}")
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
