"""The published repositories in their own file forms, with tiny random weights, in a hub cache under their own names.

`python tests/forms.py` tries each and prints a table; the tests in test_forms.py ask the same functions.

config.json and its like have the published keys, with sizes and ids made small. Weights come from transformers' classes
(oracle.py), tokenizers from `tokenizers` and `sentencepiece`, tokenizer.json from transformers' own fast classes. Where
it is not known how a file of the hub looks, there is a form for each way.
"""

import io
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
import transformers
from oracle import FAMILIES, OLD_NAMES, Oracle, SiglipImageProcessor, checkpoint_tensors
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import imp_kit
from imp_kit.checkpoints.registry import PUBLISHED

NEW_TRANSFORMERS = int(transformers.__version__.split(".")[0]) >= 5
COMMIT = "fedcba9876543210fedcba9876543210fedcba98"
NAMES = {"imp": "CodeGenTokenizer", "imp_qwen2": "Qwen2Tokenizer", "imp_phi3": "LlamaTokenizer"}
FIRST_ADDED = {"imp": 50257, "imp_qwen2": 151643, "imp_phi3": 32000}  # published ids from here on are made small
TOWER = {  # 26 of its 27 layers are stored and used
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 56,
    "layer_norm_eps": 1e-6,
}
TEXTS = [
    "A curious user asks the assistant about the picture; it gives helpful, detailed, and polite answers. ",
    "What are the colors of the bus in the image?\nThey're red and white, I'm sure: 12 34 2024.\r\n\tdef f(x):  return",
    "この男は何をしていますか?日本語で答えてください。",  # What is this man doing? Answer in Japanese.
    "그 남자는 무엇을 하고 있습니까? Größe, café, Ünïcödé. Привет, мир! مرحبا",
]


@dataclass(frozen=True)
class Form:
    """One way in which a published repository's files may look."""

    name: str  # in PUBLISHED
    what: str
    layout: str
    fast: bool  # tokenizer.json beside the older files
    config: dict = field(default_factory=dict)  # changes of config.json
    drop: tuple[str, ...] = ()  # files that this form lacks
    positions: int = 16  # of the tower
    change: Callable[[Path], None] = lambda folder: None

    @property
    def family(self) -> str:
        return PUBLISHED[self.name].config["model_type"]

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


def pairs(folder: Path) -> None:
    """tokenizer.json as tokenizers 0.20 and newer write it: a merge is a pair."""
    data = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    data["model"]["merges"] = [m if isinstance(m, list) else m.split(" ") for m in data["model"]["merges"]]
    data["model"]["ignore_merges"] = False
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), "utf-8")


