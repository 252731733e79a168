"""LoRA on the decoder: what is learned, the training beside transformers' classes with peft, merging, and bad input."""

import csv
import gc
import json
import math
import os
import shutil
import signal
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from forms import FORMS, write
from oracle import make_oracle, write_checkpoint
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from quick import quick
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import imp_kit
from imp_kit.checkpoints.load import fill, load_weights
from imp_kit.checkpoints.plan import plan_folder
from imp_kit.checkpoints.tokenizer import TextTokenizer
from imp_kit.errors import Stopped
from imp_kit.finetuning import adapters, run, training
from imp_kit.finetuning.adapters import add_adapters, collect_adapters, write_merged
from imp_kit.finetuning.examples import EncodedExample, Example, ImageFeatures, encode_example, opening_ids
from imp_kit.finetuning.training import answer_loss, batches, rate
from imp_kit.images import to_pixels
from imp_kit.model.generate import generate
from imp_kit.model.sampling import Sampling
from imp_kit.prompts import TEMPLATES
from imp_kit.tools.cli import main

CPU = torch.device("cpu")
LAYOUTS = {"old": "imp", "new": "imp", "qwen": "imp_qwen2", "phi3": "imp_phi3"}
ALL = ("qkv", "out", "up", "down")
# What transformers' classes call the parts of each layer, in the order of the rows.
PARTS = {
    "qkv": ("q_proj", "k_proj", "v_proj", "qkv_proj"),
    "out": ("dense", "o_proj"),
    "up": ("fc1", "gate_proj", "up_proj", "gate_up_proj"),
    "down": ("fc2", "down_proj"),
}
QUESTION = "What is it?"
pytestmark = pytest.mark.filterwarnings("ignore:The loss ended:UserWarning")  # these runs are too short to learn


@pytest.fixture(autouse=True)
def older_objects_are_frozen():
    """Each run ends with a search for objects that refer to each other, and libraries have a million of them."""
    gc.freeze()
    yield
    gc.unfreeze()


def image_of(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (61, 61, 3), np.uint8))


def tiny(layout: str, folder: Path, **settings) -> Path:
    return write_checkpoint(make_oracle(3, LAYOUTS[layout]), folder, layout, **settings)


def randomise(model) -> None:
    """Adapters that count, as after a training."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def rows_for(model, tokenizer, examples) -> tuple[list[int], list[EncodedExample], torch.Tensor]:
    rows = [encode_example(example, model.config, tokenizer) for example in examples]
    features = ImageFeatures(model)
    return opening_ids(tokenizer, model.config.family), rows, torch.stack([features(example) for example in examples])


EXAMPLES = [
    Example(image_of(1), QUESTION, "a helpful answer", "Example 1"),
    Example(image_of(2), "What does the assistant give, and to whom?", "A", "Example 2"),
    Example(image_of(3), "Who asks?", "the curious user asks the assistant about it", "Example 3"),
]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A CSV with two images, and a checkpoint."""
    there = tmp_path_factory.mktemp("original")
    tiny("new", there / "base")
    (there / "pictures").mkdir()
    for seed in (1, 2):
        image_of(seed).save(there / "pictures" / f"{seed}.png")
    lines = ["image,question,answer,note", f'pictures/1.png,{QUESTION},"a user, helpful",x']
    (there / "examples.csv").write_text("\n".join([*lines, f"pictures/2.png,{QUESTION},the picture,"]), "utf-8")
    return there


@pytest.fixture
def folder(original, tmp_path):
    """A copy of the original, which a test may spoil."""
    return shutil.copytree(original, tmp_path / "folder")


def tune(folder: Path, **settings) -> Path:
    values = {"checkpoint": folder / "base", "examples": folder / "examples.csv", "out": folder / "tuned"} | settings
    return imp_kit.finetune(**({"device": "cpu", "progress": False} | values))


def left(folder: Path) -> list[str]:
    return sorted(set(os.listdir(folder)) - {"base", "examples.csv", "pictures"})


