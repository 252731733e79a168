"""The verbs a user calls, on the bundled checkpoint."""

import base64
import dataclasses
import inspect
import io
import json
import re
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import make_oracle, write_checkpoint
from PIL import Image
from safetensors.torch import load_file, save_file

import imp_kit
from imp_kit.model import memory
from imp_kit.model.sampling import Sampling

IMAGES = Path(__file__).parent.parent / "images"
BUS, DOOR = IMAGES / "bus.png", IMAGES / "door.png"
COLORS = "What are the colors of the bus in the image?"


@pytest.fixture(scope="module")
def imp():
    return imp_kit.load("imp-nano", device="cpu", dtype="fp32")


def whole_prompt_tokens(imp, prompt_pieces, count):
    """Greedy tokens without View, Chat or any cache that was kept: the prompt is read anew for each token."""
    view = imp.look(DOOR)
    pixels = imp_kit.images.to_pixels(view.image, imp.model.config.vision.image_size, False)
    features = imp.model.encode(pixels[None])[0]
    ids = []
    with torch.inference_mode():
        while len(ids) < count:
            x = imp.model.splice([prompt_pieces[0], features, [*prompt_pieces[1], *ids]])
            ids.append(int(imp.model.decoder.logits(imp.model.decoder(x)[0, -1]).argmax()))
            if ids[-1] in imp.stop_ids:
                break
    return ids


def test_the_sample_pictures_are_answered_rightly(imp):
    assert str(imp.ask(BUS, COLORS)) == "The bus is red and white."
    assert str(imp.ask(DOOR, "What color is the door?")) == "The door is green."


def test_the_place_of_the_door(imp):
    assert str(imp.ask(DOOR, "Where is the door?")) == "The door is on the right."


def test_an_answer_tells_how_it_came_about(imp):
    answer = imp.ask(BUS, COLORS)
    assert answer.checkpoint == "imp-nano"
    assert (answer.device, answer.dtype, answer.finish) == ("cpu", "fp32", "stop")
    assert answer.tokens == len(answer.token_ids) + 1  # the stop token
    assert answer.prompt.endswith(f"USER: <image>\n{COLORS} ASSISTANT:")
    assert answer.seconds.look > 0
    assert answer.tokens_per_second > 0
    assert answer.peak_memory > 50e6
    assert "imp-nano" in answer._repr_html_()
    assert "<script>" not in dataclasses.replace(answer, text="<script>")._repr_html_()


@pytest.mark.parametrize(
    "picture",
    [str(BUS), BUS, BUS.read_bytes(), Image.open(BUS)],
    ids=["str", "path", "bytes", "PIL"],
)
def test_any_form_of_a_picture_gives_the_same_answer(imp, picture):
    assert imp.ask(picture, COLORS).token_ids == imp.ask(BUS, COLORS).token_ids


def test_a_view_answers_each_question_as_if_it_were_alone(imp):
    view = imp.look(DOOR)
    questions = ["What color is the door?", "Describe the image in detail.", "What is the person holding?"]
    first = [view.ask(question).token_ids for question in questions]
    again = [view.ask(question).token_ids for question in reversed(questions)][::-1]
    alone = [imp.ask(DOOR, question).token_ids for question in questions]
    assert first == again == alone


def test_a_view_equals_reading_the_whole_prompt(imp):
    opening = imp.tokenizer.encode_pieces(imp.template.open())
    asked = imp.tokenizer.encode_pieces(imp.template.ask("Describe the image in detail.", first=True))
    tokens = whole_prompt_tokens(imp, (opening, asked), 60)
    answer = imp.look(DOOR).ask("Describe the image in detail.")
    assert [*answer.token_ids] == [id for id in tokens if id not in imp.stop_ids]


