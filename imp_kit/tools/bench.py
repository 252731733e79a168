"""How fast Imp is on this machine, compared with the machine's limits and with transformers' own classes."""

import inspect
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from imp_kit import __version__
from imp_kit.checkpoints.config import read_family
from imp_kit.checkpoints.files import read_json
from imp_kit.checkpoints.hub import Snapshot, find
from imp_kit.checkpoints.key_maps import NEW_PHI
from imp_kit.checkpoints.load import load_weights
from imp_kit.checkpoints.plan import slots
from imp_kit.checkpoints.published import HashTokenizer, published_config, random_model
from imp_kit.checkpoints.tokenizer import TextTokenizer
from imp_kit.device import DTYPES, bf16_is_faster, choose_device, choose_dtype, is_small
from imp_kit.errors import CheckpointError, SettingError
from imp_kit.images import to_pixels
from imp_kit.imp import Imp, View, choose_checkpoint, identify, load
from imp_kit.model.config import DecoderConfig, ImpConfig, VisionConfig
from imp_kit.model.decoder import Block, KVCache
from imp_kit.model.generate import BLOCKS, generate
from imp_kit.model.imp import ImpModel
from imp_kit.model.packed_linear import DECODER, check_quantize, pack_linear, pack_model
from imp_kit.model.sampling import Sampling
from imp_kit.system.cpu_meter import CpuMeter
from imp_kit.system.extras import require

QUESTIONS = ("What are the colors of the bus in the image?", "How many windows can you see in the image?")
ENOUGH = 400_000_000  # bytes that a measurement of bandwidth reads, so that no cache holds them
SQUARE = 4096  # side of the matrices whose product shows the rate of arithmetic
PRODUCT = 2e10  # operations that such a measurement does at least, where the matrices are small
LENGTHS, BATCHES = (1024, 2048, 3072), (1, 2, 4, 8, 16)  # how cost grows
ANSWER = 1000  # new tokens of the answer whose peak of a GPU's memory is measured
NAMES = {"encode": "picture encoding", "prefill": "prompt", "decode 1": "decode", "decode 8": "decode, batch 8"}
COMPARED = tuple(NAMES)[:3]
ENDED = "`python -m imp_kit doctor --why` explains such an end."
AGAINST = {"transformers": "transformers", "transformers-static": "transformers, static cache"}