# What is learned ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", quick(1, (FORMS[number] for number in (14, 11, 0, 2))), ids=str)
def test_what_is_trained_on_is_what_ask_reads(form, tmp_path):
    imp = imp_kit.load(write(form, tmp_path / "a"), device="cpu", dtype="fp32")
    read = []
    imp.model.decoder.embed_tokens.register_forward_hook(lambda _, ids, __: read.extend(ids[0].flatten().tolist()))
    imp.ask(EXAMPLES[0].image, QUESTION, max_new_tokens=1)
    row = encode_example(Example(None, QUESTION, " red and white\n", ""), imp.model.config, imp.tokenizer)
    assert opening_ids(imp.tokenizer, form.family) + row.ids[: row.start] == read
    template = TEMPLATES[form.family]
    *answer, stop = row.ids[row.start :]
    assert answer == imp.tokenizer.encode(template.answer + "red and white", begins=False)
    assert stop == imp.tokenizer.control[template.stop]
    assert stop in imp.stop_ids


@pytest.mark.parametrize("layout", quick(1, ("old", "phi3")))
def test_a_checkpoint_learns_its_examples_and_loads(layout, folder):
    shutil.rmtree(folder / "base")
    tiny(layout, folder / "base", shards=3)
    out = tune(folder, epochs=30, learning_rate=0.01, batch_size=2)
    assert out == folder / "tuned"
    with (out / "log.csv").open(newline="") as opened:
        head, *rows = csv.reader(opened)
    assert head == ["step", "loss"]
    assert [int(step) for step, _ in rows] == list(range(1, 31))
    assert float(rows[-1][1]) < 0.1 * float(rows[0][1])
    imp = imp_kit.load(out, device="cpu")
    for seed, answer in ((1, "a user, helpful"), (2, "the picture")):
        assert str(imp.ask(folder / "pictures" / f"{seed}.png", QUESTION)) == answer
    assert imp.name == "tuned"
    assert left(folder) == ["tuned"]
    assert set(os.listdir(out)) == set(os.listdir(folder / "base")) | {"log.csv", "finetune.json"}


def test_the_new_checkpoint_says_how_it_was_made_and_is_no_published_one(folder):
    made = json.loads((tune(folder, rank=2) / "finetune.json").read_text("utf-8"))
    base = imp_kit.imp.identify(folder / "base", device="cpu")
    assert made["base"] == "base"
    assert made["files"] == base["files"]
    assert (made["rank"], made["alpha"], made["targets"], made["examples"]) == (2, 2.0, list(ALL), 2)
    tuned = imp_kit.imp.identify(folder / "tuned", device="cpu")
    assert tuned["checkpoint"] == "tuned"
    assert tuned["files"] != base["files"]


def test_the_function_is_what_its_name_gives():
    import imp_kit.finetuning.run

    assert imp_kit.finetune is run.finetune
    assert "finetune" in dir(imp_kit)


def test_the_same_seed_gives_the_same_checkpoint(folder):
    def weights(**settings):
        out = tune(folder, rank=2, batch_size=1, **settings)
        return (out / "model.safetensors").read_bytes()

    first = weights(out=folder / "a", seed=1)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert weights(out=folder / "b", seed=1) == first
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random numbers go on as if nothing had been
    assert weights(out=folder / "c", seed=2) != first


@pytest.mark.parametrize("dtype", quick(1, ("bf16", "fp16")))
def test_16_bits_train_too_and_adapters_are_fp32(dtype, folder, monkeypatch):
    dtypes = set()
    collect = adapters.collect_adapters

    def look(model):
        dtypes.update((("lora_" in name, parameter.dtype)) for name, parameter in model.named_parameters())
        return collect(model)

    monkeypatch.setattr(run, "collect_adapters", look)
    out = tune(folder, dtype=dtype, epochs=6, learning_rate=0.03, targets=["qkv"])
    assert dtypes == {(False, getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}[dtype])), (True, torch.float32)}
    losses = np.loadtxt(out / "log.csv", delimiter=",", skiprows=1)[:, 1]
    assert losses[-1] < 0.8 * losses[0]