def test_a_question_without_a_picture_is_text_alone(imp):
    question = "What color is the door?"
    answer = imp.ask(None, question)
    assert answer.prompt.endswith(f"questions. USER: {question} ASSISTANT:")
    assert "<image>" not in answer.prompt
    ids = imp.tokenizer.encode(answer.prompt)
    with torch.inference_mode():
        for token in answer.token_ids:
            assert token == int(imp.model.decoder.logits(imp.model.decoder(imp.model.splice([ids]))[0, -1]).argmax())
            ids.append(token)
    chat = imp.chat(None)
    chat.say(question)
    assert chat.say("Where is it?").prompt == f"{answer.prompt}{imp.tokenizer.decode(answer.token_ids)}</s>" + (
        "USER: Where is it? ASSISTANT:"
    )


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_new_tokens": 4}, {"stop": "is"}, {"stop": "door is"}],
    ids=["whole", "cut", "stopped", "stopped after the cache has read a part of the stop string"],
)
def test_a_chat_equals_reading_the_whole_prompt(imp, settings):
    """Also after an answer that was cut, whose last token the cache has not read, or that a stop string shortened."""
    chat = imp.chat(DOOR)
    first = chat.say("Where is the door?", **settings)
    length = chat._conversation.ask("What color is it?").prompt_length
    second = chat.say("What color is it?")
    ids = [
        *imp.tokenizer.encode_pieces(imp.template.ask("Where is the door?", first=True)),
        *first.token_ids,
        *imp.tokenizer.encode_pieces(imp.template.ask("What color is it?", first=False)),
    ]
    assert length == imp.engine.prefix_length(DOOR) + len(ids)
    tokens = whole_prompt_tokens(imp, (imp.tokenizer.encode_pieces(imp.template.open()), ids), 60)
    assert [*second.token_ids] == [id for id in tokens if id not in imp.stop_ids]
    read = imp.tokenizer.decode(first.token_ids)
    assert read.strip() == first.text or "stop" in settings
    assert second.prompt.endswith(f"ASSISTANT:{read}</s>USER: What color is it? ASSISTANT:")
    assert [question for question, _ in chat.turns] == ["Where is the door?", "What color is it?"]


def test_a_stream_joins_to_the_answer(imp):
    view = imp.look(DOOR)
    pieces = list(view.stream("Describe the image in detail."))
    assert len(pieces) > 5
    assert "".join(pieces) == view.ask("Describe the image in detail.").text


def test_two_streams_of_one_view_do_not_disturb_each_other(imp):
    view = imp.look(DOOR)
    one, other = view.stream("Describe the image in detail."), view.stream("What color is the door?")
    pieces = [next(one), next(other), *one]
    assert pieces[0] + "".join(pieces[2:]) == view.ask("Describe the image in detail.").text


def test_a_look_is_counted_once(imp):
    view = imp.look(DOOR)
    first, second = view.ask("Where is the door?"), view.ask("What color is the door?")
    assert first.seconds.look >= view.seconds > 0
    assert second.seconds.look < view.seconds / 2  # nothing but the preparation of the batch


def test_a_dropped_stream_leaves_the_look_to_the_first_answer(imp):
    view = imp.look(DOOR)
    stream = view.stream("Where is the door?")
    next(stream)
    stream.close()
    assert view.ask("Where is the door?").seconds.look == view.seconds


@pytest.mark.slow
def test_a_slow_reader_of_a_stream_is_no_time_of_the_answer(imp):
    chat, slept = imp.chat(DOOR), 0.0
    start = time.perf_counter()
    for _ in chat.stream("Describe the image in detail."):
        time.sleep(0.2)
        slept += 0.2
    elapsed = time.perf_counter() - start
    ((_, answer),) = chat.turns
    assert slept > 1
    assert 0 < answer.seconds.decode <= elapsed - slept


@pytest.mark.parametrize("question", [5, None, b"What?", ["What?"]])
def test_what_is_no_text_is_no_question(imp, question):
    view = imp.look(DOOR)
    for ask in (view.ask, view.stream, imp.chat(DOOR).say, imp.chat(DOOR).stream):
        with pytest.raises(imp_kit.PromptError, match="A question is text"):
            ask(question)