def bench(
    checkpoint: str | os.PathLike | None = None,
    *,
    random: str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    quantize: str | None = None,
    against: str | None = None,
    repeats: int = 5,
    growth: bool = False,
    progress: bool = True,
) -> dict:
    """Measure a checkpoint, or a published size with `random` weights ("imp-v1-3b"), and the limits of this machine.

    `checkpoint`, `device`, `dtype`, `revision` and `quantize` as in `imp_kit.load`. `against` "transformers" runs the
    same weights through transformers' classes, in turns with the kit; with "transformers-static" their `generate` has
    a static cache, for which it compiles the steps on a GPU. Every time is the median of `repeats` after a
    warm-up, with the smallest and the largest; seconds, bytes and operations. A small model on a CPU is
    measured with one thread, as it answers a single question; "busy" of the result says if other programs used the
    CPUs. `growth` measures longer prompts and larger batches, too. `table`, `draw` and `draw_growth` show the result,
    which JSON can hold.
    Raises SettingError before anything is loaded, CheckpointError or MemoryLimitError.
    """
    device = choose_device(device)
    chosen = choose_dtype(dtype, device)
    check_quantize(quantize)
    if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
        raise SettingError(f"repeats is {repeats!r}; give a whole number from 1.")
    if random is not None and (checkpoint is not None or revision is not None):
        raise SettingError("Give a checkpoint or the size of random weights, not both.")
    if random is None:
        checkpoint = choose_checkpoint(device)[0] if checkpoint is None else checkpoint
        _check_against(against, lambda: read_family(read_json(find(checkpoint, revision).folder / "config.json")))
        subject = identify(checkpoint, device=device, dtype=dtype, revision=revision)
        chosen = DTYPES[str(subject["dtype"])]
        settings = {"device": str(device), "dtype": subject["dtype"], "revision": revision, "quantize": quantize}
        memory = run_alone("bench", "measure_load", os.fspath(checkpoint), settings)
        snapshot = find(checkpoint, revision)
        tokenizer, model = TextTokenizer(snapshot.folder), load_weights(snapshot.folder, device, chosen)[0]
    else:
        config = published_config(random)
        _check_against(against, lambda: config.family)
        chosen = chosen or (torch.bfloat16 if bf16_is_faster() else torch.float32)
        snapshot, memory = Snapshot(f"{random} with random weights", Path(), None), {}
        tokenizer = cast(TextTokenizer, HashTokenizer(config.decoder.vocab_size))  # has what is called of one
        model = random_model(config, device, chosen)
        subject = {"checkpoint": snapshot.name}
    reference = (
        Transformers(model, against == "transformers-static") if against else None
    )  # views of the weights, made before pack_model hides them
    pack_model(model, quantize)
    costs = Costs.of(model)
    imp = Imp(model, tokenizer, snapshot, "you asked for it", quantize)

    before = tokenizer.encode_pieces(imp.template.open(), begins=True)
    after, after_second = (tokenizer.encode_pieces(imp.template.ask(question, first=True)) for question in QUESTIONS)
    patches = model.config.vision.num_patches
    prefix_length = len(before) + patches
    length = prefix_length + len(after)
    tokens = 128 if device.type == "cuda" else 32 if is_small(model) else 16
    warm_up = 1 + 2 * BLOCKS.get(device.type, 1)  # steps that are not timed: on a GPU the first ones prepare the others
    side = model.config.vision.image_size
    images = iter([noise_image(seed) for seed in range(repeats + 3)])
    pixels = to_pixels(next(images), side, False)[None].to(device, chosen)
    features = model.encode(pixels)[0].detach()
    views: list[View] = []
    timed = partial(measure_times, repeats=repeats, device=device)

    def ask_first():
        views[:] = [imp.look(next(images))]  # another image each time, as the kit keeps what it has read
        views[0].ask(QUESTIONS[0], max_new_tokens=1)

    def entry(work: list, call: Callable, *prepare: Callable, **facts: int) -> dict:
        return {"seconds": timed(call, *prepare, parts=facts.get("steps", 1)), "work": work, **facts}

    def decode(context: int, batch: int) -> dict:
        start = model.splice([[0]]).expand(batch, -1, -1)
        work = [costs.read(1, context + warm_up + tokens // 2, batch)]
        return entry(work, list, _steps(model, start, context, warm_up, tokens), batch=batch, steps=tokens)

    def prefill(pieces: Sequence) -> dict:
        prompt = model.splice(pieces)
        return entry([costs.read(prompt.shape[1], 0)], list, _steps(model, prompt, 0, 0, 1))

    def ask_second() -> dict:
        return entry(
            [costs.read(len(after_second), prefix_length)], lambda: views[0].ask(QUESTIONS[1], max_new_tokens=1)
        )

    stages = [  # where in the result, and what is put there
        (("limits",), partial(_limits, model, length, quantize, timed)),
        (("figures", "encode"), lambda: entry([costs.encode()], lambda: model.encode(pixels))),
        (("figures", "prefill"), lambda: prefill([before, features, after])),
        (("figures", "decode 1"), lambda: decode(length, 1)),
        (("figures", "decode 8"), lambda: decode(length, 8)),
        (("figures", "first question"), lambda: entry([costs.encode(), costs.read(length, 0)], ask_first)),
        (("figures", "second question"), ask_second),
    ]
    if device.type == "cuda" and not (reference and quantize):  # first, while only the kit's weights are in memory
        answer = partial(imp.ask, next(images), QUESTIONS[0], max_new_tokens=ANSWER)
        stages.insert(0, (("memory", "gpu_peak_bytes"), lambda: answer().peak_memory))
    if reference:
        stages.append((("against",), partial(_compare, model, reference, pixels, before, after, tokens, repeats)))
    if growth:
        longest = model.config.decoder.max_positions - warm_up - tokens
        for n in sorted({length, *(min(n, longest) for n in LENGTHS)}):
            stages.append((("growth", "prefill", str(n)), partial(prefill, [[0] * n])))
            stages.append((("growth", "context", str(n)), partial(decode, n, 1)))
        for batch in BATCHES:
            stages.append((("growth", "batch", str(batch)), partial(decode, length, batch)))
    result = {
        **subject,
        **describe_machine(device),
        "dtype": str(chosen).removeprefix("torch."),
        "quantize": quantize,
        "repeats": repeats,
        "prompt_tokens": length,
        "picture_tokens": patches,
        "decoded_tokens": tokens,
        "weight_bytes": costs.weight_bytes,
        "memory": memory,
    }
    if reference:
        result["against_name"] = AGAINST[against or ""]
        result["versions"]["transformers"] = metadata.version("transformers")
    meter = CpuMeter()
    with imp.engine.threads.use(imp.engine.threads.count()), tqdm(stages, desc="bench", disable=not progress) as bar:
        result["threads"] = torch.get_num_threads()
        for path, measure in bar:
            bar.set_description(" ".join(path))
            target = result
            for name in path[:-1]:
                target = target.setdefault(name, {})
            target[path[-1]] = measure()
    result["busy"] = meter.warning()
    for group in (result["figures"], *result.get("growth", {}).values()):
        for figure in group.values():
            _compare_with_limits(figure, result["limits"])
    return result


def check_files(written: str | None, *plots: str | None) -> None:
    """Raise SettingError for a file that a result cannot be written to, or drawn into."""
    drawn = [file for file in plots if file]
    if drawn:
        require("measure", "matplotlib", what="A plot of the result")
    for file in filter(None, (written, *drawn)):
        path = Path(file)
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise SettingError(f"{file!r} cannot be written; name a file in a folder that is there.")
    for file in drawn:
        if Path(file).suffix.lower() not in (".png", ".svg", ".pdf"):
            raise SettingError(f"{file!r} cannot hold a plot; let its name end in .png, .svg or .pdf.")


def _check_against(against: str | None, family: Callable[[], str]) -> None:
    if against is None:
        return
    if against not in AGAINST:
        raise SettingError(f"against is {against!r}; the kit can be compared with {' or '.join(map(repr, AGAINST))}.")
    require("official", what="The comparison")
    if against == "transformers-static" and not has_static_cache():
        raise SettingError(
            f"transformers {metadata.version('transformers')} does not compile steps on a static cache; install a "
            "newer one, or compare with 'transformers'."
        )
    if family() != "imp":
        raise SettingError(f"Only a checkpoint with Phi-2 can be compared with transformers, not {family()!r}.")


def has_static_cache() -> bool:
    """Whether the installed transformers compiles the steps of `generate` where the cache is static: 4.56 does."""
    version = re.match(r"(\d+)\.(\d+)", metadata.version("transformers"))
    return version is not None and (int(version[1]), int(version[2])) >= (4, 56)


@dataclass(frozen=True)
class Costs:
    """What a model has to compute (operations) and to read (bytes) at least; each method returns both."""

    config: ImpConfig
    layers: int  # weights that every token is multiplied with,
    head: int  # and those that only a last token is
    tower: int  # those of tower and projector
    itemsize: int  # bytes of a key, of a value, or of a weight of the tower
    weight_bytes: int  # that are read for a token: the decoder's without the table of embeddings

    @classmethod
    def of(cls, model: ImpModel) -> "Costs":
        """Count the weights of a model, packed or not."""
        total = {part: sum(p.numel() for p in part.parameters() if p.ndim > 1) for part in model.children()}
        layers = sum(p.numel() for p in model.decoder.layers.parameters() if p.ndim > 1)
        tower = total[model.vision] - model.vision.embeddings.position_embedding.weight.numel() + total[model.projector]
        head = model.decoder.lm_head.weight
        read = [head, *(p for p in model.decoder.layers.parameters() if p.ndim > 1)]
        size = sum(weight.numel() * weight.dtype.itemsize for weight in read)
        return cls(model.config, layers, head.numel(), tower, model.dtype.itemsize, size)

    def read(self, tokens: int, context: int, batch: int = 1) -> tuple[float, float]:
        """Read `tokens` after `context` others, in each row of the batch, with the scores of each row's last token."""
        sizes = self.config.decoder
        pairs = tokens * context + tokens * (tokens + 1) / 2
        attention = 4 * sizes.num_layers * sizes.hidden_size * pairs
        flops = batch * (2 * self.layers * tokens + 2 * self.head + attention)
        cache = sizes.kv_values_per_token * (context + tokens) * self.itemsize
        return flops, self.weight_bytes + batch * cache

    def encode(self) -> tuple[float, float]:
        """Tower and projector over one image."""
        sizes = self.config.vision
        attention = 4 * sizes.used_layers * sizes.hidden_size * self.config.vision.num_patches**2
        return 2 * self.tower * self.config.vision.num_patches + attention, self.tower * self.itemsize


def run_alone(module: str, function: str, *arguments: Any) -> Any:
    """What a function of a module of imp_kit.tools returns, run in a process that did nothing else; all is JSON.

    Raises CheckpointError with the last thing that the process said, or the signal that ended it.
    """
    code = f"import json, sys\nfrom imp_kit.tools import {module}\n"
    code += f"print(json.dumps({module}.{function}(*json.loads(sys.argv[1]))))"
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # a notebook may have found the kit by its path
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | paths)
    if done.returncode < 0:
        name = signal.strsignal(-done.returncode) or f"signal {-done.returncode}"
        raise CheckpointError(f'Measuring {arguments[0]} ({arguments[1]}) ended with "{name}". {ENDED}')
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise CheckpointError(f"{arguments[0]} cannot be measured in a process of its own: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def forget_peak() -> int | None:
    """Let the peak of this process' memory begin now: the bytes that it has; None where the system is not Linux."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return resident("VmRSS")
    except OSError:
        return None


def measure_load(checkpoint: str, settings: dict) -> dict:
    """Load a checkpoint in this process: seconds, and the peak of its memory above what the imports took.

    The peak is known on Linux alone.
    """
    import safetensors.torch  # noqa: F401 - counts as part of the bare interpreter

    torch.ones(1, device=settings["device"])  # so does CUDA's own start
    bare = forget_peak()
    start = time.perf_counter()
    imp = load(checkpoint, **settings)
    _wait(imp.model.device)
    seconds = time.perf_counter() - start
    peak = None if bare is None else resident("VmHWM") - bare
    return {"load_seconds": seconds, "file_bytes": weight_file_bytes(imp.snapshot.folder), "load_peak_bytes": peak}


def weight_file_bytes(folder: Path) -> int:
    """Bytes of the files that hold a checkpoint's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def _limits(model: ImpModel, length: int, quantize: str | None, timed: Callable) -> dict:
    """The machine's limits: bytes a second ("bandwidth") and operations a second ("rate"), by what was measured.

    The matrices have the shapes of the decoder's MLP and are too many for any cache; plain, and as the kit packs them.
    """
    sizes, device, dtype = model.config.decoder, model.device, model.dtype
    packed_size = cast(Block, model.decoder.layers[0]).mlp.up.weight.dtype.itemsize
    up = sizes.intermediate_size * (2 if sizes.gated else 1)
    shapes = ((sizes.hidden_size, up), (sizes.intermediate_size, sizes.hidden_size))
    amount = sum(math.prod(shape) for shape in shapes)
    layers = math.ceil(ENOUGH / amount / packed_size)
    prompt_layers = math.ceil(PRODUCT / (2 * amount * length))  # that the product of a prompt needs
    stack = [nn.Linear(*shape, device=device, dtype=dtype) for shape in shapes * max(layers, prompt_layers)]
    row, prompt = ({n: torch.randn(m, n, device=device).to(dtype) for n, _ in shapes} for m in (1, length))
    found: dict[str, Any] = {"bandwidths": {}, "rates": {}}

    def per_second(kind: str, name: str, total: float, call: Callable) -> None:
        seconds = timed(call)
        found[kind][name] = {"median": total / seconds["median"], "seconds": seconds}

    forms: dict[str, tuple[int, list]] = {
        "plain": (dtype.itemsize, stack),
        "packed": (dtype.itemsize, [pack_linear(DECODER, m) for m in stack]),
    }
    if packed_size < dtype.itemsize:
        for module in stack:  # so that fp16 holds their values
            module.weight.detach().copy_(module.weight.half())
        forms[quantize or "fp16"] = (packed_size, [pack_linear(DECODER, module, quantize) for module in stack])
    for name, (size, modules) in forms.items():
        for kind, what, inputs, count, each in (
            ("bandwidths", "matrix times vector", row, layers, amount * size),
            ("rates", "product of the prompt", prompt, prompt_layers, 2 * amount * length),
        ):

            def products(chosen=modules[: 2 * count], x=inputs):
                for module in chosen:
                    module(x[module.weight.shape[1]])

            per_second(kind, f"{name} {what}", count * each, products)
    del stack, forms, modules
    square = torch.randn(SQUARE, SQUARE, device=device).to(dtype)
    per_second("rates", f"product of {SQUARE} x {SQUARE}", 2 * SQUARE**3, lambda: square @ square)
    if device.type == "cuda":
        values = torch.ones(ENOUGH // 4, device=device)
        target = torch.zeros_like(values)
        per_second("bandwidths", "copy", 2 * values.nbytes, lambda: target.copy_(values))
    found["bandwidth"], found["rate"] = (max(e["median"] for e in found[k].values()) for k in ("bandwidths", "rates"))
    return found


def _steps(model: ImpModel, start: Tensor, context: int, warm_up: int, count: int) -> Callable:
    """What prepares `count` steps from `start`, (batch, n, hidden_size), after a context and `warm_up` steps.

    The context's keys and values are any number: reading a prompt of that length is another figure.
    """
    cache = model.new_cache(context + start.shape[1] + warm_up + count, len(start))
    cache.buffer.tensor.fill_(0.01)

    def prepare():
        cache.length = context
        steps = generate(model, start, cache, Sampling(warm_up + count), stop_ids=())
        list(islice(steps, warm_up))
        return steps

    return prepare


def noise_image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (480, 640, 3), dtype=np.uint8))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _clock(call: Callable, device: torch.device) -> tuple[float, Any]:
    """Seconds of a call, and what it returned."""
    _wait(device)
    start = time.perf_counter()
    with torch.inference_mode():
        value = call()
    _wait(device)
    return time.perf_counter() - start, value


def measure_times(
    call: Callable, prepare: Callable | None = None, *, repeats: int, device: torch.device, parts: int = 1
) -> dict:
    """Seconds of a call, or of each of its equal `parts`; its argument comes from `prepare`, which is not timed."""
    calls = (partial(call, prepare()) if prepare else call for _ in range(repeats + 1))
    return spread([_clock(ready, device)[0] / parts for ready in calls][1:])


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def _compare_with_limits(entry: dict, limits: dict) -> None:
    """Add to a figure the seconds that the limits allow, and which share of the limit the measured time is."""
    needs = [(flops / limits["rate"], size / limits["bandwidth"]) for flops, size in entry["work"]]
    allowed = sum(map(max, needs))
    entry["limit_seconds"], entry["share"] = allowed, allowed / entry["seconds"]["median"]
    entry["bound"] = "arithmetic" if sum(a for a, _ in needs) > sum(b for _, b in needs) else "bandwidth"


class Transformers:
    """The same network in transformers' own classes, whose weights are views of the kit's.

    The tower has neither the last layer nor the head, which Imp does not read. `static`: the cache of `generate`.
    """

    def __init__(self, model: ImpModel, static: bool = False):
        from accelerate import init_empty_weights
        from transformers import PhiConfig, PhiForCausalLM, SiglipVisionConfig, SiglipVisionModel

        self._is_static, self._cache, self._capacity = static, cast(Any, None), 0
        sizes, vision = model.config.decoder, model.config.vision
        phi = PhiConfig(
            **_sizes(sizes, sizes.num_layers),
            vocab_size=sizes.vocab_size,
            max_position_embeddings=sizes.max_positions,
            partial_rotary_factor=sizes.rotary_dim / sizes.head_dim,
            rope_theta=sizes.rope_theta,
            bos_token_id=0,  # old versions call for one, without reading it
            eos_token_id=None,  # answers are cut by their length alone
            pad_token_id=0,
        )
        patches = {"patch_size": vision.patch_size, "image_size": vision.image_size}
        with init_empty_weights():  # but with their buffers, which no checkpoint holds
            self.language = PhiForCausalLM(phi)
            names = inspect.signature(self.language.forward).parameters
            self._cache_name = "cache" if "cache" in names else "past_key_values"  # renamed in transformers 5
            tower = SiglipVisionModel(SiglipVisionConfig(**_sizes(vision, vision.used_layers), **patches))
            width = sizes.hidden_size
            self.projector = nn.Sequential(nn.Linear(vision.hidden_size, width), nn.GELU(), nn.Linear(width, width))
        self.tower = getattr(tower, "vision_model", tower)  # before 5.x the class wraps the tower
        self.tower.post_layernorm = self.tower.head = nn.Identity()
        parameters = dict(model.named_parameters())
        left = {key: parameters[s.parameter][s.start : s.stop] for key, s in slots(model, NEW_PHI).items()}
        parts = {f"{NEW_PHI.tower}vision_model.": self.tower, NEW_PHI.projector: self.projector, "": self.language}
        for prefix, part in parts.items():
            views = {key.removeprefix(prefix): left.pop(key) for key in list(left) if key.startswith(prefix)}
            part.load_state_dict(views, assign=True)
            part.to(model.device).eval()

    def encode(self, pixels: Tensor) -> Tensor:
        """As `ImpModel.encode`."""
        return self.projector(self.tower(pixels).last_hidden_state)

    def answer(self, prompt: Tensor, tokens: int) -> list[int]:
        """`tokens` greedy token ids, by transformers' `generate` as Imp's own code calls it."""
        mask = torch.ones(prompt.shape[:2], dtype=torch.long, device=prompt.device)
        lengths = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        cache = {self._cache_name: self._static_cache(prompt.shape[1] + tokens)} if self._is_static else {}
        ids = self.language.generate(inputs_embeds=prompt, attention_mask=mask, do_sample=False, **lengths, **cache)[0]
        return ids[-tokens:].tolist()  # old versions give the first token of a text, too

    def _static_cache(self, length: int) -> Any:
        """An empty cache of at least this length: the same memory again, for which nothing has to be compiled anew."""
        from transformers import StaticCache

        if self._capacity < length:
            self._cache, self._capacity = StaticCache(config=self.language.config, max_cache_len=length), length
        else:
            self._cache.reset()
        return self._cache


def _sizes(config: DecoderConfig | VisionConfig, layers: int) -> dict:
    names = {"num_attention_heads": config.num_heads, "num_hidden_layers": layers, "layer_norm_eps": config.eps}
    return {"hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size, **names}


def _compare(
    model: ImpModel,
    reference: Transformers,
    pixels: Tensor,
    before: Sequence,
    after: Sequence,
    tokens: int,
    repeats: int,
) -> dict:
    """Image, prompt and answer by the kit and by transformers in turns: seconds of each, and transformers' / the kit's.

    The time of a token is that of an answer of `tokens`, without its first token, divided by the number of the others.
    """

    caches: dict[int, KVCache] = {}  # made once, as a GPU prepares its step for each

    def decode(prompt: Tensor, length: int) -> list[int]:
        cache = caches[length] = caches.get(length) or model.new_cache(prompt.shape[1] + length)
        cache.length = 0
        return [row[0] or 0 for row in generate(model, prompt, cache, Sampling(length), stop_ids=())]

    sides = {"kit": (model.encode, decode), "transformers": (reference.encode, reference.answer)}
    seconds: dict[str, list] = {side: [] for side in sides}
    ids = {}
    for _ in range(repeats + 1):
        for side, (encode, answer) in sides.items():
            encoded, features = _clock(partial(encode, pixels), model.device)
            prompt = model.splice([before, features[0], after])
            first, _ = _clock(partial(answer, prompt, 1), model.device)
            whole, ids[side] = _clock(partial(answer, prompt, tokens), model.device)
            seconds[side].append((encoded, first, (whole - first) / (tokens - 1)))
    found = {"same_tokens": ids["kit"] == ids["transformers"], "tokens": ids}
    for index, name in enumerate(COMPARED):
        ours, others = ([turn[index] for turn in seconds[side][1:]] for side in sides)
        ratio = spread([other / our for our, other in zip(ours, others, strict=True)])
        found[name] = {"kit": spread(ours), "transformers": spread(others), "ratio": ratio}
    return found


def describe_machine(device: torch.device) -> dict:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    info = Path("/proc/cpuinfo")
    if device.type == "cpu" and info.exists() and (found := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        name = found[1]
    return {
        "device": device.type,
        "device_name": name or platform.machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"imp-kit": __version__, "Python": platform.python_version(), "torch": torch.__version__},
    }


def _title(result: dict) -> str:
    return f"{result['checkpoint']}, {result['quantize'] or result['dtype']}, {result['device_name']}"


def table(result: dict) -> str:
    """A result of `bench` as Markdown: each figure with its spread and its share of the limit; limits; comparison."""
    limits, memory, versions = result["limits"], result["memory"], result["versions"]
    lines = [
        f"{_title(result)} ({result['device']}, {result['threads']} threads), {result['date']}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f". Medians of {result['repeats']}, smallest and largest in brackets.\n",
        "| what | measured | of its limit |",
        "| --- | --- | --- |",
    ]
    if memory.get("load_seconds"):
        size, peak = memory["file_bytes"], memory["load_peak_bytes"]
        peak_part = f", peak of host memory {peak / 1e9:.2f} GB, {peak / size:.2f} times as much" if peak else ""
        lines.append(f"| load (once) | {memory['load_seconds']:.2f} s for {size / 1e9:.2f} GB{peak_part} | |")
    if memory.get("gpu_peak_bytes"):
        lines.append(f"| GPU memory, at most {ANSWER} tokens | {memory['gpu_peak_bytes'] / 2**30:.2f} GiB | |")
    for key, entry in result["figures"].items():
        seconds, name = entry["seconds"], NAMES.get(key, f"{key} to its first token")
        name += f" of {result['prompt_tokens']} tokens" if key == "prefill" else ""
        lines.append(
            f"| {name} | {_format_seconds(seconds, entry.get('batch', 0))} | {entry['share']:.0%} ({entry['bound']}) |"
        )
    lines += ["", "| limit | measured |", "| --- | --- |"]
    for kind, unit in (("bandwidths", "GB/s"), ("rates", "GFLOP/s")):
        lines += [f"| {name} | {entry['median'] / 1e9:,.1f} {unit} |" for name, entry in limits[kind].items()]
    if against := result.get("against"):
        same = "the same" if against["same_tokens"] else "other"
        lines += ["", f"| {same} tokens | kit | {result['against_name']} | ratio |", "| --- | --- | --- | --- |"]
        for name in COMPARED:
            ratio = "{median:.2f} ({min:.2f}–{max:.2f})".format(**against[name]["ratio"])
            kit, other = (_format_seconds(against[name][side], name == "decode 1") for side in ("kit", "transformers"))
            lines.append(f"| {NAMES[name]} | {kit} | {other} | {ratio} |")
    if result["busy"]:
        lines += ["", result["busy"]]
    return "\n".join(lines)


def _format_seconds(seconds: dict, batch: int = 0) -> str:
    """Milliseconds; for a step of decoding with so many rows, tokens a second."""
    low, middle, high = (seconds[key] for key in ("min", "median", "max"))
    if batch:
        return f"{batch / middle:,.1f} tokens/s ({batch / high:,.1f}–{batch / low:,.1f})"
    return f"{middle * 1e3:,.1f} ms ({low * 1e3:,.1f}–{high * 1e3:,.1f})"


def draw(result: dict, file: str | os.PathLike | BinaryIO) -> None:
    """The roofline: operations a second against operations a byte, the two limits and the measured points."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    axes = figure.subplots()
    bandwidth, rate = result["limits"]["bandwidth"], result["limits"]["rate"]
    points = {}
    for key, name in NAMES.items():
        entry = result["figures"][key]
        [(flops, size)] = entry["work"]
        points[name] = (flops / size, flops / entry["seconds"]["median"] / 1e9, entry["share"])
    ends = (0.3 * min(x for x, *_ in points.values()), 5 * max(rate / bandwidth, *(x for x, *_ in points.values())))
    axes.loglog(ends, [x * bandwidth / 1e9 for x in ends], color="#d95f02", label=f"{bandwidth / 1e9:,.0f} GB/s")
    axes.axhline(rate / 1e9, color="#7570b3", label=f"{rate / 1e9:,.0f} GFLOP/s")
    for name, (x, y, share) in points.items():
        axes.plot(x, y, "o", color="#1b9e77")
        offset = (-8, 8) if name == "prompt" else (8, -12)  # the point of image encoding is close to it
        side = "right" if x > rate / bandwidth else "left"
        axes.annotate(f"{name}: {share:.0%}", (x, y), offset, textcoords="offset points", ha=side, fontsize=9)
    top = 3 * rate / 1e9
    axes.set(xlim=ends, ylim=(0.3 * min(y for _, y, _ in points.values()), top))
    axes.set(xlabel="operations per byte that must be read", ylabel="GFLOP/s")
    axes.set_title(_title(result), fontsize=10)
    axes.legend(title="limits measured in the same run", frameon=False, loc="lower right")
    axes.grid(which="major", alpha=0.3)
    figure.savefig(file)


def draw_growth(result: dict, file: str | os.PathLike) -> None:
    """How cost grows, from a result with `growth`: prompt and decoding by length, throughput by batch."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 3.6), dpi=100, layout="constrained")
    panels = (
        ("prefill", "tokens of the prompt", "ms to read the prompt", lambda s, n: s * 1e3),
        ("context", "tokens before the new one", "ms a token", lambda s, n: s * 1e3),
        ("batch", "answers at once", "tokens a second", lambda s, n: n / s),
    )
    for axes, (key, across, up, value) in zip(figure.subplots(1, 3), panels, strict=True):
        grown = {int(n): entry for n, entry in result["growth"][key].items()}
        measured = [value(entry["seconds"]["median"], n) for n, entry in grown.items()]
        axes.plot(list(grown), measured, "o-", color="#1b9e77", label="measured")
        allowed = [value(entry["limit_seconds"], n) for n, entry in grown.items()]
        axes.plot(list(grown), allowed, "--", color="#d95f02", label="limit")
        axes.set(xlabel=across, ylabel=up, xlim=(0, None), ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle(_title(result), fontsize=10)
    figure.savefig(file)