# The training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["new", "qwen", "phi3"])
def test_loss_and_gradients_are_those_of_transformers_with_peft(layout, tmp_path):
    """Three rows of different lengths, adapters that count; peft on separate products has the sum of their gradients.

    One product with the factors (B of q over k over v) @ A is three products that share A.
    """
    oracle = make_oracle(3, LAYOUTS[layout])
    model, _ = load_weights(write_checkpoint(oracle, tmp_path / "a", layout), CPU, torch.float32)
    opening, rows, features = rows_for(model, TextTokenizer(tmp_path / "a"), EXAMPLES)
    trained = add_adapters(model, 4, 6.0, ALL, seed=0)
    randomise(model)
    loss = answer_loss(model, opening, features, rows)
    loss.backward()
    assert all(parameter.grad is not None for parameter in trained)

    language = oracle.language
    names = {name.rsplit(".", 1)[-1] for name, _ in language.named_modules()}
    inject_adapter_in_model(
        LoraConfig(r=4, lora_alpha=6, target_modules=sorted(names & set(sum(PARTS.values(), ())))), language
    )
    ours = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    theirs = {name: layer for name, layer in language.named_modules() if hasattr(layer, "lora_A")}
    pairs = []
    for name, layer in ours.items():
        _, _, index, _, kind = name.split(".")
        prefix = f"model.layers.{index}."
        parts = [
            theirs[path]
            for part in PARTS[kind]
            for path in theirs
            if path.startswith(prefix) and path.endswith(f".{part}")
        ]
        pairs.append((layer, parts))
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        starts = b.detach().split([part.lora_B["default"].weight.shape[0] for part in parts])
        for part, start in zip(parts, starts, strict=True):
            part.lora_A["default"].weight.data.copy_(a)
            part.lora_B["default"].weight.data.copy_(start)
    assert sum(len(parts) for _, parts in pairs) == len(theirs)

    words = language.get_input_embeddings()
    longest = max(len(row.ids) for row in rows)
    embeddings, labels, masks = [], [], []
    for row, example in zip(rows, EXAMPLES, strict=True):
        pixels = to_pixels(example.image, model.config.vision.image_size)
        seen, pad = oracle.embed(opening, pixels, row.ids), longest - len(row.ids)
        answer = row.ids[row.start :]
        length = seen.shape[1]
        embeddings.append(torch.cat((seen, words(torch.zeros(1, pad, dtype=torch.long))), dim=1))
        labels.append([-100] * (length - len(answer)) + answer + [-100] * pad)
        masks.append([1] * length + [0] * pad)
    output = language(
        inputs_embeds=torch.cat(embeddings), labels=torch.tensor(labels), attention_mask=torch.tensor(masks)
    )
    output.loss.backward()
    assert abs(output.loss.item() - loss.item()) < 1e-5
    largest = 0.0
    for layer, parts in pairs:
        a, b = layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad
        torch.testing.assert_close(a, sum(part.lora_A["default"].weight.grad for part in parts), rtol=0, atol=1e-5)
        torch.testing.assert_close(
            b, torch.cat([part.lora_B["default"].weight.grad for part in parts]), rtol=0, atol=1e-5
        )
        largest = max(largest, a.abs().max().item(), b.abs().max().item())
    assert largest > 0.1


def test_a_batch_is_the_mean_over_the_tokens_of_its_rows(tmp_path):
    model, _ = load_weights(tiny("old", tmp_path / "a"), CPU, torch.float32)
    opening, rows, features = rows_for(model, TextTokenizer(tmp_path / "a"), EXAMPLES)
    counts = [len(row.ids) - row.start for row in rows]
    assert len({len(row.ids) for row in rows}) == 3
    alone = [answer_loss(model, opening, features[i : i + 1], rows[i : i + 1]).item() for i in range(3)]
    mean = sum(count * loss for count, loss in zip(counts, alone, strict=True)) / sum(counts)
    assert answer_loss(model, opening, features, rows).item() == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("layout", ["old", "phi3"])
def test_the_loss_is_the_likelihood_by_which_rank_judges(layout, tmp_path):
    """`Imp.rank` reads the prompt with a cache, and its log-likelihood is the sum over answer and stop tokens."""
    imp = imp_kit.load(tiny(layout, tmp_path / "a"), device="cpu", dtype="fp32")
    imp.engine.stop_ids = frozenset({imp.tokenizer.control[imp.template.stop]})  # the one that is learned
    model, _ = load_weights(tmp_path / "a", CPU, torch.float32)
    opening, rows, features = rows_for(model, imp.tokenizer, EXAMPLES[:1])
    (candidate,) = imp.rank(EXAMPLES[0].image, QUESTION, [EXAMPLES[0].answer])
    assert candidate.tokens == len(rows[0].ids) - rows[0].start
    loss = answer_loss(model, opening, features, rows).item()
    assert loss * candidate.tokens == pytest.approx(-candidate.log_likelihood, abs=1e-4)


