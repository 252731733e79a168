"""The kit's own engine and llama.cpp, with the same weights on this machine's CPU: a token, a prompt, an image, memory.

Each is loaded by `imp_kit.load` in a process of its own and asked as a person asks.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from tqdm.auto import tqdm

from imp_kit.checkpoints.files import check_space, format_size, is_exported
from imp_kit.checkpoints.hub import NANO, find
from imp_kit.checkpoints.published import random_bytes, write_random
from imp_kit.device import LONG_DTYPES, choose_dtype
from imp_kit.errors import SettingError
from imp_kit.imp import load
from imp_kit.llama_cpp.export import check_type, export_gguf
from imp_kit.llama_cpp.exported import Exported
from imp_kit.model.decoder import Block
from imp_kit.system.cpu_meter import CpuMeter
from imp_kit.system.extras import require
from imp_kit.tools.bench import (
    QUESTIONS,
    Costs,
    describe_machine,
    forget_peak,
    measure_times,
    noise_image,
    resident,
    run_alone,
    spread,
    weight_file_bytes,
)

STREAM = 2_000_000_000  # bytes that are read to measure the bandwidth; a server's cache holds hundreds of MB
COLUMNS = 2500  # of the matrix that they are
TOKENS = 50  # of an answer
KIT = (("fp32", None), ("bf16", None), ("bf16", "int8"))
TYPES = "q8_0,q4_0,q4_k_m"
FILES = 3  # times the bytes of random weights: they, and what is made of them
CPU = torch.device("cpu")


def compare(
    checkpoint: str | os.PathLike | None = None,
    *,
    random: str | None = None,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    types: str | None = None,
    repeats: int = 5,
    folder: str | os.PathLike | None = None,
    progress: bool = True,
) -> dict:
    """Measure a checkpoint (imp-nano), or a published size with `random` weights, by the kit and by llama.cpp.

    The kit computes in fp32, in bf16, and in bf16 with int8, or in one `dtype` alone; llama.cpp with each of `types`,
    such as "q8_0,q4_0". The files for llama.cpp, and those of random weights, go into a temporary folder below the
    home folder; or into `folder`, where they stay and are not written again. Times are medians of `repeats` with the
    smallest and the largest, in seconds. The result can be held by JSON; `table` shows it.
    Raises SettingError before anything is written, CheckpointError or MemoryLimitError.
    """
    if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
        raise SettingError(f"repeats is {repeats!r}; give a whole number from 1.")
    if random is not None and (checkpoint is not None or revision is not None):
        raise SettingError("Give a checkpoint or the size of random weights, not both.")
    require("llama-cpp", what="The engine llama.cpp")
    named = (types or TYPES).split(",")
    for type in named:
        check_type(type)
    chosen = choose_dtype(dtype, CPU)
    kit = KIT if chosen is None else ((LONG_DTYPES[str(chosen).removeprefix("torch.")], None),)
    needed = FILES * random_bytes(random) if random else 0
    if folder is not None:
        check_space(Path(folder).absolute(), needed, "the comparison", "folder")
    result: dict[str, Any] = {
        "checkpoint": f"{random} with random weights" if random else os.fspath(checkpoint or NANO),
        **describe_machine(CPU),
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "answer_tokens": TOKENS,
        "busy": CpuMeter().warning(),
        "exports": {},
        "rows": {},
    }
    with _files(folder, needed) as there, tqdm(total=len(named) + len(kit) + len(named), disable=not progress) as bar:
        result["versions"]["llama-cpp-python"] = metadata.version("llama-cpp-python")
        if random:
            source = there / random
            _write_once(source, random, progress)
        else:
            source = find(NANO if checkpoint is None else checkpoint, revision).folder
        written = there / f"{source.name}-gguf"
        for type in named:
            bar.set_description(f"export to {type}")
            if not is_exported(written) or type not in Exported.read(written).types():
                result["exports"][type] = run_alone("engines", "measure_export", str(source), str(written), type)
            bar.update()
        result["bandwidths"] = measure_bandwidth()
        result["bandwidth"] = max(found["median"] for found in result["bandwidths"].values())
        settings = [(str(source), {"device": "cpu", "dtype": name, "quantize": bits}) for name, bits in kit]
        settings += [(str(written), {"engine": "llama.cpp", "quantize": type}) for type in named]
        for place, how in settings:
            bar.set_description(" ".join(filter(None, how.values())))
            row = run_alone("engines", "measure", place, how, repeats, TOKENS)
            result["rows"][row.pop("name")] = derive(row, result["bandwidth"], TOKENS)
            bar.update()
    return result


def _write_once(folder: Path, random: str, progress: bool) -> None:
    """Random weights in a folder, unless they are there: config.json and the tokenizer come last."""
    if (folder / "tokenizer.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    size = random_bytes(random)
    with tqdm(total=size, unit="B", unit_scale=True, desc="random weights", disable=not progress) as bar:
        write_random(folder, random, QUESTIONS, bar.update)


@contextmanager
def _files(folder: str | os.PathLike | None, needed: float) -> Iterator[Path]:
    """Where files go: the folder that was asked for, or a new one that is removed; not /tmp, which may be memory."""
    if folder is not None:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingError(f"folder is {str(folder)!r}, where none can be made ({error.strerror}).") from None
        yield Path(folder).absolute()
        return
    cache = Path.home() / ".cache" / "imp-kit"
    check_space(cache, needed, "the comparison", "the cache")
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="bench-", dir=cache) as made:
        yield Path(made)


def measure_bandwidth(repeats: int = 5) -> dict[str, dict[str, float]]:
    """Bytes a second that all threads read in order from memory, in two ways: medians, smallest and largest."""
    values = torch.ones(STREAM // 4 // COLUMNS, COLUMNS)
    vector = torch.ones(COLUMNS)
    ways: dict[str, Callable] = {"sum": values.sum, "matrix times vector": lambda: values @ vector}
    found = {name: measure_times(call, repeats=repeats, device=CPU) for name, call in ways.items()}
    slowest = {"median": "median", "min": "max", "max": "min"}  # the fewest bytes a second take the most seconds
    return {
        name: {key: values.nbytes / seconds[other] for key, other in slowest.items()} for name, seconds in found.items()
    }


def measure_export(checkpoint: str, out: str, type: str) -> dict:
    """Write a checkpoint for llama.cpp in this process: seconds, and the peak of its memory above the imports'."""
    bare, start = forget_peak(), time.perf_counter()
    export_gguf(checkpoint, out, type, progress=False)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_bytes": None if bare is None else resident("VmHWM") - bare}


