"""One decoding step in several ways, side by side: which of them is worth its lines.

    python tests/tools/steps.py [--random NAME] [--device cuda] [--dtype auto] [--ways plain ...] [--json FILE]

"plain" launches each kernel from Python. "captured" is the kit's CUDA graph (imp_kit/model/cuda_graph.py). "compiled"
gives the same step to torch.compile(mode="reduce-overhead"), which fuses kernels and captures them itself. Prints a
table as Markdown: the time of a token, that of the start, how far the results are from the plain ones, and the lines of
code that only this way needs. Without --random the network is imp-nano.
"""

import argparse
import inspect
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from torch import Tensor

from imp_kit.checkpoints.hub import NANO_FOLDER
from imp_kit.checkpoints.load import load_weights
from imp_kit.checkpoints.published import published_config, random_model
from imp_kit.device import choose_device, choose_dtype
from imp_kit.errors import ImpKitError
from imp_kit.model import cuda_graph, decoder
from imp_kit.model.cuda_graph import StepGraph
from imp_kit.model.decoder import KVCache
from imp_kit.model.imp import ImpModel

CONTEXT = 773  # positions before the first step: an image and a question of imp-v1-3b
STARTS = 4  # calls until every way works as it will: the first are compared with the plain ones
STEPS, REPEATS = 32, 5  # with the context fewer than imp-nano's 1024 positions
Step = Callable[[Tensor], Tensor]


def plain(model: ImpModel, cache: KVCache) -> Step:
    return lambda ids: model.decoder(model.decoder.embed_tokens(ids)[:, None], cache)


def captured(model: ImpModel, cache: KVCache) -> Step:
    if model.device.type != "cuda":
        raise RuntimeError("a CUDA graph needs a GPU")
    step = StepGraph.of(model, cache, None)

    def call(ids: Tensor) -> Tensor:
        hidden = step(ids, cache)
        if step.graph is None:
            raise RuntimeError("the graph was refused; the warning says why")
        return hidden

    return call


def compiled(model: ImpModel, cache: KVCache) -> Step:
    step = StepGraph(model, cache.buffer.tensor, None)
    step.prepare(torch.zeros(cache.buffer.tensor.shape[2], dtype=torch.long, device=model.device), cache.length)
    for tensor in (step.tensor, step.ids, step.position, step.keys):  # what is written to in place must not be copied
        torch._dynamo.mark_static_address(tensor)
    table = decoder.rope_table(model.config.decoder, model.device)
    run = torch.compile(step.run, mode="reduce-overhead", fullgraph=True)

    def call(ids: Tensor) -> Tensor:
        step.ids.copy_(ids)
        with patch.object(decoder, "rope_table", lambda *_: table):  # else it would be computed again in each step
            return run()

    return call


WAYS = {"plain": plain, "captured": captured, "compiled": compiled}
OWN = {
    "plain": (plain,),
    "captured": (StepGraph.of, StepGraph.__call__, StepGraph._capture, cuda_graph.agrees),
    "compiled": (compiled,),
}


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def measure(model: ImpModel, ways: list[str], context: int = CONTEXT, steps: int = STEPS) -> dict[str, dict]:
    """Each way's figures, seconds; a way that does not work here has its reason as "error"."""
    device, found = model.device, {}
    expected: list[Tensor] = []
    ids = torch.randint(model.config.decoder.vocab_size, (STARTS, 1), device=device)
    for name in ways:
        cache = model.new_cache(context + STARTS + REPEATS * steps)
        cache.buffer.tensor.fill_(0.01)
        cache.length = context
        entry: dict = {"lines": sum(len(inspect.getsource(part).splitlines()) for part in OWN[name])}
        found[name] = entry
        try:
            wait(device)
            begun = time.perf_counter()
            step = WAYS[name](model, cache)
            results = [step(row).clone() for row in ids]
            wait(device)
            start = time.perf_counter() - begun
            times = []
            for _ in range(REPEATS):
                begun = time.perf_counter()
                for _ in range(steps):
                    step(ids[0])
                wait(device)
                times.append((time.perf_counter() - begun) / steps)
        except Exception as error:  # whatever a compiler raises: the other ways are measured all the same
            entry["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            continue
        expected = expected or results
        largest = max(float(result.abs().max()) for result in expected)
        entry |= {
            "token_seconds": median(times),
            "start_seconds": max(0.0, start - STARTS * median(times)),
            "difference": max(float((a - b).abs().max()) for a, b in zip(results, expected, strict=True)) / largest,
        }
    return found


def table(result: dict) -> str:
    """The result as Markdown."""
    lines = [
        f"{result['network']}, {result['dtype']}, {result['device_name']}, torch {result['torch']}: "
        f"medians of {REPEATS} times {STEPS} steps after {CONTEXT} positions.\n",
        "| a step | ms a token | start | difference | lines of its own |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, entry in result["ways"].items():
        figures = (
            entry["error"] + " | | "
            if "error" in entry
            else f"{entry['token_seconds'] * 1e3:.2f} | {entry['start_seconds']:.1f} s | {entry['difference']:.1e}"
        )
        lines.append(f"| {name} | {figures} | {entry['lines']} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", metavar="NAME", help="a published size with random weights, such as imp-v1-3b")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=list(WAYS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    try:
        device = choose_device(options.device)
        dtype = choose_dtype(options.dtype, device) or torch.float32
        if options.random:
            model = random_model(published_config(options.random), device, dtype)
        else:
            model, _ = load_weights(NANO_FOLDER, device, dtype)
    except ImpKitError as error:
        sys.exit(f"imp-kit: {error}")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    result = {
        "network": f"{options.random} with random weights" if options.random else "imp-nano",
        "dtype": str(dtype).removeprefix("torch."),
        "device_name": name,
        "torch": torch.__version__,
        "ways": measure(model, options.ways),
    }
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2), "utf-8")


if __name__ == "__main__":
    main()