def test_only_adapters_are_trained_and_the_rest_stays(tmp_path):
    model, _ = load_weights(tiny("old", tmp_path / "a"), CPU, torch.float32)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    opening, rows, _ = rows_for(model, TextTokenizer(tmp_path / "a"), EXAMPLES)
    trained = add_adapters(model, 2, 2.0, ("qkv", "down"), seed=0)
    learnable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(learnable) == len(trained) == 2 * 2 * 3  # factors, targets, layers
    assert all("lora_" in name for name in learnable)
    assert not any("mlp.up" in name or "attention.out" in name for name in learnable)
    schedule = {"epochs": 1, "learning_rate": 0.01, "batch_size": 2, "seed": 0, "progress": False}
    training.train(model, trained, opening, rows, ImageFeatures(model), tmp_path / "log.csv", **schedule)
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, before[name.replace("base_layer.", "")])
            assert parameter.grad is None


def test_blocks_computed_once_more_give_the_same_gradients(tmp_path, monkeypatch):
    model, _ = load_weights(tiny("qwen", tmp_path / "a"), CPU, torch.float32)
    opening, rows, features = rows_for(model, TextTokenizer(tmp_path / "a"), EXAMPLES)
    trained = add_adapters(model, 2, 2.0, ALL, seed=0)
    randomise(model)
    answer_loss(model, opening, features, rows).backward()
    plain = [parameter.grad for parameter in trained]
    runs = []
    model.decoder.layers[0].norm.register_forward_hook(lambda *_: runs.append(1))
    for parameter in trained:
        parameter.grad = None
    training.recompute_blocks(model)  # a small model's stay as they are
    answer_loss(model, opening, features, rows).backward()
    assert len(runs) == 1
    monkeypatch.setattr(training, "is_small", lambda _: False)
    for parameter in trained:
        parameter.grad = None
    training.recompute_blocks(model)
    answer_loss(model, opening, features, rows).backward()
    assert len(runs) == 3
    for parameter, grad in zip(trained, plain, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, OSError, torch.OutOfMemoryError], ids=str)
def test_the_memory_of_a_run_is_free_after_it(error, folder, monkeypatch):
    """At once, for the next try may need it: also where a notebook keeps the error, and before Python's next search of
    objects that refer to each other.
    """
    weights, caught = [], None
    filled, loss = run.fill, training.answer_loss
    monkeypatch.setattr(training, "is_small", lambda _: False)

    def watched(*values):
        model = filled(*values)
        weights.extend(map(weakref.ref, model.parameters()))
        return model

    def fail(*values):
        made = loss(*values)
        if error:
            raise error("no more")
        return made

    monkeypatch.setattr(run, "fill", watched)
    monkeypatch.setattr(training, "answer_loss", fail)
    gc.disable()
    try:
        tune(folder, rank=2)
    except (imp_kit.ImpKitError, Stopped) as raised:
        caught = raised
    finally:
        kept = sum(weight() is not None for weight in weights)
        gc.enable()
    assert (caught is None) == (error is None)
    assert len(weights) > 80
    assert kept == 0


def test_the_rate_rises_in_a_line_and_falls_as_a_cosine():
    rates = [rate(step, 200) for step in range(200)]
    assert rates[:6] == pytest.approx([number / 6 for number in range(1, 7)])
    assert rates[6] == 1
    assert rates[103] == pytest.approx(0.5)  # half of the way from step 6 to 200
    assert 0 < rates[-1] < 1e-3
    assert max(rates) == 1
    assert rate(0, 1) == 1


def test_each_epoch_has_every_example_once_in_another_order():
    rows = [EncodedExample(example, [number], 0) for number, example in enumerate(EXAMPLES * 5)]
    drawn = [[row.ids[0] for row in batch] for batch in batches(rows, 4, epochs=2, seed=3)]
    assert [len(batch) for batch in drawn] == [4, 4, 4, 3] * 2
    first, second = sum(drawn[:4], []), sum(drawn[4:], [])
    assert sorted(first) == sorted(second) == list(range(15))
    assert first != second
    assert drawn == [[row.ids[0] for row in batch] for batch in batches(rows, 4, epochs=2, seed=3)]