@pytest.mark.parametrize("order", ["one after the other", "interleaved"])
def test_a_second_stream_of_one_chat_is_refused(imp, order):
    """Both would answer behind the same turn, and the chat could keep only one of them."""
    chat = imp.chat(DOOR)
    one, other = chat.stream("Where is the door?"), chat.stream("What color is the door?")
    if order == "interleaved":
        next(other)
    text = "".join(one)
    with pytest.raises(imp_kit.PromptError, match="another answer"):
        list(other)
    assert [str(answer) for _, answer in chat.turns] == [text]
    assert chat.say("What color is it?").prompt.count("ASSISTANT:") == 2


def test_a_dropped_stream_leaves_the_chat_as_it_was(imp):
    chat = imp.chat(DOOR)
    chat.say("Where is the door?")
    stream = chat.stream("Describe the image in detail.")
    next(stream)
    stream.close()
    fresh = imp.chat(DOOR)
    fresh.say("Where is the door?")
    assert chat.say("What color is it?").token_ids == fresh.say("What color is it?").token_ids
    assert len(chat.turns) == 2


def test_max_new_tokens_ends_an_answer(imp):
    answer = imp.ask(DOOR, "Describe the image in detail.", max_new_tokens=3)
    assert (answer.tokens, answer.finish, len(answer.token_ids)) == (3, "length", 3)


def test_a_stop_string_ends_an_answer_and_does_not_show(imp):
    whole = imp.ask(BUS, COLORS)
    answer = imp.ask(BUS, COLORS, stop=" and")
    assert whole.text.startswith(answer.text)
    assert " and" not in answer.text
    assert answer.finish == "stop"
    assert "".join(imp.look(BUS).stream(COLORS, stop=[" and", "never"])) == answer.text


def test_sampling_is_repeatable_by_its_seed(imp):
    view = imp.look(DOOR)
    settings = {"temperature": 5.0, "max_new_tokens": 20}
    one = view.ask("Describe the image.", seed=1, **settings)
    assert view.ask("Describe the image.", seed=1, **settings).token_ids == one.token_ids
    others = {view.ask("Describe the image.", seed=seed, **settings).token_ids for seed in range(2, 6)}
    assert others != {one.token_ids}
    sure = view.ask("Describe the image.", temperature=5.0, top_p=1e-6, seed=1)
    assert sure.token_ids == view.ask("Describe the image.").token_ids


def test_control_tokens_in_a_question_are_text(imp):
    answer = imp.ask(BUS, "Is </s> or <|endoftext|> there?")
    ids = imp.tokenizer.encode_pieces(imp.template.ask("Is </s> or <|endoftext|> there?", first=True))
    assert not imp.stop_ids & set(ids)
    assert "Is </s> or <|endoftext|> there?" in answer.prompt


@pytest.mark.parametrize("question", ["", "   ", None, 7, "what is <image>?"])
def test_a_question_that_cannot_be_asked(imp, question):
    with pytest.raises(imp_kit.PromptError):
        imp.ask(BUS, question)


def test_a_question_longer_than_the_context(imp):
    chat = imp.chat(BUS)
    with pytest.raises(imp_kit.PromptError, match=r"tokens long, and imp-nano reads 1024"):
        chat.say("why " * 1000)
    assert chat.turns == []
    assert chat.say(COLORS).text == imp.ask(BUS, COLORS).text


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 2.5},
        {"max_new_tokens": True},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_p": 1.1},
        {"seed": -1},
        {"seed": "a"},
        {"stop": ""},
        {"stop": [""]},
        {"stop": 3},
        {"max_tokens": 5},
    ],
    ids=str,
)
def test_settings_without_sense_are_told_before_any_work(imp, settings):
    with pytest.raises(imp_kit.SettingError, match=next(iter(settings))):
        imp.ask("no such file.png", COLORS, **settings)
    with pytest.raises(imp_kit.SettingError):
        imp.look(BUS).stream(COLORS, **settings)


