"""Models of transformers as subjects: prompts of the model cards, batches, greedy answers, bad input, the probe."""

import json
import logging
import shutil
import subprocess
import sys
import warnings
from importlib.util import find_spec

import pytest
import torch
import transformers
from loopback_hub import COMMIT, serve
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, NEW, QUESTION, tokenizer_of, write

from imp_kit.errors import CheckpointError, ImageError, MemoryLimitError, PromptError, SettingError
from imp_kit.experiments.captcha import probe
from imp_kit.experiments.captcha.codes import draw_code
from imp_kit.subjects import transformers_model
from imp_kit.subjects.transformers_model import Transformers

PICTURES = [draw_code(code, seed=seed) for seed, code in enumerate(("K7X", "HELLO", "AB12", "ZZ9", "MNOPQ"))]
GREEDY = {"do_sample": False, "num_beams": 1, "temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0}
TOKENS = 12
PAIRS = [
    (PICTURES[0], QUESTION),
    (None, "Why?"),
    (PICTURES[1].resize((300, 90)), "Which letters and digits are these?"),
    (None, "What is the sky's colour on a cold day?"),
    (PICTURES[2], "And?"),
    (PICTURES[3].resize((60, 200)), "Read the picture, please."),
]

QUICK = ("LLaVA-1.5", "BLIP-2, OPT", "Idefics3, SmolVLM")
EACH = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in FAMILIES]
WHOLE = [pytest.param(name, marks=[] if name == QUICK[0] else [pytest.mark.slow]) for name in FAMILIES]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A function that gives the folder of a family's checkpoint, written when it is first asked for."""
    made = {}

    def get(name: str):
        family = FAMILIES[name]
        if not hasattr(transformers, family.needs):
            pytest.skip(f"transformers {transformers.__version__} has no {family.needs}")
        if family.torchvision and not find_spec("torchvision"):
            pytest.skip(f"the processor of {name} needs torchvision")
        if name not in made:
            made[name] = write(name, tmp_path_factory.mktemp("tiny") / "model")
        return made[name]

    return get


@pytest.fixture(scope="module")
def subjects(folders):
    loaded = {}

    def get(name: str) -> Transformers:
        folder = folders(name)
        if name not in loaded:
            loaded[name] = Transformers(folder, device="cpu", dtype="fp32")
        return loaded[name]

    return get


@pytest.fixture
def llava(subjects):
    return subjects("LLaVA-1.5")


@pytest.fixture
def copied(folders, tmp_path):
    """A LLaVA's folder, to be spoiled."""
    return shutil.copytree(folders("LLaVA-1.5"), tmp_path / "copied")


def change(file, **values):
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps(content))


def by_hand(folder, name, picture):
    """New tokens of a greedy answer, without what ended it, by the calls of the model's card; and the prompt's ids."""
    family = FAMILIES[name]
    model = getattr(transformers, family.needs).from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    blip = "BLIP" in name
    if name == "Idefics":
        parts = ["User: What is written?", picture, "<end_of_utterance>", "\nAssistant:"]
        parts = [part for part in parts if part is not None]
        given = {"text" if NEW else "prompts": [parts]}
        inputs = processor(**given, add_end_of_utterance_token=False, return_tensors="pt")
    elif picture is not None:
        inputs = processor(images=picture, text=family.prompt, return_tensors="pt")
    elif name == "PaliGemma":
        inputs = processor.tokenizer(family.alone, add_special_tokens=False, return_tensors="pt")
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    else:
        inputs = processor.tokenizer(family.alone, return_tensors="pt")
    asked = model.language_model if blip and picture is None else model
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    with torch.no_grad():
        ids = asked.generate(**inputs, **GREEDY, max_new_tokens=TOKENS, eos_token_id=ends, pad_token_id=3)[0].tolist()
    begun = 1 if blip and picture is not None and not NEW or "T5" in name else inputs["input_ids"].shape[1]
    new = ids[begun:]
    kept = next((place for place, id in enumerate(new) if id in ends), len(new))
    return new[:kept], inputs["input_ids"][0].tolist(), processor.tokenizer


@pytest.mark.parametrize("name", EACH)
def test_prompts_are_those_of_the_model_cards(name, subjects):
    subject, family = subjects(name), FAMILIES[name]
    asked, alone = subject.ask(PICTURES[0], QUESTION, TOKENS), subject.ask(None, f" {QUESTION}\n", TOKENS)
    assert (asked.prompt, alone.prompt) == (family.prompt, family.alone)


