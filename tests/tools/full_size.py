"""Time and memory of loading an Imp of full size: `python tests/tools/full_size.py imp-v1-3b --folder DIR`.

Writes an Imp of the published sizes with random fp16 weights into a folder of DIR unless it is there (5 to 9 GB of
disk), loads it on the CPU as bf16 (or `--dtype fp32`, `--device cuda`), each time in a process of its own, and prints
JSON; several names are done one after the other. `--sparse` writes zeros, which take no disk on most file systems and
no time, for the memory of a load alone. `--plot FILE` draws the results, with imp-nano. Only Linux shows the memory of
a process in the way that is used here.
"""

import argparse
import json
import struct
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch

from imp_kit.checkpoints.hub import NANO_FOLDER
from imp_kit.checkpoints.registry import PUBLISHED
from imp_kit.device import DTYPES
from imp_kit.model.imp import ImpModel

SHARD_BYTES = 1.5e9
LOADS = 3


def write(folder: Path, checkpoint: str, *, sparse: bool = False, layers: int | None = None) -> None:
    """Write the checkpoint tensor by tensor, so that no more than one of them is in memory.

    `sparse`: all weights are 0. `layers`: of the language model, if not as published.
    """
    from oracle import SO400M, Oracle, checkpoint_tensors, sizes_of

    entry = PUBLISHED[checkpoint]
    config = entry.config if layers is None else {**entry.config, "num_hidden_layers": layers}
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        tower = SO400M | {"image_size": entry.image_size}
        oracle = Oracle(config["model_type"], sizes_of(config), tower)
    shards, room = [], 0
    for name, tensor in checkpoint_tensors(oracle, entry.layout).items():
        size = 2 * tensor.numel()
        if size > room:
            shards.append({})
            room = max(size, SHARD_BYTES)
        shards[-1][name] = tensor.shape
        room -= size
    places = {}
    for number, shapes in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        places.update(dict.fromkeys(shapes, file))
        write_shard(folder / file, shapes, sparse)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}), "utf-8")
    # Last, so that a folder with a config.json is a whole one.
    (folder / "config.json").write_text(json.dumps(config, indent=2), "utf-8")


def write_shard(file: Path, shapes: dict[str, torch.Size], sparse: bool) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * shape.numel()
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as target:
        target.write(struct.pack("<Q", len(text)) + text)
        if sparse:
            target.truncate(8 + len(text) + end)
            return
        for name, shape in shapes.items():
            norm = len(shape) == 1 and name.endswith("weight")
            # Values as at the start of a training: nothing overflows.
            values = torch.ones(shape) if norm else torch.randn(shape).mul_(0.02)
            target.write(values.half().numpy().tobytes())


def resident(field: str) -> int:
    """Bytes that this process has in memory (VmRSS), or had at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def read(folder: Path) -> tuple[int, float]:
    """Bytes of the files, and the seconds of reading them into one piece of memory, to compare a load with."""
    buffer, size, started = bytearray(2**26), 0, time.perf_counter()
    for file in folder.glob("*.safetensors"):
        with file.open("rb", buffering=0) as source:
            while count := source.readinto(buffer):
                size += count
    return size, time.perf_counter() - started


def measure_load(folder: Path, dtype: str, device: str) -> tuple[dict, ImpModel]:
    """Load the checkpoint in this process: seconds and bytes of the host's memory; and the model."""
    import safetensors.torch  # noqa: F401 - counts as part of the bare interpreter

    from imp_kit.checkpoints.load import load_weights

    place = torch.device(device)
    torch.ones(1, device=place)  # so does CUDA's own start
    file_bytes, read_seconds = read(folder)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    bare = resident("VmRSS")
    started = time.perf_counter()
    model, spare = load_weights(folder, place, DTYPES[dtype], pack=True)
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    seconds = time.perf_counter() - started
    peak = resident("VmHWM") - bare
    return {
        "file_bytes": file_bytes,
        "dtype": dtype,
        "device": device,
        "parameter_bytes": sum(parameter.numel() * parameter.dtype.itemsize for parameter in model.parameters()),
        "load_seconds": round(seconds, 2),
        "read_seconds": round(read_seconds, 4),
        "bare_bytes": bare,
        "peak_bytes": peak,
        "after_bytes": resident("VmRSS") - bare,
        "peak_per_file": round(peak / file_bytes, 3),
        "spare": spare,
    }, model