def measure(checkpoint: str, settings: dict, repeats: int, tokens: int) -> dict:
    """Load a checkpoint in this process with these settings of `load`, and ask about new images, two questions each.

    Returns sizes in bytes, and for each repeat the seconds of the image in tower and projector, of reading it with what
    stands before it, of reading the first and the second question, and of a token.
    """
    import safetensors.torch  # noqa: F401 - counts as part of the bare interpreter

    bare, start = forget_peak(), time.perf_counter()
    imp = load(checkpoint, **settings)
    loaded = time.perf_counter() - start
    imp.engine.stop_ids = frozenset()  # all answers are of one length
    by_kit = "engine" not in settings
    encoded = _watch_encode(imp.model if by_kit else cast(Any, imp.engine).tower)
    times: list[dict[str, float]] = []
    for seed in range(repeats + 1):
        view = imp.look(noise_image(seed))
        first = view.ask(QUESTIONS[0], max_new_tokens=1)
        second = view.ask(QUESTIONS[1], max_new_tokens=tokens if seed else 2)
        seconds = {
            "image": encoded[-1],
            "opening": first.seconds.look - encoded[-1],
            "question": first.seconds.prefill,
            "second question": second.seconds.prefill,
            "token": second.seconds.decode / (second.tokens - 1),
        }
        times.append(seconds)
    peak = None if bare is None else resident("VmHWM") - bare
    if by_kit:
        name, files = f"kit, {imp.dtype}", weight_file_bytes(imp.snapshot.folder)
        weights, threads = Costs.of(imp.model).weight_bytes, imp.engine.threads.count()
        stored = cast(Block, imp.model.decoder.layers[0]).mlp.up.weight.dtype
        name += " with fp16 weights" if stored == torch.float16 != imp.model.dtype else ""
    else:
        language = cast(Any, imp.engine).language
        name, threads = f"llama.cpp, {imp.dtype}", language.threads
        files = sum(file.stat().st_size for file in (language.file, Exported.read(Path(checkpoint)).tower(imp.dtype)))
        weights = weights_read(language.file)
    return {
        "name": name,
        "threads": threads,
        "load_seconds": loaded,
        "file_bytes": files,
        "peak_bytes": peak,
        "weight_bytes": weights,
        "opening_tokens": imp.engine.prefix_length(view.image),
        "times": times[1:],
    }