@pytest.mark.parametrize("device", ["gpu", "cuda:77", "meta", 3.5, "mps:9"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(imp_kit.SettingError, match="device"):
        imp_kit.load("imp-nano", device=device)


@pytest.mark.parametrize("dtype", ["fp64", "int8", "half?", None, torch.int8])
def test_a_dtype_that_is_unknown(dtype):
    with pytest.raises(imp_kit.SettingError, match="dtype"):
        imp_kit.load("imp-nano", dtype=dtype)


@pytest.mark.parametrize("dtype", ["bf16", "bfloat16", torch.bfloat16, "fp16", torch.float16])
def test_every_dtype_answers(dtype):
    imp = imp_kit.load("imp-nano", device="cpu", dtype=dtype)
    assert imp.dtype in ("bf16", "fp16")
    assert str(imp.ask(DOOR, "What color is the door?")) == "The door is green."


def test_without_a_name_the_choice_is_told(capfd):
    """On stdout, as notebooks show stderr on red ground."""
    imp = imp_kit.load()
    expected, alarm = capfd.readouterr()
    assert alarm == ""
    assert imp.name in expected
    assert imp.why in expected
    assert imp.why in repr(imp)
    if not torch.cuda.is_available():
        assert imp.name == "imp-nano"
        assert "no GPU" in imp.why


def test_importing_the_kit_brings_no_torch():
    code = "import imp_kit, sys; assert 'torch' not in sys.modules; print(imp_kit.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == imp_kit.__version__


def test_every_public_name_is_there():
    for name in imp_kit.__all__:
        assert getattr(imp_kit, name).__doc__
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = imp_kit.nothing_like_it


# Loading: every choice, on checkpoints of tiny random networks ------------------------------------------------


@pytest.fixture
def tiny(tmp_path):
    return write_checkpoint(make_oracle(), tmp_path / "tiny")


def kept(checkpoint, picture):
    """The keys and values of a picture, read by an Imp that saw no other."""
    cache = imp_kit.load(checkpoint, device="cpu", dtype="fp32").look(picture).prefix
    return cache.buffer.tensor[..., : cache.length, :]


def test_a_padded_picture_is_padded(tiny):
    """image_aspect_ratio "pad": a wide picture counts as the same picture on a grey square."""
    config = json.loads((tiny / "config.json").read_text("utf-8"))
    (tiny / "config.json").write_text(json.dumps({**config, "image_aspect_ratio": "pad"}), "utf-8")
    wide = Image.open(BUS).convert("RGB")
    square = Image.new("RGB", (wide.width, wide.width), (127, 127, 127))
    square.paste(wide, (0, (wide.width - wide.height) // 2))
    assert torch.equal(kept(tiny, wide), kept(tiny, square))
    (tiny / "config.json").write_text(json.dumps(config), "utf-8")
    assert not torch.equal(kept(tiny, wide), kept(tiny, square))


def test_a_tokenizer_larger_than_the_vocabulary(tiny):
    tokenizer = json.loads((tiny / "tokenizer.json").read_text("utf-8"))
    last = max(tokenizer["added_tokens"], key=lambda token: token["id"])
    extra = [{**last, "id": last["id"] + n, "content": f"<extra{n}>"} for n in range(1, 9)]
    tokenizer["added_tokens"] += extra
    (tiny / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    with pytest.raises(imp_kit.CheckpointError, match="ids up to 307, but config.json a vocabulary of 304"):
        imp_kit.load(tiny, device="cpu")


def test_tensors_that_nobody_knows_are_told(tiny):
    tensors = load_file(tiny / "model.safetensors")
    save_file({**tensors, "something.else": torch.zeros(2)}, tiny / "model.safetensors")
    with pytest.warns(UserWarning, match=r"does not use: something\.else"):
        imp_kit.load(tiny, device="cpu")


def test_a_revision_of_a_folder(tiny):
    for checkpoint in (tiny, "imp-nano"):
        with pytest.raises(imp_kit.CheckpointError, match="revision, 'v1', belongs to a hub id"):
            imp_kit.load(checkpoint, revision="v1")


def test_a_small_model_on_a_cpu_is_fp32(imp):
    assert imp_kit.load("imp-nano", device="cpu").dtype == "fp32"


@pytest.mark.parametrize("layout", ["old", "qwen", "phi3"])
def test_every_family_answers_and_chats(tmp_path, layout):
    family = {"old": "imp", "qwen": "imp_qwen2", "phi3": "imp_phi3"}[layout]
    imp = imp_kit.load(write_checkpoint(make_oracle(0, family), tmp_path, layout), device="cpu", dtype="fp32")
    chat = imp.chat(BUS)
    first, second = chat.say("a?", max_new_tokens=5), chat.say("b?", max_new_tokens=5)
    assert first.prompt == "".join((*imp.template.open(), *imp.template.ask("a?", first=True)))
    assert second.prompt.startswith(first.prompt)
    assert second.tokens >= 1


def test_the_context_ends_an_answer_and_then_the_chat(tiny):
    """A random network says no stop token, so its answer fills the context to the last position."""
    imp = imp_kit.load(tiny, device="cpu", dtype="fp32")
    chat = imp.chat(BUS)
    answer = chat.say("a?", max_new_tokens=10_000)
    assert answer.finish == "length"
    read = chat.view.prefix.length + len(imp.tokenizer.encode_pieces(imp.template.ask("a?", first=True)))
    # The token after the last position can still be chosen, as nothing is asked behind it.
    assert answer.tokens == imp.model.config.decoder.max_positions - read + 1
    with pytest.raises(imp_kit.PromptError, match="begin a new chat"):
        chat.say("b?")
    assert len(chat.turns) == 1


def test_the_file_cache_of_a_container_counts_as_free(monkeypatch, tmp_path):
    """Docker's limit of 3 MB with 2.5 MB in use, 2 MB of them files that were read."""
    expected = {
        "memory.max": "3000000",
        "memory.current": "2500000",
        "memory.stat": "anon 500000\ninactive_file 2000000",
    }
    for name, text in expected.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "Path", lambda path: tmp_path if path == "/sys/fs/cgroup" else Path(path))
    assert memory.free_memory(torch.device("cpu")) == 2_500_000


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64])
def test_numbers_of_numpy_are_taken_as_pythons_own(kind):
    taken = Sampling(kind(5), temperature=Fraction(1, 2))
    assert (type(taken.max_new_tokens), type(taken.temperature)) == (int, float)


def test_the_likeliest_token_stays_whatever_top_p_is():
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert Sampling(temperature=1.0, top_p=1e-46, seed=0).pick(logits, [torch.Generator()]).tolist() == [1]


@pytest.mark.parametrize(
    "verb",
    [
        *(getattr(imp_kit.Imp, name) for name in ("ask", "caption", "locate", "describe", "ask_many")),
        *(imp_kit.View.ask, imp_kit.View.stream, imp_kit.Chat.say, imp_kit.Chat.stream),
    ],
    ids=lambda verb: verb.__qualname__,
)
def test_help_names_each_setting_with_its_default(verb):
    """As `Sampling` has them, and one more, which is no part of it."""
    shown = {name: p.default for name, p in inspect.signature(verb).parameters.items() if p.kind is p.KEYWORD_ONLY}
    settings = {field.name: field.default for field in dataclasses.fields(Sampling)} | {"stop": None}
    assert settings.items() <= shown.items()
    assert "settings" not in inspect.signature(verb).parameters


def test_an_answer_compares_with_a_text(imp):
    answer, again = imp.ask(BUS, COLORS), imp.ask(BUS, COLORS)
    assert answer == "The bus is red and white."
    assert answer != "The bus is red."
    assert "red" in answer
    assert f"{answer:>30}" == "     The bus is red and white."
    assert {answer: 1}["The bus is red and white."] == 1
    assert answer == dataclasses.replace(answer)
    assert answer != again  # which took another time
    assert answer != 1


def test_an_answer_is_json_and_a_row_of_a_table(imp):
    answer = imp.ask(BUS, COLORS)
    row = answer.to_dict()
    assert json.loads(json.dumps(row)) == row
    assert not any(isinstance(value, dict) for value in row.values())
    fields = {field.name for field in dataclasses.fields(answer)} - {"seconds"}
    assert row.keys() == fields | {"look_seconds", "prefill_seconds", "decode_seconds"}
    assert (row["text"], tuple(row["token_ids"])) == (answer.text, answer.token_ids)
    assert (row["look_seconds"], row["decode_seconds"]) == (answer.seconds.look, answer.seconds.decode)


def test_a_view_and_a_chat_show_themselves_in_a_notebook(imp):
    chat = imp.chat(DOOR)
    answer = chat.say("Where is the <door>?")
    for shown in (chat.view, chat):
        found = re.search(r"<img src='data:image/png;base64,([^']+)'", shown._repr_html_())
        small = Image.open(io.BytesIO(base64.b64decode(found[1])))
        assert max(small.size) == 240
        width, height = chat.view.picture.size
        assert small.width / small.height == pytest.approx(width / height, rel=0.02)
        assert "imp-nano" in repr(shown)
    assert "Where is the &lt;door&gt;?" in chat._repr_html_()
    assert answer.text in chat._repr_html_()
    assert "1 question asked" in repr(chat)
    assert "no picture" in imp.look(None)._repr_html_()
    assert "<img" not in imp.chat(None)._repr_html_()


@pytest.mark.parametrize(
    "question", [str(BUS), BUS, BUS.read_bytes(), Image.new("RGB", (8, 8)), np.zeros((8, 8)), "not/there.JPG"]
)
def test_swapped_arguments_are_named(imp, question):
    for ask in (imp.ask, imp.locate):
        with pytest.raises(imp_kit.PromptError, match="The picture comes first"):
            ask("Where is the bus?", question)
    with pytest.warns(UserWarning, match="The picture comes first"):
        imp.ask_many([("Where is the bus?", question)], progress=False)


@pytest.mark.parametrize(
    ("picture", "question"), [("missing.png", "Where?"), (BUS, 5), ("missing.png", None), (BUS, BUS)]
)
def test_other_slips_are_not_called_swapped(imp, picture, question):
    with pytest.raises(imp_kit.ImpKitError) as expected:
        imp.ask(picture, question)
    assert "comes first" not in str(expected.value)


@pytest.mark.parametrize(
    "question",
    [
        "この男は何をしていますか?",
        "이 남자는 무엇을 하고 있나요?",
        "Welche Farbe hat der Bus?",
        "Qu'est-ce que c'est ?",
        "Что это?",
    ],
)
def test_a_question_in_a_language_that_imp_nano_never_learned_is_warned_of_once(question, recwarn):
    imp = imp_kit.load("imp-nano", device="cpu")
    imp.ask(BUS, question, max_new_tokens=1)
    list(imp.look(BUS).stream(question, max_new_tokens=1))
    (expected,) = recwarn
    assert "knows few words of this question" in str(expected.message)


def test_english_and_other_checkpoints_are_not_warned_of(imp, recwarn, tmp_path):
    for question in (
        COLORS,
        "Could you tell me where the dog is?",
        "How many circles do you see?",
        "What does it say?",
    ):
        imp.ask(BUS, question, max_new_tokens=1)
    imp_kit.load(imp.snapshot.folder, device="cpu").ask(BUS, "何ですか", max_new_tokens=1)
    assert not recwarn


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_batch_of_one_is_the_single_answer_in_16_bit(dtype):
    """Where rounding differs with the size of a batch, this is how many questions get exactly what each gets alone."""
    imp = imp_kit.load("imp-nano", device="cpu", dtype=dtype)
    questions = [
        (picture, text) for picture in (BUS, DOOR) for text in (COLORS, "Describe the image in detail.", "Where?")
    ]
    alone = [imp.ask(*pair).token_ids for pair in questions]
    assert [answer.token_ids for answer in imp.ask_many(questions, batch_size=1, progress=False)] == alone