@pytest.mark.parametrize("name", EACH)
def test_answers_are_those_of_generate_by_hand(name, folders, subjects):
    """Although generation_config.json asks for draws, beams and a repetition penalty."""
    subject, answers = subjects(name), []
    for picture in (*PICTURES, None):
        ids, prompt, tokenizer = by_hand(folders(name), name, picture)
        answer = subject.ask(picture, QUESTION, TOKENS)
        assert list(answer.token_ids) == ids
        assert (
            answer.text == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
        )
        assert (answer.finish, answer.tokens) == (("length", TOKENS) if len(ids) == TOKENS else ("stop", len(ids) + 1))
        assert tokenizer.bos_token_id is None or prompt.count(tokenizer.bos_token_id) == 1
        answers.append(answer.text)
    assert len(set(answers[:-1])) >= 4, "a model that says the same of every picture would show nothing"


@pytest.mark.parametrize("name", EACH)
def test_a_batch_gives_the_answers_of_single_questions(name, subjects):
    subject = subjects(name)
    single = [subject.ask(*pair, TOKENS) for pair in PAIRS]
    for size in (3, len(PAIRS)):
        batch = subject.ask_many(PAIRS, batch_size=size, progress=False, max_new_tokens=TOKENS)
        for one, other in zip(single, batch, strict=True):
            assert (one.text, one.token_ids, one.prompt) == (other.text, other.token_ids, other.prompt)
            assert (one.finish, one.tokens) == (other.finish, other.tokens)
    assert len({answer.text for answer in single}) > 3
    assert {answer.finish for answer in single} == {"stop", "length"}, "some rows end early"


@pytest.mark.parametrize("name", WHOLE)
def test_the_probe_runs(name, subjects, tmp_path):
    subject = subjects(name)
    samples = probe.run(subject, "smoke", 1, tmp_path / "run")
    assert len(samples) == 14
    records = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert {record["status"] for record in records} == {"ok"}
    assert {record["finish"] for record in records} <= {"stop", "length"}
    for key, value in subject.identity.items():
        assert all(record[key] == value for record in records)


def test_nothing_warns(llava, subjects, caplog):
    root = logging.getLogger("transformers")
    root.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for subject in (llava, subjects("BLIP-2, OPT"), subjects("InstructBLIP"), subjects("Idefics")):
                subject.ask_many(PAIRS, progress=False, max_new_tokens=3)
    finally:
        root.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_stop_strings_end_an_answer(llava):
    whole = llava.ask(PICTURES[1], QUESTION, TOKENS)
    stop = whole.text[3:5]
    cut = llava.ask(PICTURES[1], QUESTION, TOKENS, stop=stop)
    assert len(whole.text) > 5
    assert cut.text == whole.text[: whole.text.index(stop)].strip()
    assert cut.finish == "stop"
    assert whole.token_ids[: len(cut.token_ids)] == cut.token_ids
    assert len(cut.token_ids) <= cut.tokens < whole.tokens
    batch = llava.ask_many(PAIRS[:1] + [(PICTURES[1], QUESTION)], progress=False, max_new_tokens=TOKENS, stop=[stop])
    assert batch[1] == cut.text


def test_an_answer_says_how_it_came_about(llava, folders):
    answer = llava.ask(PICTURES[0], QUESTION, TOKENS)
    assert (answer.checkpoint, answer.revision, answer.device, answer.dtype) == ("model", None, "cpu", "fp32")
    assert min(answer.seconds.look, answer.seconds.prefill, answer.seconds.decode) > 0
    assert answer.peak_memory > 1e6
    json.dumps(answer.to_dict())
    assert "LlavaForConditionalGeneration" in repr(llava)


def test_the_identity_names_what_can_change_an_answer(llava, copied):
    identity = Transformers(copied, device="cpu", dtype="fp32").identity
    assert identity == {
        "checkpoint": "copied", "revision": None, "files": llava.identity["files"], "dtype": "fp32", "device": "cpu",
        "processor": "LlavaProcessor", "transformers": transformers.__version__,
    }  # fmt: skip
    (copied / "README.md").write_text("notes change nothing")
    assert Transformers(copied, device="cpu", dtype="fp32").identity["files"] == identity["files"]
    (copied / "chat_template.json").write_text((copied / "chat_template.json").read_text().replace("USER", "Human"))
    changed = Transformers(copied, device="cpu", dtype="bf16")
    assert changed.identity["files"] != identity["files"]
    assert changed.identity["dtype"] == "bf16"
    assert changed.place == {"subject": f"transformers:{copied}"}
    assert changed.ask(PICTURES[0], QUESTION, 3).prompt.startswith("Human: ")