def _watch_encode(owner: Any) -> list[float]:
    """The seconds of each call of `encode`, as they come."""
    encode, spent = owner.encode, []

    def call(*values: Any) -> Any:
        start = time.perf_counter()
        found = encode(*values)
        spent.append(time.perf_counter() - start)
        return found

    owner.encode = call
    return spent


def weights_read(file: Path) -> int:
    """Bytes of a GGUF file's matrices that are read for each token: all but the table of embeddings."""
    from gguf import GGUFReader

    tensors = GGUFReader(file).tensors
    return sum(int(each.n_bytes) for each in tensors if len(each.shape) > 1 and each.name != "token_embd.weight")


def derive(row: dict, bandwidth: float, tokens: int) -> dict:
    """A row of `measure` with what follows from its times: medians, whole answers, and the share of the bandwidth."""
    times: Sequence[dict] = row["times"]
    rest = [(tokens - 1) * each["token"] for each in times]
    parts = ("image", "opening", "question", "second question", "token")
    figures = {name: spread([each[name] for each in times]) for name in parts}
    figures["first answer"] = spread(
        [e["image"] + e["opening"] + e["question"] + r for e, r in zip(times, rest, strict=True)]
    )
    figures["second answer"] = spread([e["second question"] + r for e, r in zip(times, rest, strict=True)])
    return {
        **row,
        "figures": figures,
        "prompt_tokens_per_second": row["opening_tokens"] / figures["opening"]["median"],
        "bandwidth_share": row["weight_bytes"] / figures["token"]["median"] / bandwidth,
    }


def table(result: dict) -> str:
    """A result of `compare` as Markdown: speed, then memory and files."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    tokens = result["answer_tokens"]
    lines = [
        f"{result['checkpoint']}, {result['device_name']} (cpu, {result['threads']} threads), {result['date']}, "
        f"{versions}. Medians of {result['repeats']}, smallest and largest in brackets.\n",
        f"| | a token | tokens/s | of the bandwidth | prompt | image | first answer, {tokens} tokens | second |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in result["rows"].items():
        figures = row["figures"]
        first, token = figures["first answer"], figures["token"]
        cells = (
            f"{token['median'] * 1e3:,.1f} ms ({token['min'] * 1e3:,.1f}–{token['max'] * 1e3:,.1f})",
            f"{1 / token['median']:,.1f}",
            f"{row['bandwidth_share']:.0%}",
            f"{row['prompt_tokens_per_second']:,.0f} tokens/s",
            f"{figures['image']['median']:.2f} s",
            f"{first['median']:.2f} s ({first['min']:.2f}–{first['max']:.2f})",
            f"{figures['second answer']['median']:.2f} s",
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| | weights read for a token | files | peak of memory | load |", "| --- | --- | --- | --- | --- |"]
    for name, row in result["rows"].items():
        sizes = f"{format_size(row['weight_bytes'])} | {format_size(row['file_bytes'])} | {_peak(row)}"
        lines.append(f"| {name} | {sizes} | {row['load_seconds']:.1f} s |")
    found = ", ".join(f"{name} {each['median'] / 1e9:.1f} GB/s" for name, each in result["bandwidths"].items())
    lines += [
        "",
        f"Bandwidth, as all threads read {format_size(STREAM)} in order: {found}; the shares are of the larger.",
    ]
    for type, export in result["exports"].items():
        lines.append(f"Export to {type}: {export['seconds']:.0f} s, peak of memory {_peak(export)}.")
    lines += [result["busy"]] if result["busy"] else []
    return "\n".join(lines)


def _peak(found: dict) -> str:
    return "unknown" if found["peak_bytes"] is None else format_size(found["peak_bytes"])