def test_features_are_kept_up_to_a_limit_and_are_the_same_beyond(tmp_path, monkeypatch):
    model, _ = load_weights(tiny("old", tmp_path / "a"), CPU, torch.float32)
    encoded = []
    monkeypatch.setattr(model, "encode", lambda pixels: encoded.append(1) or type(model).encode(model, pixels))
    whole = ImageFeatures(model)
    for example in EXAMPLES * 2:
        whole.prepare(example)
    assert len(encoded) == 3
    size = whole(EXAMPLES[0]).nbytes
    small = ImageFeatures(model, limit=2 * size)
    for example in EXAMPLES:
        small.prepare(example)
    assert len(encoded) == 5
    for example in EXAMPLES:
        assert torch.equal(small(example), whole(example))
        assert not small(example).requires_grad
        assert not small(example).is_inference()
    assert len(encoded) == 8


# Merging --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_merged_equals_unmerged(layout, tmp_path):
    plan = plan_folder(tiny(layout, tmp_path / "base", shards=3))
    model = fill(plan, CPU, torch.float32)
    pixels = to_pixels(EXAMPLES[0].image, model.config.vision.image_size)

    def answer(model):
        with torch.inference_mode():
            prompt = model.splice([[1, 2, 3], model.encode(pixels[None])[0], [4, 5, 6, 7]])
            scores = model.decoder.logits(model.decoder(prompt))
            made = generate(model, prompt, model.new_cache(64), Sampling(max_new_tokens=20), ())
            return scores, [token for (token,) in made]

    plain, _ = answer(model)
    add_adapters(model, 4, 6.0, ALL, seed=0)
    assert torch.equal(answer(model)[0], plain)  # peft begins with nothing
    randomise(model)
    scores, tokens = answer(model)
    assert (scores - plain).abs().max() > 0.1
    (tmp_path / "merged").mkdir()
    write_merged(plan, tmp_path / "base", collect_adapters(model), tmp_path / "merged", progress=False)
    merged_scores, merged_tokens = answer(imp_kit.load(tmp_path / "merged", device="cpu", dtype="fp32").model)
    assert (merged_scores - scores).abs().max() <= 1e-4
    assert merged_tokens == tokens
    assert len(set(tokens)) > 5


@pytest.mark.parametrize("form", quick(1, (FORMS[number] for number in (14, 0, 8, 12))), ids=str)
def test_files_have_the_form_of_the_source(form, tmp_path):
    """Same files, keys in the same order, dtypes and metadata; sums rounded once, the rest bit for bit."""
    source, target = write(form, tmp_path / "a"), tmp_path / "b"
    target.mkdir()
    plan = plan_folder(source)
    model = fill(plan, CPU, torch.float32)
    add_adapters(model, 4, 6.0, ("qkv", "up"), seed=0)
    randomise(model)
    learned = collect_adapters(model)
    write_merged(plan, source, learned, target, progress=False)
    changed = 0
    for file in sorted(target.iterdir()):
        if file.suffix != ".safetensors":
            assert file.read_bytes() == (source / file.name).read_bytes()
            continue
        size = int.from_bytes(file.read_bytes()[:8], "little")
        assert file.read_bytes()[: 8 + size] == (source / file.name).read_bytes()[: 8 + size]
        before, after = load_file(source / file.name), load_file(file)
        for key, tensor in before.items():
            slot = plan.slots[key]
            if slot.parameter not in learned:
                assert torch.equal(after[key], tensor)
                continue
            changed += 1
            adapter = learned[slot.parameter]
            whole = 6 / 4 * adapter.b.double() @ adapter.a.double()
            exact = tensor.double() + whole[slot.start : slot.stop]
            half = 2.0 ** -{torch.float16: 11, torch.bfloat16: 8}[tensor.dtype]
            assert ((after[key].double() - exact).abs() <= half * exact.abs() * (1 + 1e-4) + 2**-24).all()
            assert not torch.equal(after[key], tensor)
    assert changed == sum(slot.parameter in learned for slot in plan.slots.values()) > 3
    names = {file.name for file in target.iterdir()}
    assert {"config.json", "generation_config.json"} & set(os.listdir(source)) <= names
    with safe_open(target / min(name for name in names if name.endswith("safetensors")), "np") as opened:
        assert opened.metadata() == {"format": "pt"}
    load_weights(target, CPU, torch.float32)


def test_code_and_pickles_stay_behind(folder):
    for name in ("modeling_imp.py", "pytorch_model.bin", "notes.txt"):
        (folder / "base" / name).write_text("x")
    out = tune(folder, rank=2)
    assert not {file.suffix for file in out.iterdir()} & {".py", ".bin", ".txt", ".pt"}