def measure(folder: Path, dtype: str, device: str) -> dict:
    """Load the checkpoint in this process and let it answer."""
    from imp_kit.model.generate import generate
    from imp_kit.model.sampling import Sampling

    result, model = measure_load(folder, dtype, device)
    with torch.inference_mode():
        started = time.perf_counter()
        side = model.config.vision.image_size
        picture = model.encode(torch.rand(1, 3, side, side) * 2 - 1)[0]
        encoded = time.perf_counter()
        words = torch.randint(model.config.decoder.vocab_size, (40,)).tolist()
        prompt = model.splice([words[:35], picture, words[35:]])
        cache = model.new_cache(prompt.shape[1] + 8)
        ids, times = [], [time.perf_counter()]
        for row in generate(model, prompt, cache, Sampling(8), stop_ids=()):
            ids.append(row[0])
            times.append(time.perf_counter())
        finite = bool(picture.isfinite().all() and cache.buffer.tensor[..., : cache.length, :].isfinite().all())
    return result | {
        "finite": finite,
        "ids": ids,
        "encode_seconds": round(encoded - started, 2),
        "prefill_seconds": round(times[1] - times[0], 2),
        "picture_tokens": len(picture),
        "prompt_tokens": prompt.shape[1],
        "tokens_per_second": round((len(times) - 2) / (times[-1] - times[1]), 2),
        "peak_bytes_answering": resident("VmHWM") - result["bare_bytes"],
    }


def draw(results: dict[str, list[dict]], file: Path) -> None:
    """Seconds of a load, of reading the files alone, and the peak of memory, against the size of the files."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), dpi=100, layout="constrained")
    times, memory = figure.subplots(1, 2)
    names = sorted(results, key=lambda name: results[name][0]["file_bytes"])
    sizes = [results[name][0]["file_bytes"] / 1e9 for name in names]

    def medians(key: str) -> list[float]:
        return [median(result[key] for result in results[name]) for name in names]

    times.plot(sizes, medians("load_seconds"), "o-", color="#1b9e77", label="load")
    times.plot(sizes, medians("read_seconds"), "s--", color="#d95f02", label="read the files, no more")
    times.set(ylabel=f"seconds (medians of {LOADS})")
    peaks = [peak / 1e9 for peak in medians("peak_bytes")]
    memory.plot(sizes, peaks, "o-", color="#1b9e77", label="peak of memory while loading")
    memory.plot(sizes, sizes, "--", color="#d95f02", label="as much as the files")
    memory.set(ylabel="GB over the interpreter with torch")
    dtype = results[names[0]][0]["dtype"]
    for axes in (times, memory):
        axes.set(xlabel=f"GB of files (fp16, loaded as {dtype} on a CPU)", xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, loc="upper left" if axes is times else "lower right")
    for name, size, peak in zip(names, sizes, peaks, strict=True):
        aside = {"xytext": (-8, 0), "ha": "right"} if size > 1 else {"xytext": (10, 0), "ha": "left"}
        memory.annotate(name, (size, peak), textcoords="offset points", **aside)
    figure.savefig(file)


def load_alone(folder: Path, dtype: str, device: str) -> dict:
    """Measure in a new process, whose memory holds nothing of the writing."""
    command = [sys.executable, __file__, "--folder", folder, "--dtype", dtype, "--device", device, "--measure"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", metavar="NAME", help=f"some of {', '.join(PUBLISHED)}")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--plot", "--picture", type=Path)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sparse", action="store_true", help="weights of 0, which take no disk")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.folder, options.dtype, options.device), indent=2))
        return
    if unknown := [name for name in options.checkpoints if name not in PUBLISHED]:
        parser.error(f"there is no {unknown[0]!r}; choose from {', '.join(PUBLISHED)}")
    if not options.checkpoints and not options.plot:
        parser.error("name a checkpoint, or --plot, which also measures imp-nano")
    folders = {name: options.folder / name for name in options.checkpoints}
    if options.plot:
        folders = {"imp-nano": NANO_FOLDER, **folders}
    results = {}
    for name, folder in folders.items():
        if not (folder / "config.json").exists():
            print(f"writing {folder} ...", file=sys.stderr)
            write(folder, name, sparse=options.sparse)
        results[name] = [load_alone(folder, options.dtype, options.device) for _ in range(LOADS)]
        print(json.dumps({name: results[name]}, indent=2))
    if options.plot:
        draw(results, options.plot)


if __name__ == "__main__":
    main()