def only_in(file: str) -> Callable[[Path], None]:
    """Added tokens behind the first two that tokenizer.json leaves to another file."""

    def change(folder: Path) -> None:
        data = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        last = sorted(token["id"] for token in data["added_tokens"])[-2:]
        data["added_tokens"] = [token for token in data["added_tokens"] if token["id"] not in last]
        (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), "utf-8")
        if file == "added_tokens.json":
            settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
            del settings["added_tokens_decoder"]
            (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
        else:
            (folder / "added_tokens.json").unlink()

    return change


def sub_folder(folder: Path) -> None:
    tower = folder / "siglip-so400m-patch14-196"
    tower.mkdir()
    (tower / "config.json").write_text(json.dumps({"model_type": "siglip", "vision_config": TOWER}), "utf-8")
    (tower / "model.safetensors").write_bytes(b"no tensors")


OLD_CONFIG = PUBLISHED["imp-v1.5-3b-196"].config
OWN_196 = {"mm_vision_tower": "siglip-so400m-patch14-196", "vision_tower_config": {"image_size": 196}}
FORMS = (
    Form("imp-v1-3b", "main", "new", True),
    Form("imp-v1-3b", "main, newer tokenizer.json", "new", True, change=pairs),
    Form("imp-v1-3b", "before April 2024", "old", False, {"": OLD_CONFIG}, drop=("generation_config.json",)),
    Form("imp-v1.5-3b-phi2", "main with tokenizer.json", "new", True),
    Form("imp-v1.5-3b-phi2", "main without tokenizer.json", "new", False),
    Form("imp-v1.5-3b-phi2", "main, padded", "new", False, {"image_aspect_ratio": "pad"}),
    Form("imp-v1.5-3b-phi2", "first upload", "old", False, {"": OLD_CONFIG}),
    Form("imp-v1.5-3b-phi2", "</s> in added_tokens.json only", "new", True, change=only_in("added_tokens.json")),
    Form("imp-v1.5-3b-196", "main", "old", True, positions=196, change=sub_folder),
    Form("imp-v1.5-3b-196", "its own tower's name", "old", True, OWN_196, positions=196, change=sub_folder),
    Form("imp-v1.5-3b-196", "no tower_config", "old", True, {"vision_tower_config": None}, positions=196),
    Form("imp-v1.5-2b-qwen1.5", "main without tokenizer.json", "qwen", False),
    Form("imp-v1.5-2b-qwen1.5", "main with tokenizer.json", "qwen", True),
    Form("imp-v1.5-2b-qwen1.5", "added_tokens.json only", "qwen", False, drop=("tokenizer_config.json",)),
    Form("imp-v1.5-4b-phi3", "main", "phi3", True),
    Form("imp-v1.5-4b-phi3", "main, newer tokenizer.json", "phi3", True, change=pairs),
    Form("imp-v1.5-4b-phi3", "<image> in the settings only", "phi3", True, change=only_in("tokenizer_config.json")),
    Form("imp-v1.5-4b-phi3", "tokenizer.model only", "phi3", False),
)


# Tokenizers -----------------------------------------------------------------------------------------------


@cache
def byte_level(family: str) -> tuple[dict[str, int], list[str]]:
    """Vocabulary and merges of a small byte-level BPE, another one for each family."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    size = 420 if family == "imp_qwen2" else 400
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 2, trainer)
    data = json.loads(tokenizer.to_str())["model"]
    return data["vocab"], [m if isinstance(m, str) else " ".join(m) for m in data["merges"]]


def sentencepiece_model(**settings) -> bytes:
    """tokenizer.model of a small BPE as LLaMA's: bytes for unknown characters, blanks kept, <unk>, <s>, </s>."""
    from sentencepiece import SentencePieceTrainer

    written = io.BytesIO()
    as_llama = {
        "model_type": "bpe",
        "vocab_size": 520,
        "byte_fallback": True,
        "character_coverage": 0.98,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "minloglevel": 2,
    }
    SentencePieceTrainer.train(sentence_iterator=iter(TEXTS * 2), model_writer=written, **(as_llama | settings))
    return written.getvalue()


def base_size(family: str) -> int:
    """How many ids there are below those of the added tokens."""
    if family == "imp_phi3":
        return 520
    return len(byte_level(family)[0]) + (family == "imp")


def small_id(family: str, id: int) -> int:
    """A published token id, made small."""
    if family == "imp" and id == 50256:
        return base_size(family) - 1
    return id if id < FIRST_ADDED[family] else id - FIRST_ADDED[family] + base_size(family)


def write_tokenizer(folder: Path, form: Form) -> None:
    """The tokenizer files of a form."""
    family, entry = form.family, PUBLISHED[form.name]
    added = {token: small_id(family, id) for token, id in entry.contents["added_tokens.json"].items()}
    _dump(folder / "added_tokens.json", added)
    specials = entry.contents.get("special_tokens_map.json") or {"eos_token": "</s>", "bos_token": "<|endoftext|>"}
    _dump(folder / "special_tokens_map.json", specials)
    vocabulary, merges = byte_level(family)
    if family == "imp":
        vocabulary = {**vocabulary, "<|endoftext|>": len(vocabulary)}
    _dump(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    if family == "imp_phi3":
        (folder / "vocab.json").unlink()  # what is left of Phi-2's stays: merges.txt
        (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    _dump(folder / "tokenizer_config.json", _settings(family, added, specials))
    if form.fast:
        with tempfile.TemporaryDirectory() as there:
            place = Path(there)
            for file in folder.iterdir():
                if file.name not in ("config.json", "merges.txt" if family == "imp_phi3" else ""):
                    shutil.copy(file, place / file.name)
            if family == "imp_phi3":  # Phi-3's own tokenizer.json has LLaMA's older normalizer beside "legacy": false
                settings = _settings(family, added, specials) | {"legacy": True}
                _dump(place / "tokenizer_config.json", settings)
            fast = getattr(transformers, f"{NAMES[family]}Fast", None) or getattr(transformers, NAMES[family])
            fast.from_pretrained(place).save_pretrained(place)
            shutil.copy(place / "tokenizer.json", folder / "tokenizer.json")


def _settings(family: str, added: dict[str, int], specials: dict) -> dict:
    """tokenizer_config.json, which no page shows: as the classes of the time save it."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    tokens = {id: {"content": token, **flags} for token, id in added.items()}
    for token in tokens.values():
        if token["content"].isspace():
            token |= {"normalized": True, "special": False}
        if family == "imp_phi3" and token["content"] not in ("<|endoftext|>", "<image>"):
            token["rstrip"] = True
    if family == "imp":
        tokens[base_size(family) - 1] = {"content": "<|endoftext|>", **flags}
    if family == "imp_phi3":
        for id, token in enumerate(("<unk>", "<s>", "</s>")):
            tokens[id] = {"content": token, **flags, "rstrip": token == "</s>"}
    named = {name: token if isinstance(token, (str, list)) else token["content"] for name, token in specials.items()}
    settings = {
        "added_tokens_decoder": {str(id): tokens[id] for id in sorted(tokens)},
        **named,
        "clean_up_tokenization_spaces": family == "imp",
        "model_max_length": 1024,
        "tokenizer_class": NAMES[family],
    }
    if family == "imp":
        settings |= {"add_prefix_space": False}
    elif family == "imp_qwen2":
        settings |= {"bos_token": None, "unk_token": None, "errors": "replace", "split_special_tokens": False}
        settings["auto_map"] = {"AutoTokenizer": ["tokenization_qwen2.Qwen2Tokenizer", None]}
    else:
        settings |= {"add_bos_token": True, "add_eos_token": False, "legacy": False, "sp_model_kwargs": {}}
        settings |= {"padding_side": "right", "use_default_system_prompt": False}
    return settings


def _dump(file: Path, value) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


# Checkpoints ----------------------------------------------------------------------------------------------


@cache
def oracle_of(family: str, dtype: str, positions: int) -> Oracle:
    """transformers' classes in a form's sizes, its values rounded as in the file."""
    sizes = dict(FAMILIES[family][2])
    sizes |= {"vocab_size": base_size(family) + 48, "max_position_embeddings": 1024}
    if family == "imp":
        # The old config.json leaves the first to its default.
        sizes |= {"intermediate_size": 4 * sizes["hidden_size"], "num_key_value_heads": sizes["num_attention_heads"]}
        sizes["rope_theta"] = 10000.0  # which the old one does not name
    if family == "imp_phi3":
        sizes |= {"sliding_window": 23, "original_max_position_embeddings": 1024}
    side = {16: 56, 196: 196}[positions]
    oracle = Oracle(family, sizes, TOWER | {"image_size": side})
    oracle.randomise(7)
    half = {"F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    with torch.no_grad():
        for part in (oracle.siglip, oracle.projector, oracle.language):
            for parameter in part.parameters():
                parameter.copy_(parameter.to(half))
    return oracle


def oracle_for(form: Form) -> Oracle:
    return oracle_of(form.family, PUBLISHED[form.name].dtype, form.positions)


def config_of(form: Form) -> dict:
    """config.json, key for key; what is a size or an id is made small."""
    entry, oracle, family = PUBLISHED[form.name], oracle_for(form), form.family
    published = {**form.config.get("", entry.config)}
    tower = {**TOWER, **({} if form.positions == 196 else {"image_size": oracle.tower["image_size"]})}
    if form.positions == 196:
        del tower["image_size"]  # 384, as the inferred config.json says
    for name, value in form.config.items():
        if name == "vision_tower_config" and value:
            published[name] = published[name] | value
        elif name:
            published[name] = value
    small = {**oracle.decoder}
    small |= {old: oracle.decoder.get(new) for new, old in OLD_NAMES.items()}
    small["rotary_dim"] = 8
    config = {}
    for name, value in published.items():
        if name.endswith("_token_id") or name == "image_token_index":
            value = small_id(family, value)
        elif name == "vision_tower_config" and value:
            value = {key: tower.get(key, each) for key, each in value.items()}
        elif name not in ("activation_function", "hidden_act") and value is not None and name in small:
            value = small[name]
        if not (name == "vision_tower_config" and value is None):
            config[name] = value
    return config


def write(form: Form, folder: Path) -> Path:
    """Write a form's files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    entry, oracle = PUBLISHED[form.name], oracle_for(form)
    _dump(folder / "config.json", config_of(form))
    ends = dict(entry.contents["generation_config.json"])
    for name, value in ends.items():
        if name.endswith("_token_id"):
            ids = [small_id(form.family, id) for id in (value if isinstance(value, list) else [value])]
            ends[name] = ids if isinstance(value, list) else ids[0]
    _dump(folder / "generation_config.json", ends)
    half = {"F16": torch.float16, "BF16": torch.bfloat16}[entry.dtype]
    tensors = checkpoint_tensors(oracle, form.layout, spares=False)
    tensors = {name: tensors[name].to(half).contiguous() for name in sorted(tensors)}
    shards = [name for name in entry.files if name.endswith(".safetensors")]
    places = {name: shards[number % len(shards)] for number, name in enumerate(tensors)}
    for shard in shards:
        part = {name: tensor for name, tensor in tensors.items() if places[name] == shard}
        save_file(part, folder / shard, {"format": "pt"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    _dump(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})
    write_tokenizer(folder, form)
    form.change(folder)
    for name in form.drop:
        (folder / name).unlink()
    return folder


def put_in_cache(form: Form, cache: Path) -> Path:
    """Lay a form out as the hub's client does, blobs and links to them; returns the snapshot's folder."""
    repository = cache / f"models--{PUBLISHED[form.name].hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for place in (repository / "refs", repository / "blobs"):
        place.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    whole = write(form, repository / "whole")
    for number, file in enumerate(sorted(file for file in whole.rglob("*") if file.is_file())):
        link = snapshot / file.relative_to(whole)
        link.parent.mkdir(parents=True, exist_ok=True)
        file.rename(repository / "blobs" / f"{number:064x}")
        link.symlink_to(Path(*[".."] * (2 + len(link.relative_to(snapshot).parts) - 1), "blobs", f"{number:064x}"))
    shutil.rmtree(whole)
    return snapshot


def published_tokenizer(form: Form, folder: Path):
    """transformers' own tokenizer class for a repository, on its files: the one that AutoTokenizer takes.

    Imp's authors train and save Phi-2's and Qwen1.5's with the slow class.
    """
    name = NAMES[form.family]
    slow = getattr(transformers, name)
    fast = getattr(transformers, f"{name}Fast", None) or slow
    with tempfile.TemporaryDirectory() as place:  # without config.json, whose auto_map names code
        if form.change is pairs:  # which old versions of transformers cannot read
            folder = Path(place) / "base"
            folder.mkdir()
            write_tokenizer(folder, form)
        for file in folder.iterdir():
            if "token" in file.name or file.name in ("vocab.json", "merges.txt"):
                shutil.copy(file, place)
        if form.family == "imp_phi3" and NEW_TRANSFORMERS:
            # Its class makes the normalizer anew by "legacy", whatever tokenizer.json says.
            file = Path(place) / "tokenizer_config.json"
            _dump(file, json.loads(file.read_text("utf-8")) | {"legacy": True})
        return (fast if form.fast or form.family == "imp_phi3" else slow).from_pretrained(place)


# Comparing ------------------------------------------------------------------------------------------------

BUS = Path(__file__).parent.parent / "images" / "bus.png"
QUESTION, REPLY, NEXT = "What are the colors of the bus?", "They are red and white.", "この男は? < s> </s2>"
TOKENS = 24


def prompts(family: str) -> tuple[str, str]:
    """A first prompt with a picture, and that of a second turn, as the training code of Imp's authors writes them."""
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    first, later = {
        "imp": (f"{system} USER: <image>\n{QUESTION} ASSISTANT:", f" {REPLY}</s>USER: {NEXT} ASSISTANT:"),
        "imp_qwen2": (
            f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n<image>\n{QUESTION}<|im_end|>\n"
            "<|im_start|>assistant\n",
            f"{REPLY}<|im_end|>\n<|im_start|>user\n{NEXT}<|im_end|>\n<|im_start|>assistant\n",
        ),
        "imp_phi3": (
            f"<|system|>\n{system}<|end|>\n<|user|>\n<image>\n{QUESTION}<|end|>\n<|assistant|>\n",
            f"{REPLY}<|end|>\n<|user|>\n{NEXT}<|end|>\n<|assistant|>\n",
        ),
    }[family]
    return first, first + later


def published_ids(tokenizer, prompt: str) -> tuple[list[int], list[int]]:
    """Ids before and after the picture, as Imp's code on the hub makes them, or its training code without a token."""
    image = tokenizer.get_vocab().get("<image>")
    if image is not None:
        ids = tokenizer(prompt)["input_ids"]
        return ids[: ids.index(image)], ids[ids.index(image) + 1 :]
    before, after = (tokenizer(part)["input_ids"] for part in prompt.split("<image>"))
    return before, after[1:] if after[0] == tokenizer.bos_token_id else after


def kit_ids(imp) -> tuple[tuple[list[int], list[int]], tuple[list[int], list[int]]]:
    """The same two prompts by the kit."""
    template, encode = imp.template, imp.tokenizer.encode_pieces
    before, first = encode(template.open(), begins=True), encode(template.ask(QUESTION, first=True))
    reply = imp.tokenizer.encode(template.answer + REPLY, begins=False)
    return (before, first), (before, [*first, *reply, *encode(template.ask(NEXT, first=False))])


def published_pixels(form: Form) -> torch.Tensor:
    """The bus as transformers' SigLIP processor gives it to the tower, on a grey square where it is padded."""
    picture = Image.open(BUS).convert("RGB")
    if config_of(form)["image_aspect_ratio"] == "pad":
        square = Image.new("RGB", (max(picture.size),) * 2, (127, 127, 127))
        square.paste(picture, tuple((max(picture.size) - side) // 2 for side in picture.size))
        picture = square
    side = oracle_for(form).tower["image_size"]
    processor = SiglipImageProcessor(size={"height": side, "width": side}, resample=Image.Resampling.BICUBIC)
    return processor(picture, return_tensors="pt")["pixel_values"][0]


def published_answer(form: Form, snapshot: Path, ends: set[int]) -> list[int]:
    """The greedy tokens of transformers' classes, fed the ids of its tokenizer class, up to one of `ends`."""
    oracle = oracle_for(form)
    before, after = published_ids(published_tokenizer(form, snapshot), prompts(form.family)[0])
    with torch.inference_mode():
        greedy = oracle.greedy(oracle.embed(before, published_pixels(form), after), TOKENS)
    return greedy[: next((place for place, id in enumerate(greedy) if id in ends), None)]


def published_ends(form: Form) -> set[int]:
    """The ids that end an answer on the hub: those of config.json, generation_config.json and the prompt's own mark."""
    entry = PUBLISHED[form.name]
    ends = [entry.config["eos_token_id"]]
    if "generation_config.json" not in form.drop:
        ids = entry.contents["generation_config.json"]["eos_token_id"]
        ends += ids if isinstance(ids, list) else [ids]
    marks = {"imp": [50295, 50256], "imp_qwen2": [151645, 151643], "imp_phi3": [32007, 32000]}[form.family]
    return {small_id(form.family, id) for id in (*ends, *marks)}


def main() -> None:
    print("| repository and form | layout | tokenizer | ids, turn 1 | ids, turn 2 | stops | picture | answer |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for form in FORMS:
        with tempfile.TemporaryDirectory() as cache:
            snapshot = put_in_cache(form, Path(cache))
            imp = imp_kit.load(snapshot, device="cpu", dtype="fp32")
            theirs = [published_ids(published_tokenizer(form, snapshot), prompt) for prompt in prompts(form.family)]
            equal = ["equal" if a == b else "DIFFERENT" for a, b in zip(kit_ids(imp), theirs, strict=True)]
            reply = list(imp.ask(BUS, QUESTION, max_new_tokens=TOKENS).token_ids)
            same = reply == published_answer(form, snapshot, published_ends(form))
            vision = imp.model.config.vision
            picture = f"{vision.num_patches} tokens, {'pad' if imp.model.config.pad else 'square'}"
            cells = [form, form.layout, imp.tokenizer.file.name, *equal, sorted(imp.stop_ids), picture]
            print(f"| {' | '.join(map(str, cells))} | {len(reply)} tokens {'equal' if same else 'DIFFERENT'} |")


if __name__ == "__main__":
    main()