def test_weights_too_large_for_their_dtype(folder):
    shutil.rmtree(folder / "base")
    plan = plan_folder(tiny("new", folder / "base", dtype=torch.float16))
    model = fill(plan, CPU, torch.float32)
    add_adapters(model, 1, 1e9, ("out",), seed=0)
    randomise(model)
    (folder / "b").mkdir()
    with pytest.raises(imp_kit.CheckpointError, match="holds what is no number as float16. Choose a smaller learning_"):
        write_merged(plan, folder / "base", collect_adapters(model), folder / "b", progress=False)


# Runs that end early --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(("module", "name", "call"), [(training, "answer_loss", 2), (adapters, "read_tensor", 5)])
def test_a_killed_run_leaves_nothing_under_its_name(module, name, call, folder, monkeypatch):
    child = os.fork()
    if not child:
        signal.alarm(1000)  # should it hang: a thread of the parent may have held a lock
        torch.set_num_threads(1)  # the parent's other threads are not here
        calls, function = [], getattr(module, name)

        def killed(*values):
            calls.append(1)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*values)

        setattr(module, name, killed)
        tune(folder, epochs=3)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    (unfinished,) = left(folder)
    assert unfinished.startswith(".tuned.")
    assert unfinished.endswith(".unfinished")
    imp_kit.load(tune(folder), device="cpu")


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_run_leaves_nothing(error, folder, monkeypatch):
    def stop(*_):
        assert len(left(folder)) == 1
        raise error

    monkeypatch.setattr(run, "write_merged", stop)
    with pytest.raises(Stopped if error is KeyboardInterrupt else error) as caught:
        tune(folder)
    assert left(folder) == []
    if error is KeyboardInterrupt:
        assert f"nothing was written to {folder / 'tuned'}" in str(caught.value)


def test_a_disk_that_is_full_and_a_name_that_is_taken_meanwhile(folder, monkeypatch):
    def taken(*_):
        (folder / "tuned" / "other").mkdir(parents=True)

    monkeypatch.setattr(run, "_tune", taken)
    with pytest.raises(
        imp_kit.RunError, match=r"tuned was made by another program .* the new checkpoint is in .*\.tuned"
    ):
        tune(folder)
    assert len(left(folder)) == 2
    assert [(folder / name / "finetune.json").exists() for name in left(folder)] == [True, False]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "_tune", full)
    with pytest.raises(imp_kit.RunError, match="could not be written .*No space left on device"):
        tune(folder, out=folder / "new")
    assert len(left(folder)) == 2


def test_a_training_that_diverges_stops_and_writes_nothing(folder):
    with pytest.raises(
        imp_kit.RunError, match="^The training diverged: the loss is no number from step 2 to step 4 of 10"
    ):
        tune(folder, learning_rate=1e30, epochs=10)
    with pytest.raises(imp_kit.RunError, match="from step 2 to step 2 of 2"):
        tune(folder, learning_rate=1e30, epochs=2)
    assert left(folder) == []


def test_damaged_weights_are_no_divergence(folder):
    file = folder / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"][5] = math.nan
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(imp_kit.CheckpointError, match="no number from the first step on: the checkpoint's weights are"):
        tune(folder)
    assert left(folder) == []


def test_a_loss_worse_than_a_guess_is_said(folder):
    with pytest.warns(UserWarning, match="a blind guess among all tokens has 5.7: nothing useful was learned"):
        tune(folder, learning_rate=1e-9)


# Bad input ------------------------------------------------------------------------------------------------


