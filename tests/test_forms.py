"""Every published repository, in every form that its files may have: loads by each of its names, and answers right."""

import json
import random
import re
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from forms import (
    BUS,
    COMMIT,
    FORMS,
    NEW_TRANSFORMERS,
    QUESTION,
    TEXTS,
    TOKENS,
    base_size,
    kit_ids,
    oracle_for,
    prompts,
    published_answer,
    published_ends,
    published_ids,
    published_pixels,
    published_tokenizer,
    put_in_cache,
    sentencepiece_model,
    write,
    write_tokenizer,
)
from oracle import change_json
from published_files import index_bytes
from sentencepiece import SentencePieceProcessor

import imp_kit
from imp_kit.checkpoints.hub import find, needed_files
from imp_kit.checkpoints.published import published_tensors
from imp_kit.checkpoints.registry import PUBLISHED
from imp_kit.checkpoints.tokenizer import TextTokenizer
from imp_kit.engine import StreamDecoder
from imp_kit.experiments.japanese.tokenized import BYTE_LETTERS

WHOLE = [form for form in FORMS if form.what in ("main", "main without tokenizer.json")]  # one a repository


@pytest.fixture(scope="module", params=FORMS, ids=str)
def published(request, tmp_path_factory):
    """A form, the cache that holds it, and its snapshot."""
    cache = tmp_path_factory.mktemp("cache")
    return request.param, cache, put_in_cache(request.param, cache)


