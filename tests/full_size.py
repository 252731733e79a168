"""Time and memory of loading an Imp of full size: `python tests/full_size.py --checkpoint imp-v1-3b --folder DIR`.

Writes an Imp of the published sizes with random fp16 weights into DIR unless it is there (5 to 9 GB of disk), loads it
as bf16 on the CPU in a process of its own and prints JSON. Only Linux tells a process' memory in the way that is used
here.
"""

import argparse
import json
import struct
import subprocess
import sys
import time
from pathlib import Path

import torch

from imp_kit.published import CHECKPOINTS, TOWER

SHARD_BYTES = 1.5e9


def write(folder: Path, checkpoint: str) -> None:
    """Write the checkpoint tensor by tensor, so that no more than one of them is in memory."""
    from oracle import SO400M, Oracle, checkpoint_tensors, config_values

    family, decoder, side, layout = CHECKPOINTS[checkpoint]
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        oracle = Oracle(family, decoder, SO400M | {"image_size": side})
    shards, room = [], 0
    for name, tensor in checkpoint_tensors(oracle, layout).items():
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
        write_shard(folder / file, shapes)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}), "utf-8")
    config = {**config_values(oracle, layout), "mm_vision_tower": TOWER}
    del config["vision_config"]  # the published files only name their tower
    # Last, so that a folder with a config.json is a whole one.
    (folder / "config.json").write_text(json.dumps(config, indent=2), "utf-8")


def write_shard(file: Path, shapes: dict[str, torch.Size]) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * shape.numel()
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as target:
        target.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            norm = len(shape) == 1 and name.endswith("weight")
            # Values as at the start of a training: nothing overflows.
            values = torch.ones(shape) if norm else torch.randn(shape).mul_(0.02)
            target.write(values.half().numpy().tobytes())


def resident(field: str) -> int:
    """Bytes that this process has in memory (VmRSS), or had at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def measure(folder: Path) -> dict:
    """Load the checkpoint in this process and let it answer."""
    import safetensors.torch  # noqa: F401 - counts as part of the bare interpreter

    from imp_kit.model.generate import generate
    from imp_kit.model.weights import load_weights
    from imp_kit.sampling import Sampling

    file_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    bare = resident("VmRSS")
    started = time.perf_counter()
    model, spare = load_weights(folder, torch.device("cpu"), torch.bfloat16, frozen=True)
    seconds = time.perf_counter() - started
    peak = resident("VmHWM") - bare
    result = {
        "file_bytes": file_bytes,
        "parameter_bytes": sum(parameter.nbytes for parameter in model.parameters()),
        "load_seconds": round(seconds, 1),
        "bare_bytes": bare,
        "peak_bytes": peak,
        "after_bytes": resident("VmRSS") - bare,
        "peak_per_file": round(peak / file_bytes, 3),
        "spare": spare,
    }
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
        finite = bool(picture.isfinite().all() and cache.store.tensor[..., : cache.length, :].isfinite().all())
    return result | {
        "finite": finite,
        "ids": ids,
        "encode_seconds": round(encoded - started, 2),
        "prefill_seconds": round(times[1] - times[0], 2),
        "picture_tokens": len(picture),
        "prompt_tokens": prompt.shape[1],
        "tokens_per_second": round((len(times) - 2) / (times[-1] - times[1]), 2),
        "peak_bytes_answering": resident("VmHWM") - bare,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", choices=CHECKPOINTS, default="imp-v1-3b")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.folder), indent=2))
        return
    if not (options.folder / "config.json").exists():
        print(f"writing {options.folder} ...", file=sys.stderr)
        write(options.folder, options.checkpoint)
    # In a new process, whose memory holds nothing of the writing.
    subprocess.run([sys.executable, __file__, "--folder", options.folder, "--measure"], check=True)


if __name__ == "__main__":
    main()