def test_a_prompt_begins_once(llava, copied):
    """Where the template writes the token that the tokenizer puts before each text."""
    file = copied / "chat_template.json"
    change(file, chat_template="<s>" + json.loads(file.read_text())["chat_template"])
    subject = load(copied)
    for picture in (PICTURES[0], None):
        answer, other = subject.ask(picture, QUESTION, TOKENS), llava.ask(picture, QUESTION, TOKENS)
        assert (answer.prompt, answer.token_ids) == (f"<s>{other.prompt}", other.token_ids)


def test_any_image_that_the_kit_opens(llava, tmp_path):
    PICTURES[0].save(tmp_path / "code.png")
    expected = llava.ask(PICTURES[0], QUESTION, TOKENS)
    for image in (tmp_path / "code.png", str(tmp_path / "code.png"), PICTURES[0].convert("RGBA")):
        assert llava.ask(image, QUESTION, TOKENS) == expected.text


@pytest.mark.parametrize(
    ("image", "question", "error", "words"),
    [
        (PICTURES[0], "", PromptError, "The question is empty"),
        (None, " \n", PromptError, "The question is empty"),
        (PICTURES[0], None, PromptError, "A question is text"),
        (PICTURES[0], "a </s> b", PromptError, "holds '</s>', a control token of model"),
        (PICTURES[0], "an <image> here", PromptError, "contains <image>"),
        (PICTURES[0], "x" * 3000, PromptError, r"3\d\d\d tokens long, .* more than model reads \(2048\)"),
        ("nowhere.png", QUESTION, ImageError, "nowhere.png"),
        (b"no picture", QUESTION, ImageError, "not a picture"),
        (QUESTION, "code.png", PromptError, "The picture comes first"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(llava, image, question, error, words):
    with pytest.raises(error, match=words):
        llava.ask(image, question, TOKENS)


@pytest.mark.parametrize("settings", [{"max_new_tokens": 0}, {"stop": ""}, {"batch_size": 0}, {"batch_size": True}])
def test_settings_that_make_no_sense(llava, settings):
    with pytest.raises(SettingError, match=next(iter(settings))):
        llava.ask_many(PAIRS, progress=False, **settings)


def test_what_cannot_be_answered_costs_itself_alone(llava):
    pairs = [(b"no picture", QUESTION), PAIRS[0], (None, ""), PAIRS[1], "no pair", (PICTURES[0], "x" * 3000)]
    with pytest.warns(UserWarning, match="4 of 6 have no answer. The first: "):
        batch = llava.ask_many(pairs, progress=False, max_new_tokens=TOKENS)
    errors = [ImageError, PromptError, PromptError, PromptError]
    assert [type(batch[row]) for row in (0, 2, 4, 5)] == errors
    assert [str(batch[row]) for row in (1, 3)] == [str(llava.ask(*pair, TOKENS)) for pair in PAIRS[:2]]
    assert llava.ask_many([], progress=False) == []


@pytest.mark.slow
def test_a_picture_that_a_processor_refuses_costs_itself_alone(subjects):
    subject = subjects("Qwen2-VL")
    line = Image.new("RGB", (2000, 2))
    with pytest.raises(ImageError, match="The processor of model does not take this picture"):
        subject.ask(line, QUESTION, TOKENS)
    with pytest.warns(UserWarning, match="1 of 3 have no answer"):
        first, refused, last = subject.ask_many(
            [PAIRS[0], (line, QUESTION), PAIRS[2]], progress=False, max_new_tokens=9
        )
    assert isinstance(refused, ImageError)
    assert refused.__traceback__ is None
    assert [first, last] == [str(subject.ask(*PAIRS[row], 9)) for row in (0, 2)]


def load(folder, **settings):
    return Transformers(folder, device="cpu", **{"dtype": "fp32", **settings})


def test_a_type_that_transformers_does_not_hold(copied):
    change(copied / "config.json", model_type="llava_of_tomorrow")
    with pytest.raises(
        CheckpointError, match="holds no model of the type 'llava_of_tomorrow', which copied is. A newer"
    ):
        load(copied)


@pytest.mark.parametrize("wrong", [["llava"], {}, None, 5])
def test_a_type_that_is_no_name(copied, wrong):
    change(copied / "config.json", model_type=wrong)
    with pytest.raises(CheckpointError, match="holds no model of the type "):
        load(copied)


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{% if %}", "{{ ''.__class__.__mro__ }}"])
def test_a_chat_template_that_fails(copied, template):
    (copied / "chat_template.jinja").unlink(missing_ok=True)
    (copied / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    subject = load(copied)
    with pytest.raises(PromptError, match=r"The chat template of copied does not take this question \("):
        subject.ask(PICTURES[0], QUESTION, TOKENS)


def test_an_end_of_answers_that_is_no_token(copied):
    change(copied / "generation_config.json", eos_token_id="x")
    with pytest.raises(CheckpointError, match="names a token that ends an answer by no number"):
        load(copied)


def test_a_model_that_needs_code_of_its_own(copied, tmp_path):
    (copied / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    change(copied / "config.json", model_type="cogvlm", auto_map={"AutoConfig": "modeling.Config"})
    with pytest.raises(CheckpointError, match="copied needs code that lies beside its weights, and the kit runs none"):
        load(copied)
    assert not (tmp_path / "ran").exists()


def test_code_beside_a_known_model_is_not_run(copied, tmp_path, llava):
    code = f"open({str(tmp_path / 'ran')!r}, 'w')"
    names = {"AutoConfig": "own.Own", "AutoProcessor": "own.Own", "AutoImageProcessor": "own.Own"}
    for file in ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if (copied / file).exists():
            change(copied / file, auto_map={**names, "AutoTokenizer": ["own.Own", "own.Own"]})
    (copied / "custom_generate").mkdir()
    for file in (copied / "own.py", copied / "custom_generate" / "generate.py"):
        file.write_text(code)
    assert load(copied).ask(PICTURES[0], QUESTION, TOKENS) == str(llava.ask(PICTURES[0], QUESTION, TOKENS))
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_in_a_folder_of_its_own_brings_no_code(folders, tmp_path):
    folder = shutil.copytree(folders("InstructBLIP"), tmp_path / "copied")
    change(folder / "qformer_tokenizer" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]})
    with pytest.raises(CheckpointError, match="tokenizer_config.json names code for its tokenizer"):
        load(folder)


def test_a_checkpoint_of_the_kit():
    with pytest.raises(
        CheckpointError, match="imp-nano is an Imp, which transformers does not hold. It is a checkpoint"
    ):
        load("imp-nano")


@pytest.mark.skipif(not NEW or find_spec("torchvision") is not None, reason="nothing is missing for it here")
def test_a_package_that_a_processor_needs(tmp_path):
    tokenizer_of().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    kinds = {"processor_class": "Qwen2VLProcessor", "image_processor_type": "Qwen2VLImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(kinds))
    with pytest.raises(SettingError, match="needs a package that is missing: pip install torchvision.$"):
        load(tmp_path)


def test_a_text_model(tmp_path):
    config = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a llama model; in transformers .* that is no vision-language model"):
        load(tmp_path)


def test_weights_as_pickles_alone(copied):
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"only as pickles \(pytorch_model.bin\)"):
        load(copied)


def test_adapters_are_refused(copied):
    (copied / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/elses"}')
    with pytest.raises(CheckpointError, match="holds adapters"):
        load(copied)


def test_weights_that_are_not_whole(copied):
    weights = load_file(copied / "model.safetensors")
    gone = next(name for name in weights if "k_proj" in name)
    del weights[gone]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="copied lacks weights that LlavaForConditionalGeneration has, such as"):
        load(copied)


def test_files_that_cannot_be_read(copied):
    (copied / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="The processor of copied cannot be loaded"):
        load(copied)
    (copied / "config.json").unlink()
    with pytest.raises(CheckpointError, match="has no config.json"):
        load(copied)


def test_a_model_without_a_chat_template(folders, tmp_path):
    folder = shutil.copytree(folders("Idefics3, SmolVLM"), tmp_path / "copied")
    (folder / "chat_template.json").unlink()
    with pytest.raises(CheckpointError, match="copied comes without a chat template"):
        load(folder)


def test_places_that_are_none(tmp_path):
    for name, words in (("", "is a name, a hub id or a folder"), (str(tmp_path / "nowhere"), "There is no folder")):
        with pytest.raises(CheckpointError, match=words):
            load(name)
    with pytest.raises(CheckpointError, match="has no config.json"):
        load(tmp_path)


def test_a_revision_belongs_to_a_hub_id(copied):
    with pytest.raises(CheckpointError, match="A revision, 'main', belongs to a hub id"):
        load(copied, revision="main")


def test_devices_and_dtypes_that_are_none(copied):
    with pytest.raises(SettingError, match="There is no device 'tpu'"):
        Transformers(copied, device="tpu")
    with pytest.raises(SettingError, match="dtype 'int3' is unknown"):
        load(copied, dtype="int3")


def test_memory_is_told_before_anything_is_loaded(copied, monkeypatch):
    parameters = sum(tensor.numel() for tensor in load_file(copied / "model.safetensors").values())
    monkeypatch.setattr(transformers_model, "free_memory", lambda device: 3 * parameters)
    monkeypatch.setattr(transformers_model, "_load_model", None)
    with pytest.raises(MemoryLimitError, match=r"copied needs 0.0 GB on cpu as fp32, .* or choose dtype='bf16'"):
        load(copied)
    monkeypatch.undo()
    monkeypatch.setattr(transformers_model, "free_memory", lambda device: 3 * parameters)
    assert load(copied, dtype="bf16").dtype == "bf16"


SCRIPT = """
import sys
from imp_kit.errors import ImpKitError
from imp_kit.subjects.transformers_model import Transformers
try:
    subject = Transformers(sys.argv[1], device="cpu", dtype="fp32", revision=sys.argv[2] if sys.argv[2:] else None)
    print(subject.identity["revision"], subject.identity["files"], subject.place, subject.ask(None, "Why?", 9))
except ImpKitError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def hub(folders, tmp_path):
    files = {file.name: file.read_bytes() for file in folders("LLaVA-1.5").iterdir()}
    files |= {"own.py": b"raise SystemExit", "pytorch_model.bin": b"\x80pickle", "adapter.safetensors": b"not needed"}
    with serve({"owner/tiny-llava": files}, tmp_path / "cache") as (server, environment):
        server.files = files

        def run(*arguments: str, **more: str) -> str:
            done = subprocess.run(
                [sys.executable, "-c", SCRIPT, *arguments], env=environment | more, capture_output=True, text=True,
                check=True,
            )  # fmt: skip
            return done.stdout

        yield server, run


def got(server) -> set[str]:
    return {path.split(f"/resolve/{COMMIT}/")[1] for path in server.asked if f"/resolve/{COMMIT}/" in path}


def test_an_id_of_the_hub(hub, llava):
    server, run = hub
    told = run("owner/tiny-llava")
    assert "imp-kit: owner/tiny-llava comes from the hub: 1 files" in told
    assert f"{COMMIT} None {{'subject': 'transformers:owner/tiny-llava'}} {llava.ask(None, 'Why?', 9)}" in told
    assert {"config.json", "model.safetensors"} <= got(server)
    assert not {name for name in got(server) if name.endswith((".py", ".bin"))} | (
        got(server) & {"adapter.safetensors"}
    )


@pytest.mark.slow
def test_without_a_network_the_cache_answers(hub):
    server, run = hub
    told = run("owner/tiny-llava").splitlines()[-1]
    server.asked.clear()
    assert run("owner/tiny-llava", HF_HUB_OFFLINE="1").splitlines()[-1] == told
    assert not server.asked
    gone = run("owner/another", HF_HUB_OFFLINE="1")
    assert gone.startswith("UnreachableError owner/another is not on this machine and the hub cannot be reached")


@pytest.mark.slow
def test_ids_that_the_hub_does_not_have(hub):
    _, run = hub
    assert run("owner/nothing").startswith("CheckpointError There is no folder 'owner/nothing' here and no checkpoint")
    assert run("owner/tiny-llava", "v9").startswith("CheckpointError owner/tiny-llava has no revision 'v9' on the hub")


@pytest.mark.slow
def test_memory_and_pickles_are_told_before_weights_come(hub):
    server, run = hub
    config = json.loads(server.files["config.json"]) | {"dtype": "float32", "torch_dtype": "float32"}
    server.files["config.json"] = json.dumps(config).encode()
    server.sizes[("owner/tiny-llava", "model.safetensors")] = 10**15
    assert run("owner/tiny-llava").startswith("MemoryLimitError owner/tiny-llava needs 1000000.0 GB on cpu as fp32")
    del server.files["model.safetensors"], server.files["adapter.safetensors"]
    assert "holds its weights only as pickles (pytorch_model.bin)" in run("owner/tiny-llava")
    assert not {name for name in got(server) if name.endswith(("safetensors", "bin"))}