@pytest.fixture
def offline(published, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(published[1]))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def load(checkpoint):
    return imp_kit.load(checkpoint, device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def imp(published):
    return load(published[2])


def test_the_forms_cover_what_is_published():
    assert {form.name for form in FORMS} == PUBLISHED.keys()


def test_every_name_of_a_checkpoint_answers_as_transformers_does(published, offline, tmp_path, monkeypatch):
    form, _, snapshot = published
    hub_id = PUBLISHED[form.name].hub_id
    dotted = tmp_path / hub_id  # a folder called as the repository, dots and all
    dotted.parent.mkdir()
    dotted.symlink_to(snapshot)
    known = [form.name, hub_id, f"{hub_id}/", hub_id.lower(), f"{form.name}/", snapshot, f"{snapshot}/"]
    expected = published_answer(form, snapshot, published_ends(form))
    assert len(set(expected)) > 3, "an answer of one token over and over would tell little"
    spellings = [*known, dotted, f"{dotted}/", Path(dotted.name), f"./{dotted.name}/"]
    for spelling in spellings:
        if spelling not in known:
            monkeypatch.chdir(dotted.parent)
        found = find(spelling)
        assert found.folder.samefile(snapshot)
        assert (found.name, found.revision) == ((hub_id, COMMIT) if spelling in known else (dotted.name, None))
        if form != WHOLE[0] and spelling not in (form.name, dotted):
            continue  # the same folder gives the same answer
        reply = load(spelling).ask(BUS, QUESTION, max_new_tokens=TOKENS)
        assert list(reply.token_ids) == expected, spelling
        if spelling in known:
            assert (reply.checkpoint, reply.revision) == (hub_id, COMMIT)


def test_prompt_stops_and_picture_are_the_published_ones(published, imp):
    form, _, snapshot = published
    tokenizer = published_tokenizer(form, snapshot)
    first, second = kit_ids(imp)
    assert first == published_ids(tokenizer, prompts(form.family)[0])
    assert second == published_ids(tokenizer, prompts(form.family)[1])
    assert imp.stop_ids == published_ends(form)
    assert imp.model.config.vision.num_patches == form.positions
    pad = {"imp-v1.5-4b-phi3": True}.get(form.name, form.config.get("image_aspect_ratio") == "pad")
    assert imp.model.config.pad == pad


def test_a_chat_goes_on_as_the_same_text_at_once(published, imp):
    """The second turn's answer is that of transformers' classes to the whole conversation, beginning token once."""
    form = published[0]
    oracle, chat = oracle_for(form), imp.chat(BUS)
    first, second = (chat.say(question, max_new_tokens=8).token_ids for question in (QUESTION, "And the sky?"))
    encode = imp.tokenizer.encode_pieces
    before, after = encode(imp.template.open(), begins=True), encode(imp.template.ask(QUESTION, first=True))
    after = [*after, *first, *encode(imp.template.ask("And the sky?", first=False))]
    with torch.inference_mode():
        greedy = oracle.greedy(oracle.embed(before, published_pixels(form), after), 8)
    assert list(second) == greedy[: next((place for place, id in enumerate(greedy) if id in imp.stop_ids), None)]
    assert imp.ask_many([(BUS, QUESTION)], max_new_tokens=8, progress=False)[0].token_ids == first


def test_rows_of_a_batch_answer_as_if_alone(imp):
    """Padding stands between a picture and its question, and a window must not count it."""
    questions = ["a?", QUESTION, "Is there a very long question here, with many words in it, or not? " * 2]
    alone = [imp.ask(BUS, question, max_new_tokens=8).token_ids for question in questions]
    batch = imp.ask_many([(BUS, question) for question in questions], max_new_tokens=8, progress=False)
    assert [answer.token_ids for answer in batch] == alone


def test_a_question_without_a_picture_begins_as_the_tokenizer_asks(published, imp):
    form, _, snapshot = published
    pieces = imp.template.ask_alone("a?")
    tokenizer = published_tokenizer(form, snapshot)
    assert imp.tokenizer.encode_pieces(pieces, begins=True) == tokenizer("".join(pieces))["input_ids"]
    one = imp.ask(None, "a?", max_new_tokens=6).token_ids
    assert imp.ask_many([(None, "a?"), (None, "a longer one?")], max_new_tokens=6, progress=False)[0].token_ids == one


# The sizes that public pages show ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "published", "shards"),
    [("imp-v1-3b", 88_515, 7), ("imp-v1.5-2b-qwen1.5", 76_606, 5), ("imp-v1.5-3b-196", 79_631, 7)],
)
def test_the_index_has_the_published_length(name, published, shards):
    """The hub shows 88.5 kB, 76.6 kB, and 79.6 kB for imp-v1-3b before April 2024, in the 196's names."""
    tensors = published_tensors(name)
    assert index_bytes(tensors, shards) == published
    shown = PUBLISHED[name].files["model.safetensors.index.json"]
    assert shown is None or abs(published - shown) <= 50
    short = dict(list(tensors.items())[:-1])
    assert index_bytes(short, shards) < published - 50, "one key less would show"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_registry_agrees_with_itself(name):
    entry, tensors = PUBLISHED[name], published_tensors(name)
    size = 2
    for shape in tensors.values():
        count = 1
        for side in shape:
            count *= side
        size += 2 * count
    assert size - 2 == entry.weight_bytes
    shards = [bytes_ for file, bytes_ in entry.files.items() if file.endswith(".safetensors")]
    if None not in shards:
        assert sum(shards) == pytest.approx(entry.weight_bytes, rel=0.003)
    assert set(entry.inferred) | set(entry.contents) <= entry.files.keys()
    assert not set(entry.possible) & entry.files.keys()


@pytest.mark.parametrize(
    ("name", "file", "size"),
    [
        ("imp-v1-3b", "config.json", 1843),
        ("imp-v1-3b", "generation_config.json", 119),
        ("imp-v1-3b", "special_tokens_map.json", 441),
        ("imp-v1-3b", "added_tokens.json", 1117),
        ("imp-v1.5-2b-qwen1.5", "config.json", 1407),
        ("imp-v1.5-2b-qwen1.5", "generation_config.json", 164),
        ("imp-v1.5-2b-qwen1.5", "special_tokens_map.json", 367),
        ("imp-v1.5-2b-qwen1.5", "added_tokens.json", 80),
        ("imp-v1.5-4b-phi3", "special_tokens_map.json", 569),
        ("imp-v1.5-4b-phi3", "added_tokens.json", 313),
    ],
)
def test_the_registrys_contents_have_the_published_length(name, file, size):
    """Written as transformers writes them, they are as long as the hub says."""
    text = json.dumps(PUBLISHED[name].contents[file], indent=2) + "\n"
    assert len(text.encode()) == size