BAD = {
    "rank": [0, -1, 1.5, True, "16", 10**6, None],
    "epochs": [0, 1.5, None],
    "batch_size": [0, "8"],
    "seed": [-1, 0.5, None],
    "alpha": [0, -1, math.nan, math.inf, "16", 1e300, 10**400],
    "learning_rate": [0, -1e-4, math.nan, None, "fast", 1e38, 10**400],
    "targets": ["q_proj", ["qkv", "lm_head"], [], [3], 7, np.array(["up", "lm_head"])],
    "out": ["", None, 5, "a\0b"],
    "device": ["tpu"],
    "dtype": ["fp8"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_setting_that_makes_no_sense(name, value, folder):
    with pytest.raises(imp_kit.SettingError, match=name) as caught:
        tune(folder, **{name: value})
    assert "\n" not in str(caught.value)
    assert left(folder) == []


CSV = {  # text of the file -> class and message of the error
    "": ("SettingError", "has no column 'image' and no column 'question' and no column 'answer'; its columns are none"),
    "image,question\npictures/1.png,What?": ("SettingError", "no column 'answer'; its columns are 'image', 'question'"),
    "image;question;answer\n": ("SettingError", "its columns are 'image;question;answer'"),
    "image,question,answer\n": ("SettingError", "there are no examples"),
    "image,question,answer\n\n,What?,A": ("ImageError", "line 3: the column 'image' is empty"),
    "image,question,answer\nnone.png,What?,A": ("ImageError", "line 2: .*none.png.*no such file"),
    "image,question,answer\npictures,What?,A": ("ImageError", "line 2: .*pictures.* folder"),
    "image,question,answer\nexamples.csv,What?,A": ("ImageError", "line 2: .*examples.csv'"),
    "image,question,answer\npictures/1.png, ,A": ("PromptError", "line 2: The question is empty"),
    "image,question,answer\npictures/1.png,<image>,A": ("PromptError", "line 2: The question contains <image>"),
    "image,question,answer\npictures/1.png,What?,\u200b": ("PromptError", "line 2: the answer is empty"),
    "image,question,answer\npictures/1.png,What?": ("PromptError", "line 2: the answer is empty"),
    'image,question,answer\npictures/1.png,What?,"a bus\npictures/2.png,Who?,a cat': (
        "SettingError",
        "cannot be read as CSV",
    ),
    "image,question,answer,answer\npictures/1.png,What?,red,blue": ("SettingError", "column 'answer' more than once"),
    "image,question,answer\npictures/1.png,What?,red, blue": ("SettingError", "line 2 has more values than the first"),
    'image,question,answer\npictures/1.png,What?,"' + "a b " * 200 + '"': (
        "PromptError",
        r"line 2: image, question and answer are \d+ tokens long, and the checkpoint reads 256. Shorten the answer",
    ),
}


@pytest.mark.parametrize("text", CSV)
def test_a_file_of_examples_that_cannot_be_used(text, folder):
    kind, message = CSV[text]
    (folder / "examples.csv").write_text(text, "utf-8")
    with pytest.raises(getattr(imp_kit, kind), match=message) as caught:
        tune(folder)
    assert "examples.csv" in str(caught.value)
    assert left(folder) == []


def test_a_file_that_is_no_csv(folder):
    (folder / "examples.csv").write_bytes("image,question,answer\nö,ö,ö".encode("utf-16"))
    with pytest.raises(imp_kit.SettingError, match="is not in UTF-8"):
        tune(folder)
    with pytest.raises(imp_kit.SettingError, match=r"There is no file .*none.csv; give a CSV with the columns"):
        tune(folder, examples=folder / "none.csv")
    with pytest.raises(imp_kit.SettingError, match="cannot be read as CSV"):
        tune(folder, examples=folder)


def test_a_file_as_excel_writes_it(folder):
    """With a mark at its start, blanks in the names, and a text of two lines."""
    text = f'image, question ,answer\r\npictures/1.png,{QUESTION},"a\r\nb"\r\n'
    (folder / "examples.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (example,) = imp_kit.finetuning.examples.read_examples(str(folder / "examples.csv"))
    assert example[:3] == (folder / "pictures/1.png", QUESTION, "a\r\nb")


@pytest.mark.parametrize(
    ("examples", "kind", "message"),
    [
        ([], "SettingError", "there are no examples"),
        (7, "SettingError", "examples is 7; give the path of a CSV file, or a list"),
        (["abc"], "SettingError", "Example 1 is 'abc'; give"),
        ([{"image": 1, "question": 2, "answer": 3}], "SettingError", "Example 1 is {.*; give"),
        ([EXAMPLES[0][:3], EXAMPLES[1][:2]], "SettingError", "Example 2 is"),
        ([(None, "What?", "A")], "ImageError", "Example 1: there is no image"),
        ([(b"no image", "What?", "A")], "ImageError", "Example 1: "),
        ([("nowhere.png", "What?", "A")], "ImageError", "Example 1: .*nowhere.png"),
        ([(EXAMPLES[0].image, 3, "A")], "PromptError", "Example 1: A question is text, not int"),
        ([(EXAMPLES[0].image, "What?", 3)], "PromptError", "Example 1: the answer is 3; give a text"),
        ([(EXAMPLES[0].image, "What?", "\udcff")], "PromptError", "Example 1: the answer .* bytes that are no text"),
    ],
)
def test_a_list_of_examples_that_cannot_be_used(examples, kind, message, folder):
    with pytest.raises(getattr(imp_kit, kind), match=message):
        tune(folder, examples=examples)
    assert left(folder) == []


def test_an_out_that_cannot_be_a_new_checkpoint(folder):
    (folder / "taken").mkdir()
    (folder / "link").symlink_to(folder / "nowhere")
    (folder / "file").write_text("")
    os.symlink(folder / "base", folder / "other")
    for out, message in {
        "taken": "which is there already",
        "link": "which is there already",
        "file": "which is there already",
        "base": "which is there already",
        "base/tuned": "inside the checkpoint's own folder",
        "other/tuned": "inside the checkpoint's own folder",
        "file/tuned": "no folder can be made there",
        "Imp-Nano": "named as a published checkpoint",
        "imp-v1-3b": "named as a published checkpoint",
    }.items():
        with pytest.raises(imp_kit.SettingError, match=message):
            tune(folder, out=folder / out)
    assert left(folder) == ["file", "link", "other", "taken"]
    assert not (folder / "base" / "tuned").exists()


def test_what_is_missing_is_named(folder, monkeypatch):
    with pytest.raises(imp_kit.CheckpointError, match="There is no folder"):
        tune(folder, checkpoint=folder / "none")
    shutil.copytree(folder / "base", folder / "cut")
    (folder / "cut" / "tokenizer.json").unlink()
    with pytest.raises(imp_kit.CheckpointError, match="tokenizer"):
        tune(folder, checkpoint=folder / "cut")
    shutil.rmtree(folder / "cut")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(imp_kit.SettingError, match="^Fine-tuning needs peft: pip install peft.$"):
        tune(folder)
    assert left(folder) == []


def test_a_peft_that_does_not_fit_is_said(folder, monkeypatch):
    monkeypatch.delitem(sys.modules, "peft")
    monkeypatch.setattr(run, "require", lambda *_, **__: None)

    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "peft":
                raise ImportError("cannot import name 'Cache' from 'transformers'")

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(imp_kit.SettingError, match=r"cannot be imported \(cannot import name 'Cache'.*'peft<0.14'"):
        tune(folder)


def test_too_little_memory_or_disk(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(training, "free_memory", lambda _: 1000)
        with pytest.raises(imp_kit.MemoryLimitError, match="A batch of 2 examples needs .*a smaller batch_size"):
            tune(folder)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
        with pytest.raises(imp_kit.SettingError, match="0 MB are free; the new checkpoint takes"):
            tune(folder)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(training, "answer_loss", full)
    with pytest.raises(imp_kit.MemoryLimitError, match="batches of 8 needs more memory .* choose a smaller batch_size"):
        tune(folder)
    assert left(folder) == []


# The command ----------------------------------------------------------------------------------------------


def test_the_command(folder, capsys):
    arguments = ["finetune", str(folder / "base"), str(folder / "examples.csv"), "--out", str(folder / "tuned")]
    settings = ["--rank", "2", "--alpha", "3", "--targets", "qkv", "down", "--device", "cpu", "--batch-size", "1"]
    main([*arguments, *settings])
    shown = capsys.readouterr()
    assert shown.out.startswith(f"The new checkpoint is in {folder / 'tuned'}")
    made = json.loads((folder / "tuned" / "finetune.json").read_text("utf-8"))
    assert (made["rank"], made["alpha"], made["targets"], made["batch_size"]) == (2, 3.0, ["qkv", "down"], 1)
    assert "training: 100%" in shown.err
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "which is there already" in capsys.readouterr().err


def test_the_command_interrupted(folder, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", stop)
    with pytest.raises(SystemExit) as ended:
        main(["finetune", str(folder / "base"), str(folder / "examples.csv"), "--out", str(folder / "tuned")])
    assert ended.value.code == 130
    assert f"imp-kit: stopped; nothing was written to {folder / 'tuned'}, so it begins anew." in capsys.readouterr().err
    assert left(folder) == []