# Slow tokenizers ---------------------------------------------------------------------------------------------


def strings(count: int, seed: int = 0) -> list[str]:
    """Texts of several scripts, digits, emoji, runs of blanks, and what looks like control tokens but is none."""
    chance = random.Random(seed)
    parts = [
        *(word for text in TEXTS for word in text.split(" ")),
        *(" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "     ", "\u3000", "\xa0"),
        *("0", "7", "42", "2024", "٣", "五", "½", "²"),
        *("🚌", "👩‍🚀", "🇯🇵", "e\u0301", "ﬁ", "Ａ", "\u200b", "\ufeff", "ß", "İ", "が", "\u304b\u3099"),
        *("</ s>", "<|im_end", "<image >", "<s", "<|end|", "'s", "'LL", "I'm", "don't", "_", "__init__", "a_b"),
    ]
    return ["".join(chance.choice(parts) for _ in range(chance.randint(1, 12))) for _ in range(count)]


SLOW = {form.family: form for form in FORMS if not form.fast and not form.config and not form.drop}


@pytest.mark.parametrize("family", ["imp", "imp_qwen2", "imp_phi3"])
def test_slow_tokenizers_give_the_ids_of_the_slow_class(family, tmp_path):
    import transformers

    form = SLOW[family]
    write_tokenizer(tmp_path, form)
    names = {"imp": "CodeGenTokenizer", "imp_qwen2": "Qwen2Tokenizer", "imp_phi3": "LlamaTokenizer"}
    if family == "imp_phi3" and NEW_TRANSFORMERS:  # which has no slow class left: its library, and "<s>" before it
        pieces = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))

        def theirs(text):
            return {"input_ids": [1, *pieces.encode(text)]}
    else:
        theirs = getattr(transformers, names[family]).from_pretrained(tmp_path)
    ours = TextTokenizer(tmp_path)
    different = []
    for text in strings(2000):
        ids = [*ours.prefix, *ours.encode(text), *ours.suffix]
        if ids != theirs(text)["input_ids"]:
            different.append(text)
    assert different == []


def test_sentencepiece_is_named_where_it_is_missing(tmp_path, monkeypatch):
    import sys

    write_tokenizer(tmp_path, SLOW["imp_phi3"])
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(imp_kit.CheckpointError, match="pip install sentencepiece"):
        TextTokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no model", "half"])
def test_a_damaged_tokenizer_model(tmp_path, content):
    write_tokenizer(tmp_path, SLOW["imp_phi3"])
    whole = sentencepiece_model()
    (tmp_path / "tokenizer.model").write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(imp_kit.CheckpointError, match=r"tokenizer\.model"):
        TextTokenizer(tmp_path)


# What stands around a prompt -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "prefix", "suffix"),
    [
        ({}, (1,), ()),
        ({"add_bos_token": None}, (1,), ()),  # LLaMA's class adds it unless told otherwise
        ({"add_bos_token": False}, (), ()),
        ({"add_eos_token": True}, (1,), (base_size("imp_phi3"),)),
        ({"add_bos_token": False, "add_eos_token": True}, (), (base_size("imp_phi3"),)),
    ],
)
@pytest.mark.parametrize("fast", [True, False])
def test_the_settings_say_what_stands_around_a_prompt(tmp_path, changes, prefix, suffix, fast):
    form = next(form for form in FORMS if form.family == "imp_phi3" and form.fast == fast)
    write_tokenizer(tmp_path, form)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8")) | changes
    settings = {name: value for name, value in settings.items() if value is not None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    ours = TextTokenizer(tmp_path)
    assert (ours.prefix, ours.suffix) == (prefix, suffix)
    if not NEW_TRANSFORMERS:  # whose class no longer reads these settings
        theirs = published_tokenizer(form, tmp_path)
        assert [*prefix, *ours.encode("a bus"), *suffix] == theirs("a bus")["input_ids"]


def test_a_post_processor_counts_where_no_setting_does(tmp_path):
    form = next(form for form in FORMS if form.family == "imp_phi3" and form.fast)
    write_tokenizer(tmp_path, form)
    (tmp_path / "tokenizer_config.json").unlink()
    assert TextTokenizer(tmp_path).prefix == (1,)
    change_json(tmp_path, lambda data: data.update(post_processor=None), "tokenizer.json")
    assert TextTokenizer(tmp_path).prefix == ()


def test_a_beginning_token_that_is_not_there(tmp_path):
    form = next(form for form in FORMS if form.family == "imp_phi3" and form.fast)
    write_tokenizer(tmp_path, form)
    change_json(tmp_path, lambda settings: settings.update(bos_token="<begin>"), "tokenizer_config.json")
    with pytest.raises(imp_kit.CheckpointError, match=r"tokenizer_config\.json asks for a bos_token.*'<begin>'"):
        TextTokenizer(tmp_path)


def test_an_end_token_behind_the_prompt_leaves_with_the_next_turn(tmp_path):
    """Each turn's answer is that to the whole conversation with one end token, behind it."""
    form = next(form for form in FORMS if form.family == "imp_phi3" and form.fast)
    snapshot = put_in_cache(form, tmp_path)
    settings = json.loads((snapshot / "tokenizer_config.json").read_text("utf-8")) | {"add_eos_token": True}
    (snapshot / "tokenizer_config.json").unlink()
    (snapshot / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    imp = load(snapshot)
    assert imp.tokenizer.suffix
    from imp_kit.engine import Conversation
    from imp_kit.images import open_image
    from imp_kit.model.sampling import Sampling

    chat = imp.chat(BUS)
    questions = [QUESTION, "And the sky?", "Why?"]
    said = [chat.say(question, max_new_tokens=6).token_ids for question in questions]
    for count in (1, 2, 3):
        talks = [Conversation(imp.engine, open_image(BUS)) for _ in range(2)]  # a batch reads earlier turns anew
        for question in questions[:count]:
            imp.engine.answer([talk.ask(question) for talk in talks], Sampling(6), range(2))
        assert {talk.answers[-1].token_ids for talk in talks} == {said[count - 1]}


# Damaged forms -------------------------------------------------------------------------------------------------

NEEDLESS = {  # without them the checkpoint is whole: the other files say the same, or nothing that an answer needs
    ("missing", "generation_config.json"),
    ("missing", "tokenizer.json"),
    ("missing", "special_tokens_map.json"),
    ("missing", "tokenizer_config.json"),
    ("missing", "model.safetensors.index.json"),
    ("missing", "added_tokens.json"),
    ("another's", "special_tokens_map.json"),
}


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """Each repository's folder, and the ids that it gives."""
    place = tmp_path_factory.mktemp("whole")
    folders = {form.name: write(form, place / form.name) for form in WHOLE}
    return folders, {name: kit_ids(load(folder)) for name, folder in folders.items()}


def damages():
    for form in WHOLE:
        with tempfile.TemporaryDirectory() as place:
            write_tokenizer(Path(place), form)
            names = {file.name for file in Path(place).iterdir()} | {"config.json", "generation_config.json"}
        shard = next(name for name in PUBLISHED[form.name].files if name.endswith(".safetensors"))
        for file in sorted(needed_files(names) | {shard, "model.safetensors.index.json"}):
            for damage in ("missing", "empty", "truncated", "another's"):
                yield pytest.param(form, file, damage, id=f"{form.name}, {file}, {damage}")


@pytest.mark.parametrize(("form", "file", "damage"), list(damages()))
def test_one_damaged_file_is_one_clear_error(wholes, tmp_path, form, file, damage):
    """Each file of each repository: not there, empty, cut in half, or that of a repository of another family."""
    folders, ids = wholes
    folder = shutil.copytree(folders[form.name], tmp_path / "imp")
    target, content = folder / file, (folder / file).read_bytes()
    if damage == "another's":
        others = [folders[other.name] for other in WHOLE if other.family != form.family]
        names = [min(each.glob("*.safetensors")) if file.endswith(".safetensors") else each / file for each in others]
        # The 4B's merges.txt is Phi-2's.
        theirs = [name.read_bytes() for name in names if name.exists() and name.read_bytes() != content]
        if not theirs:
            pytest.skip("no repository of another family has such a file")
        target.write_bytes(theirs[0])
    elif damage == "missing":
        target.unlink()
    else:
        target.write_bytes(content[: 0 if damage == "empty" else len(content) // 2])
    try:
        imp = load(folder)
    except imp_kit.CheckpointError as error:
        message = str(error)
    else:
        assert (damage, file) in NEEDLESS, "a damage that nobody noticed"
        assert kit_ids(imp) == ids[form.name]
        return
    assert file in message or (damage == "another's" and "Files of two checkpoints are mixed" in message), message
    assert "ownload it again" in message or "download them again" in message or "while online" in message, message
    assert "\n" not in message
    assert len(message) < 900


# Texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bytes_", "text"),
    [
        ("男".encode()[:2], "\ufffd"),
        ("🚌".encode()[:3], "\ufffd"),
        (b"a" + "🚌".encode() + "🚌".encode()[:1], "a🚌\ufffd"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"<0x0A>", "<0x0A>"),
        ("🚌🚌".encode(), "🚌🚌"),
        ("▁ ▁".encode(), "▁ ▁"),
    ],
)
@pytest.mark.parametrize("family", ["imp", "imp_phi3"])
def test_bytes_are_read_as_python_reads_them(family, tmp_path, bytes_, text):
    """Half a character is one mark, whatever it is spelled with; what follows and what precedes it is kept."""
    write_tokenizer(tmp_path, SLOW[family])
    tokenizer = TextTokenizer(tmp_path)
    if family == "imp_phi3":
        ids = [tokenizer.backend.token_to_id(f"<0x{byte:02X}>") for byte in bytes_]
    else:
        spelled = {value: letter for letter, value in BYTE_LETTERS.items()}
        ids = [tokenizer.backend.token_to_id(spelled[byte]) for byte in bytes_]
    assert tokenizer.decode(ids) == bytes_.decode("utf-8", "replace") == text
    grown = StreamDecoder(tokenizer, ())
    pieces = [grown.add(id) for id in ids]
    assert "".join([*pieces, grown.finish()]) == text


# Odd tokenizer files -----------------------------------------------------------------------------------------------


def edit(folder, file, change):
    """Change a file's JSON, or write a text in its place."""
    if callable(change):
        data = json.loads((folder / file).read_text("utf-8"))
        change(data)
        change = json.dumps(data)
    (folder / file).write_text(change, "utf-8")


@pytest.mark.parametrize(
    ("fast", "file", "change", "words"),
    [
        (False, "vocab.json", lambda v: v.update(far=10**9), "does not number its 402 words from 0 on"),
        (False, "vocab.json", lambda v: v.update(far=3), "does not number its"),
        (False, "vocab.json", lambda v: v.update(far="3"), "does not number its"),
        (False, "vocab.json", lambda v: v.update(far=-1), "does not number its"),
        (False, "vocab.json", "[]", "holds no JSON object"),
        (False, "merges.txt", "#version: 0.2\na b\n\nc d\n", "holds '', which is no pair"),
        (False, "merges.txt", "#version: 0.2\na b c\n", "holds 'a b c', which is no pair"),
        (False, "tokenizer_config.json", lambda s: s.update(tokenizer_class="EvilTokenizer"), "EvilTokenizer"),
        (True, "tokenizer.json", "[]", "tokenizer.json holds no JSON object"),
        (True, "tokenizer.json", lambda d: d.pop("added_tokens"), "lacks its model or its added tokens"),
        (True, "tokenizer.json", lambda d: d.update(model=None), "lacks its model or its added tokens"),
        (True, "tokenizer.json", lambda d: d["added_tokens"].append({"id": "3", "content": "a"}), "lacks its model or"),
        (True, "added_tokens.json", '{"<a>": null}', "added_tokens.json: '<a>' has the id None"),
        (True, "added_tokens.json", '{"<a>": -1}', "has the id -1"),
        (True, "added_tokens.json", '{"<a>": 1e9}', "has the id 1000000000.0"),
        (True, "added_tokens.json", '{"<a>": 500}', "should have the id 500, but the next free one is 441"),
        (True, "added_tokens.json", '{"</s>": 441}', "gives '</s>' the id 441, but tokenizer.json says 439"),
        (True, "tokenizer_config.json", lambda s: s.update(added_tokens_decoder=[]), None),
        (True, "tokenizer_config.json", lambda s: s.update(added_tokens_decoder=None), None),
        (True, "tokenizer_config.json", lambda s: s.update(added_tokens_decoder={"x": {}}), "not ids and tokens"),
        (True, "tokenizer_config.json", lambda s: s.update(added_tokens_decoder={"3": None}), "not ids and tokens"),
        (True, "tokenizer_config.json", lambda s: s.update(add_bos_token="false"), "add_bos_token is 'false'"),
        (True, "tokenizer_config.json", lambda s: s.update(add_eos_token=[]), "add_eos_token is []"),
    ],
)
def test_odd_tokenizer_files(tmp_path, fast, file, change, words):
    """One clear error, at once, or the tokenizer that the other files make."""
    form = next(form for form in FORMS if form.family == "imp" and form.fast == fast)
    write_tokenizer(tmp_path, form)
    expected = TextTokenizer(tmp_path).encode(QUESTION)
    edit(tmp_path, file, change)
    if words is None:
        assert TextTokenizer(tmp_path).encode(QUESTION) == expected
        return
    with pytest.raises(imp_kit.CheckpointError, match=re.escape(words)) as caught:
        TextTokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_qwens_class_puts_nothing_around_a_prompt(tmp_path):
    """Whatever its settings say: transformers' Qwen2Tokenizer does not read them."""
    write_tokenizer(tmp_path, SLOW["imp_qwen2"])
    edit(tmp_path, "tokenizer_config.json", lambda s: s.update(add_bos_token=True, bos_token="<|endoftext|>"))
    assert TextTokenizer(tmp_path).prefix == ()


def test_a_tokenizer_model_alone_has_llamas_own_marks(tmp_path):
    """Without any settings the class puts "<s>" before each prompt."""
    (tmp_path / "config.json").write_text('{"model_type": "imp_phi3"}', "utf-8")
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    tokenizer = TextTokenizer(tmp_path)
    assert (tokenizer.prefix, tokenizer.suffix) == ((1,), ())


@pytest.mark.parametrize(
    "settings", [{"user_defined_symbols": ["<|mark|>"]}, {"model_type": "unigram", "vocab_size": 370}]
)
def test_another_kind_of_tokenizer_model_is_refused(tmp_path, settings):
    (tmp_path / "config.json").write_text('{"model_type": "imp_phi3"}', "utf-8")
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(**settings))
    with pytest.raises(imp_kit.CheckpointError, match="another kind of tokenizer than LLaMA's"):
        TextTokenizer(tmp_path)


def test_a_token_that_looks_like_a_byte_is_none_without_byte_fallback(tmp_path):
    write_tokenizer(tmp_path, next(form for form in FORMS if form.family == "imp" and form.fast))
    edit(tmp_path, "tokenizer.json", lambda d: d["model"]["vocab"].update({"<0x41>": 400}))
    edit(tmp_path, "tokenizer.json", lambda d: d["model"]["vocab"].pop("<|endoftext|>"))
    edit(tmp_path, "tokenizer.json", lambda d: d.update(added_tokens=[]))
    for file in ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"):
        (tmp_path / file).unlink()
    assert TextTokenizer(tmp_path).decode([400]) == "<0x41>"


def test_inspect_refuses_what_load_refuses(tmp_path):
    from imp_kit.checkpoints.inspect import inspect

    folder = write(WHOLE[0], tmp_path / "imp")
    assert list(inspect(folder).lines())[-1] == "The kit would load it."
    for file, content in (("generation_config.json", '{"eos_token_id": 9999}'), ("tokenizer.json", "{}")):
        kept = (folder / file).read_text("utf-8")
        (folder / file).write_text(content, "utf-8")
        assert not inspect(folder).loads
        assert "The kit would refuse it" in list(inspect(folder).lines())[-1]
        (folder / file).write_text(kept, "utf-8")
