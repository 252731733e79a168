"""The server: real requests over loopback, whose answers are those of `ask`, and everything that is refused."""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from forms import FORMS, NEXT, QUESTION, REPLY, kit_ids, put_in_cache
from oracle import DECODER, SPECIAL, Oracle, write_checkpoint
from PIL import Image
from serve_load import Client, data_url, started, user

import imp_kit
from imp_kit import engine as engines
from imp_kit.engine import Conversation
from imp_kit.serving import app as routes
from imp_kit.serving.requests import MAX_BODY_BYTES, MAX_IMAGE_PIXELS
from imp_kit.serving.server import Server, serve

ROOT = Path(__file__).parent.parent
BUS, DOOR = ((ROOT / "images" / name).read_bytes() for name in ("bus.png", "door.png"))
COLORS = "What are the colors of the bus in the image?"
NANO = ("--checkpoint", "imp-nano", "--device", "cpu", "--dtype", "fp32")


@pytest.fixture(scope="module")
def imp():
    return imp_kit.load("imp-nano", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def url():
    """A server as a user starts it, in a process of its own."""
    with started(*NANO) as (address, process):
        yield address
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    assert (process.returncode, printed, errors) == (130, "", "")


@pytest.fixture
def client(url):
    return Client(url)


@contextmanager
def served(imp, **settings):
    """A server in this process, to look into: its address and itself."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        server = Server(imp, **settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1", server
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def request(*messages, **settings):
    """A request for imp-nano; a text is a user's question about the bus."""
    return {
        "model": "imp-nano",
        "messages": [user(each, BUS) if isinstance(each, str) else each for each in messages],
        **settings,
    }


def text(answer):
    return answer["choices"][0]["message"]["content"]


def chunks(client, **asked):
    """The events of a stream, without the last, which says that it is the last."""
    body = json.dumps({**asked, "stream": True}).encode()
    status, headers, content = client.send("POST", f"{client.place.path}/chat/completions", body)
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    events = content.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def joined(events):
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events if event["choices"])


# Answers -------------------------------------------------------------------------------------------------------

CASES = [
    (BUS, COLORS, {}),
    (DOOR, "Describe the image.", {"max_tokens": 3}),
    (BUS, "Describe the image.", {"stop": " and"}),
    (None, "Is there a bus?", {}),
    (DOOR, "Where is the door?", {"temperature": 1.5, "seed": 7, "max_tokens": 20}),
    (DOOR, "Where is the door?", {"temperature": 1.5, "seed": 8, "top_p": 0.5, "max_completion_tokens": 30}),
    (BUS, "Is there a bus?", {"stop": ["bus", "."], "temperature": 0.0, "seed": 3, "n": 1}),
    (None, "What color is a bus?", {"temperature": 2.0, "seed": 1}),
]


def alone(imp, image, question, settings):
    renamed = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}
    kept = {renamed.get(name, name): value for name, value in settings.items() if name != "n"}
    return imp.ask(image, question, **kept)


def check(imp, answer, expected):
    """A completion is the answer of `ask`, token for token."""
    choice = answer["choices"][0]
    decoded = [imp.tokenizer.decode([id]) for id in expected.token_ids]
    assert [token["token"] for token in choice["logprobs"]["content"]] == decoded
    assert (text(answer), choice["finish_reason"]) == (expected.text, expected.finish)
    assert answer["usage"]["completion_tokens"] == expected.tokens


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_an_answer_is_that_of_ask(imp, client, case):
    image, question, settings = case
    status, answer = client.ask(**request(user(question, image), logprobs=True, **settings))
    assert status == 200
    check(imp, answer, alone(imp, *case))
    assert (answer["object"], answer["model"]) == ("chat.completion", "imp-nano")
    prompt = len(imp.tokenizer.encode_pieces(imp.template.ask_alone(question), begins=True))
    if image:
        pieces = (*imp.template.open(), *imp.template.ask(question, first=True))
        prompt = len(imp.tokenizer.encode_pieces(pieces, begins=True)) + imp.model.config.vision.num_patches
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["total_tokens"]) == (prompt, prompt + usage["completion_tokens"])


REQUESTS = 64  # with 640, all answers were those of ask, too


def test_32_clients_at_once_get_the_answers_of_ask(imp):
    """Rows with settings of their own stand side by side in the batches; half of the clients read a stream."""
    local = threading.local()
    expected = [alone(imp, *case) for case in CASES]
    with served(imp) as (url, server):

        def ask(number):
            local.client = getattr(local, "client", None) or Client(url)
            image, question, settings = CASES[number % len(CASES)]
            asked = request(user(question, image), logprobs=True, **settings)
            if number % 2:
                return chunks(local.client, **asked)
            status, answer = local.client.ask(**asked)
            assert status == 200
            return answer

        sizes = []
        real = imp.engine.stream

        def counted(turns, *others):
            sizes.append(len(turns))
            return real(turns, *others)

        imp.engine.stream = counted
        try:
            with ThreadPoolExecutor(32) as pool:
                answers = list(pool.map(ask, range(REQUESTS)))
        finally:
            del imp.engine.stream
        assert server.batcher.places == 0
    assert max(sizes) == 8
    assert len(sizes) < REQUESTS / 2
    for number, answer in enumerate(answers):
        if number % 2:
            assert joined(answer) == expected[number % len(CASES)].text
        else:
            check(imp, answer, expected[number % len(CASES)])


def test_the_pieces_of_a_stream_join_to_the_answer(imp, client):
    asked = request(COLORS, logprobs=True, top_logprobs=3)
    events = chunks(client, **asked, stream_options={"include_usage": True})
    _, whole = client.ask(**asked)
    assert joined(events) == text(whole)
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len([event for event in events if event["choices"] and event["choices"][0]["delta"].get("content")]) > 3
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * (len(events) - 2) + ["stop"]
    assert (events[-1]["choices"], events[-1]["usage"]) == ([], whole["usage"])
    assert all(event["usage"] is None for event in events[:-1])
    assert len({(event["id"], event["object"]) for event in events}) == 1
    scores = [token for event in events[:-1] for token in event["choices"][0]["logprobs"]["content"]]
    assert [each["token"] for each in scores] == [each["token"] for each in whole["choices"][0]["logprobs"]["content"]]
    assert "usage" not in chunks(client, **request(COLORS))[-1]


@pytest.mark.parametrize("settings", [{"stop": " red"}, {"stop": "ed an"}, {"max_tokens": 2}], ids=str)
def test_scores_of_a_stream_end_with_its_text(imp, client, settings):
    """A stop text cuts within a token; what is not shown has no scores."""
    asked = request(COLORS, logprobs=True, **settings)
    events, (_, whole) = chunks(client, **asked), client.ask(**asked)
    streamed = [token for event in events for token in event["choices"][0]["logprobs"]["content"]]
    assert [token["token"] for token in streamed] == [
        token["token"] for token in whole["choices"][0]["logprobs"]["content"]
    ]
    assert joined(events) == text(whole)
    assert text(whole).startswith("".join(token["token"] for token in streamed).strip())


def test_a_seed_makes_an_answer_repeatable(client):
    asked = request("Why?", temperature=2, max_tokens=20)  # imp-nano was not taught it, so it has no one answer
    first, again = ([text(client.ask(**asked, seed=seed)[1]) for seed in range(8)] for _ in range(2))
    assert first == again
    assert len(set(first)) >= 3, "other seeds draw other answers, though two may agree"


def test_earlier_turns_given_as_text_are_those_of_a_chat(imp, client):
    chat, messages = imp.chat(BUS), []
    for question in (COLORS, "Where is it?", "Is there a cat?"):
        said = chat.say(question)
        messages.append(user(question, None if messages else BUS))
        _, answer = client.ask(**request(*messages))
        assert text(answer) == said.text
        messages.append({"role": "assistant", "content": said.text})
        conversation = Conversation(imp.engine, chat.view.image)
        for number in range(0, len(messages), 2):
            conversation.add(messages[number]["content"][0]["text"], messages[number + 1]["content"])
        expected = Conversation(imp.engine, chat.view.image)
        for asked, _ in chat.turns:
            imp.engine.answer([turn := expected.ask(asked)], engines.Sampling(), [0])
        assert conversation.ask("Why?").pieces == expected.ask("Why?").pieces
        assert conversation.ask("Why?").prompt_length == expected.ask("Why?").prompt_length
    assert turn.answer


@pytest.mark.parametrize("form", {form.family: form for form in FORMS}.values(), ids=str)
def test_earlier_turns_have_the_tokens_of_the_published_tokenizers(form, tmp_path):
    imp = imp_kit.load(put_in_cache(form, tmp_path), device="cpu", dtype="fp32")
    conversation = Conversation(imp.engine, imp_kit.images.open_image(BUS))
    conversation.add(QUESTION, REPLY)
    assert conversation.ask(NEXT).ids == kit_ids(imp)[1][1]


def test_an_empty_answer_before(imp, client):
    """As one that a stop text ended at once."""
    chat = imp.chat(BUS)
    assert chat.say(COLORS, stop="The").text == ""
    before = (user(COLORS, BUS), {"role": "assistant", "content": ""})
    _, answer = client.ask(**request(*before, user("Where is it?")))
    assert text(answer) == chat.say("Where is it?").text


# Scores --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.3, "seed": 4, "top_p": 0.9}], ids=["greedy", "drawn"])
def test_scores_are_those_of_transformers(oracle, whole, settings):
    """Of a tiny random model, alone and in a batch: the chosen tokens' and the likeliest ones'."""
    imp = imp_kit.load(whole, device="cpu", dtype="fp32")
    side = oracle.tower["image_size"]
    values = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    pixels = torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1).float()
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    before = imp.tokenizer.encode_pieces(imp.template.open(), begins=True)
    questions = ("What?", "What is it, then?", "What?")
    with served(imp) as (url, _), ThreadPoolExecutor(3) as pool:

        def ask(question):
            asked = {"logprobs": True, "top_logprobs": 5, "max_tokens": 12, **settings}
            message = user(question, file.getvalue())
            return Client(url).ask(model=imp.name, messages=[message], **asked)[1]

        answers = list(pool.map(ask, questions))
    for question, answer in zip(questions, answers, strict=True):
        expected = imp.ask(values, question, max_new_tokens=12, **settings)
        content, ids = answer["choices"][0]["logprobs"]["content"], list(expected.token_ids)
        after = imp.tokenizer.encode_pieces(imp.template.ask(question, first=True))
        logits = oracle.logits(oracle.embed(before, pixels, [*after, *ids]))[0, -len(ids) - 1 : -1]
        logs = logits.double().log_softmax(-1)
        assert len(content) == len(ids) > 3
        for token, id, row in zip(content, ids, logs, strict=True):
            assert token["logprob"] == pytest.approx(row[id].item(), abs=1e-3)
            top = [each["logprob"] for each in token["top_logprobs"]]
            assert top == pytest.approx(row.topk(5).values.tolist(), abs=1e-3)
            likeliest = int(row.argmax())
            decoded = imp.tokenizer.decode([likeliest])
            names = {own: name for name, own in imp.tokenizer.control.items()}
            assert token["top_logprobs"][0]["token"] == names.get(likeliest, decoded)


def test_bytes_of_a_token(client):
    """UTF-8 of its text; joined, they are the answer's."""
    _, answer = client.ask(**request(COLORS, logprobs=True))
    content = answer["choices"][0]["logprobs"]["content"]
    assert bytes(byte for token in content for byte in token["bytes"]).decode().strip() == text(answer)
    assert all(token["top_logprobs"] == [] for token in content)
    _, plain = client.ask(**request(COLORS))
    assert plain["choices"][0]["logprobs"] is None


# What is refused -----------------------------------------------------------------------------------------------


def part(**values):
    return {"role": "user", "content": [values]}


ASSISTANT = {"role": "assistant", "content": "A bus."}
WITH_URL = part(type="image_url", image_url={"url": "https://example.org/a.png"})
# What is changed in a good request -> status, parameter, code, a part of the message
BAD = {
    "no messages": ({"messages": []}, 400, "messages", "too_short", "at least 1 item"),
    "messages left out": ({"messages": None}, 400, "messages", "list_type", "valid array"),
    "no model": ({"model": None}, 400, "model", "string_type", "valid string"),
    "another model": ({"model": "gpt-4"}, 404, "model", "model_not_found", "this server has 'imp-nano'"),
    "hot": ({"temperature": 2.1}, 400, "temperature", "less_than_equal", "less than or equal to 2"),
    "a temperature as text": ({"temperature": "1"}, 400, "temperature", "float_type", "valid number"),
    "top_p 0": ({"top_p": 0}, 400, "top_p", "greater_than", "greater than 0"),
    "no tokens": ({"max_tokens": 0}, 400, "max_tokens", "greater_than_equal", "greater than or equal to 1"),
    "true tokens": ({"max_tokens": True}, 400, "max_tokens", "int_type", "valid integer"),
    "two limits": (
        {"max_tokens": 3, "max_completion_tokens": 4},
        400,
        "max_tokens",
        None,
        "max_tokens and max_completion_tokens differ",
    ),
    "a negative seed": ({"seed": -1}, 400, "seed", "greater_than_equal", "greater than or equal to 0"),
    "a huge seed": ({"seed": 2**63}, 400, "seed", "less_than", "less than"),
    "an empty stop text": ({"stop": [""]}, 400, "stop[0]", "string_too_short", "at least 1 character"),
    "five stop texts": ({"stop": list("abcde")}, 400, "stop", "too_long", "at most 4 items, not 5"),
    "many likeliest": ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "less_than_equal", "to 20"),
    "likeliest alone": ({"top_logprobs": 2}, 400, "top_logprobs", None, "set logprobs to true"),
    "two answers": ({"n": 2}, 400, "n", "unsupported_parameter", "one answer"),
    "tools": ({"tools": [{"type": "function"}]}, 400, "tools", "unsupported_parameter", "'tools'"),
    "audio": ({"audio": {"voice": "x"}}, 400, "audio", "unsupported_parameter", "'audio'"),
    "JSON": (
        {"response_format": {"type": "json_object"}},
        400,
        "response_format",
        "unsupported_parameter",
        "'response_format'",
    ),
    "a penalty": ({"frequency_penalty": 1}, 400, "frequency_penalty", "unsupported_parameter", "leave it out"),
    "anything": ({"top_k": 5}, 400, "top_k", "unsupported_parameter", "'top_k'"),
    "a system prompt": (
        {"messages": [{"role": "system", "content": "Be short."}]},
        400,
        "messages[0].role",
        "unsupported_parameter",
        "one system prompt",
    ),
    "an unknown role": (
        {"messages": [{"role": "critic", "content": "?"}]},
        400,
        "messages[0].role",
        "unsupported_parameter",
        "The role 'critic'",
    ),
    "no role": ({"messages": [{"content": "?"}]}, 400, "messages[0].role", "missing", "required"),
    "the assistant first": ({"messages": [ASSISTANT]}, 400, "messages[0].role", None, "'user' is expected"),
    "the assistant last": ({"messages": [user("?"), ASSISTANT]}, 400, "messages", None, "end with a question"),
    "two of the user": ({"messages": [user("?"), user("?")]}, 400, "messages[1].role", None, "take turns"),
    "a tool called": (
        {"messages": [user("?"), {**ASSISTANT, "tool_calls": [{}]}, user("?")]},
        400,
        "messages[1].tool_calls",
        "unsupported_parameter",
        "'tool_calls'",
    ),
    "nothing asked": ({"messages": [user("")]}, 400, "messages[0]", "invalid_prompt", "The question is empty"),
    "nothing in it": (
        {"messages": [{"role": "user"}]},
        400,
        "messages[0]",
        "invalid_prompt",
        "The question is empty",
    ),
    "a number asked": (
        {"messages": [{"role": "user", "content": 5}]},
        400,
        "messages[0].content",
        "list_type",
        "array",
    ),
    "too long": (
        {"messages": [user("word " * 3000)]},
        400,
        "messages[0]",
        "context_length_exceeded",
        "Ask a shorter question",
    ),
    "a long conversation": (
        {"messages": [user("word " * 200), ASSISTANT] * 20 + [user("?")]},
        400,
        None,
        "context_length_exceeded",
        "begin a new chat",
    ),
    "the picture's mark": ({"messages": [user("<image> What?")]}, 400, "messages[0]", "invalid_prompt", "<image>"),
    "sound": (
        {"messages": [part(type="input_audio", input_audio={})]},
        400,
        "messages[0].content[0].type",
        "unsupported_parameter",
        "'input_audio' is not supported",
    ),
    "a part without its text": (
        {"messages": [part(type="text")]},
        400,
        "messages[0].content[0].text",
        None,
        "has no text",
    ),
    "two images": (
        {"messages": [{"role": "user", "content": user("?", BUS)["content"] + user("?", DOOR)["content"]}]},
        400,
        "messages[0].content[3]",
        "unsupported_parameter",
        "a second image",
    ),
    "a later image": (
        {"messages": [user("?"), ASSISTANT, user("?", BUS)]},
        400,
        "messages[2].content[1]",
        "unsupported_parameter",
        "in a later message",
    ),
    "an address": (
        {"messages": [WITH_URL]},
        400,
        "messages[0].content[0].image_url.url",
        "invalid_image_url",
        "fetches nothing",
    ),
    "a file": (
        {"messages": [part(type="image_url", image_url={"url": "file:///etc/passwd"})]},
        400,
        "messages[0].content[0].image_url.url",
        "invalid_image_url",
        "fetches nothing",
    ),
    "no base64": (
        {"messages": [part(type="image_url", image_url={"url": "data:image/png;base64,a*b"})]},
        400,
        "messages[0].content[0].image_url.url",
        "invalid_base64",
        "no valid base64",
    ),
    "no ASCII": (
        {"messages": [part(type="image_url", image_url={"url": "data:image/png;base64,äöü"})]},
        400,
        "messages[0].content[0].image_url.url",
        "invalid_base64",
        "no valid base64",
    ),
    "no image": ({"messages": [user("?", b"plain text")]}, 400, None, "invalid_image", "not a picture"),
    "an empty image": ({"messages": [user("?", b"")]}, 400, None, "invalid_image", "empty"),
    "half an image": ({"messages": [user("?", BUS[:5000])]}, 400, None, "invalid_image", "cannot be"),
    "PostScript": (
        {"messages": [user("?", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")]},
        400,
        None,
        "invalid_image",
        "not a picture",
    ),
    "a heavy image": ({"messages": [user("?", bytes(10_000_001))]}, 413, None, "image_too_large", "more than 10 MB"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_request_that_is_refused(client, name):
    change, status, param, code, message = BAD[name]
    answered, body = client.ask(**{**request(COLORS), **change})
    error = body["error"]
    assert (answered, error["code"]) == (status, code)
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"
    if param:
        assert error["param"] == param
    assert client.ask(**request(COLORS))[0] == 200


def test_neutral_values_are_taken(client):
    """What clients send although it asks for nothing."""
    neutral = {
        **{"n": 1, "stop": None, "stream": False, "user": "me", "store": False, "metadata": {"a": "b"}},
        **{"presence_penalty": 0, "frequency_penalty": 0.0, "response_format": {"type": "text"}, "tools": []},
        **{"tool_choice": None, "logit_bias": {}, "temperature": None, "seed": None, "top_logprobs": None},
    }
    message = {**user(COLORS, BUS), "name": "me"}
    message["content"][1]["image_url"]["detail"] = "auto"
    earlier = {**ASSISTANT, "refusal": None, "tool_calls": None, "audio": None}
    status, answer = client.ask(**request(message, earlier, user("Where is it?"), **neutral))
    assert (status, answer["choices"][0]["finish_reason"]) == (200, "stop")


def png_of(width, height):
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


def test_an_image_of_many_pixels(client):
    side = int(MAX_IMAGE_PIXELS**0.5)
    assert client.ask(**request(user("?", png_of(side, side))))[0] == 200
    status, body = client.ask(**request(user("?", png_of(side + 1, side))))
    assert (status, body["error"]["code"]) == (413, "image_too_large")
    assert "5001 x 5000 is over 25,000,000 pixels" in body["error"]["message"]
    assert client.ask(**request(user("?", png_of(65_535, 1))))[0] == 200
    status, body = client.ask(**request(user("?", png_of(65_536, 1))))
    assert (status, body["error"]["code"]) == (413, "image_too_large")
    assert "a side of more than 65,535 pixels" in body["error"]["message"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_kinds_of_images(imp, client, kind):
    file = io.BytesIO()
    Image.open(io.BytesIO(BUS)).convert("RGB").save(file, kind)
    status, answer = client.ask(**request(user(COLORS, file.getvalue())))
    assert (status, text(answer)) == (200, imp.ask(file.getvalue(), COLORS).text)


def test_a_kind_of_file_that_another_program_would_draw(client):
    """PIL hands PostScript to Ghostscript, and only then sees what is wrong with it."""
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(page)).format == "EPS"
    status, body = client.ask(**request(user("?", page)))
    assert (status, body["error"]["code"]) == (400, "invalid_image")
    assert "not a picture that PIL can read" in body["error"]["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [(b"", "Invalid JSON"), (b"{", "Invalid JSON"), (b"[]", "should be an object"), (b"\xff", "Invalid JSON")],
)
def test_a_body_that_is_no_request(client, body, message):
    status, _, content = client.send("POST", "/v1/chat/completions", body)
    assert status == 400
    assert message in json.loads(content)["error"]["message"]


def test_a_body_that_is_too_large(client, url):
    status, _, content = client.send("POST", "/v1/chat/completions", bytes(MAX_BODY_BYTES + 1))
    assert (status, json.loads(content)["error"]["code"]) == (413, "request_too_large")
    fresh = Client(url)  # without a length: in parts
    fresh.connection.putrequest("POST", "/v1/chat/completions")
    fresh.connection.putheader("Content-Type", "application/json")
    fresh.connection.putheader("Transfer-Encoding", "chunked")
    fresh.connection.endheaders()
    piece = b"100000\r\n" + bytes(0x100000) + b"\r\n"
    for _ in range(MAX_BODY_BYTES // 0x100000 + 2):
        fresh.connection.send(piece)
    response = fresh.connection.getresponse()  # before the end
    assert (response.status, json.loads(response.read())["error"]["code"]) == (413, "request_too_large")


def test_other_routes(client):
    status, headers, content = client.send("GET", "/v1/models", Origin="https://example.org")
    (model,) = json.loads(content)["data"]
    assert (status, model["id"], model["object"]) == (200, "imp-nano", "model")
    assert not any(name.startswith("access-control") for name in headers)
    assert json.loads(client.send("GET", "/v1/models/imp-nano")[2]) == model
    assert client.send("GET", "/health")[0] == 200
    for method, path, expected in (
        ("GET", "/v1/models/gpt-4", 404),
        ("GET", "/", 404),
        ("GET", "/docs", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/chat/completions", 405),
        ("OPTIONS", "/v1/chat/completions", 405),
    ):
        status, headers, content = client.send(method, path)
        assert status == expected
        assert json.loads(content)["error"]["type"] == "invalid_request_error"
        assert not any(name.startswith("access-control") for name in headers)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_web_page_cannot_ask(client, kind):
    """Only for JSON does a browser ask first whether it may send."""
    body = json.dumps(request(COLORS)).encode()
    status, _, content = client.send("POST", "/v1/chat/completions", body, **{"Content-Type": kind})
    assert (status, json.loads(content)["error"]["code"]) == (415, "unsupported_content_type")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8000", 200),
        ("192.168.0.7:80", 200),
        ("example.org", 403),
        ("localhost.example.org", 403),
        ("127.0.0.1.example.org", 403),
        ("[example.org]", 403),
        ("", 403),
    ],
)
def test_without_a_key_only_this_machine_is_named(client, host, status):
    answered, _, content = client.send("GET", "/v1/models", Host=host)
    assert answered == status
    assert status == 200 or json.loads(content)["error"]["code"] == "host_not_allowed"


def test_the_key(imp):
    with served(imp, key="sesame") as (url, _):
        client = Client(url)
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "sesame"}, {"Authorization": "ü"}):
            for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/nowhere")):
                status, _, content = client.send(method, path, **headers)
                error = json.loads(content)["error"]
                assert (status, error["type"], error["code"]) == (401, "authentication_error", "invalid_api_key")
                assert "sesame" not in content.decode()
        assert client.send("GET", "/health")[0] == 200
        body = json.dumps(request(COLORS)).encode()
        right = {"Authorization": "Bearer sesame", "Host": "example.org"}
        assert client.send("POST", "/v1/chat/completions", body, **right)[0] == 200


# Load ----------------------------------------------------------------------------------------------------------


def flood(url, count):
    """Ask from so many connections at once; the statuses and texts."""
    body = json.dumps(request(COLORS)).encode()
    clients = [Client(url) for _ in range(count)]
    for client in clients:
        client.connection.connect()
    for client in clients:
        client.connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    found = []
    for client in clients:
        response = client.connection.getresponse()
        found.append((response.status, dict(response.getheaders()), json.loads(response.read())))
        client.connection.close()
    return found


def check_flood(found, expected, places):
    """Each request is answered, or refused in OpenAI's words."""
    statuses = Counter(status for status, _, _ in found)
    assert statuses[200] >= places
    assert statuses[429] == len(found) - statuses[200] > 0
    for status, headers, body in found:
        if status == 200:
            assert text(body) == expected
        else:
            assert (body["error"]["type"], body["error"]["code"]) == ("rate_limit_error", "queue_full")
            assert int(headers["retry-after"]) >= 1


def test_more_requests_than_places(imp):
    expected = imp.ask(BUS, COLORS).text
    with served(imp, batch_size=4, queue=4) as (url, server):
        check_flood(flood(url, 60), expected, 8)
        assert server.batcher.places == 0
        assert Client(url).ask(**request(COLORS))[0] == 200


@pytest.mark.slow
def test_1000_requests_at_once(imp):
    """Nothing is lost, and the memory stays."""
    resource = pytest.importorskip("resource", reason="needs the limits of Unix")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    expected = imp.ask(BUS, COLORS).text
    with started(*NANO, "--queue", "16") as (url, process):
        flood(url, 50)
        server = psutil.Process(process.pid)
        before = server.memory_info().rss
        for _ in range(2):
            check_flood(flood(url, 1000), expected, 24)
        assert server.memory_info().rss - before < 100e6
        assert Client(url).ask(**request(COLORS))[0] == 200


def test_a_place_is_given_back_whatever_happens(imp):
    with served(imp, batch_size=1, queue=1) as (url, server):
        client = Client(url)
        for change, *_ in BAD.values():
            client.ask(**{**request(COLORS), **change})
        for _ in range(3):  # a client that goes before it has sent all
            with socket.create_connection((client.place.hostname, client.place.port)) as half:
                half.sendall(
                    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    b"Content-Length: 100\r\n\r\n{"
                )
                wait_until(lambda: server.batcher.places == 1)
            wait_until(lambda: server.batcher.places == 0)
        assert client.ask(**request(COLORS))[0] == 200
        wait_until(lambda: server.batcher.places == 0)


def test_a_body_that_does_not_arrive(imp, monkeypatch):
    monkeypatch.setattr(routes, "READ_SECONDS", 0.1)
    with served(imp) as (url, server), socket.create_connection(("127.0.0.1", int(url.split(":")[2][:-3]))) as slow:
        slow.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        assert b"408" in slow.recv(1000)
        wait_until(lambda: server.batcher.places == 0)


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A tiny random model that never ends an answer, and reads 100,000 tokens."""
    oracle = Oracle("imp", decoder={**DECODER, "max_position_embeddings": 100_000})
    oracle.randomise(0)
    with torch.no_grad():
        for end in ("<|endoftext|>", "</s>"):
            oracle.language.lm_head.bias[SPECIAL[end]] = -1000
    return imp_kit.load(write_checkpoint(oracle, tmp_path_factory.mktemp("endless")), device="cpu", dtype="fp32")


def begin(url, **asked):
    """A connection that has sent a request."""
    client = Client(url)
    client.connection.request(
        "POST", "/v1/chat/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    return client


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_stops_the_work(endless, stream):
    """Of its own row only; the others of the batch get their answers."""
    with served(endless, batch_size=2, queue=4) as (url, server):
        long = {"model": endless.name, "messages": [user("What?")], "max_tokens": 90_000}
        first = begin(url, **long, stream=stream)
        wait_until(lambda: server.batcher.running == 1)
        jobs = list(server.batcher._running)
        second, third = begin(url, **long, stream=stream), begin(url, **{**long, "max_tokens": 50})
        wait_until(lambda: server.batcher.waiting == 2)
        second.connection.sock.shutdown(socket.SHUT_RDWR)  # while it waits
        wait_until(lambda: server.batcher.waiting == 1)
        first.connection.sock.shutdown(socket.SHUT_RDWR)  # while it is answered
        answer = json.loads(third.connection.getresponse().read())
        assert answer["usage"]["completion_tokens"] == 50
        assert jobs[0].turn.tokens < 90_000
        wait_until(lambda: server.batcher.running == 0 and server.batcher.places == 0)

        pair = [begin(url, **long, stream=stream), begin(url, **{**long, "max_tokens": 300})]
        wait_until(lambda: server.batcher.running > 0)
        pair[0].connection.sock.shutdown(socket.SHUT_RDWR)
        assert json.loads(pair[1].connection.getresponse().read())["usage"]["completion_tokens"] == 300
        wait_until(lambda: server.batcher.running == 0 and server.batcher.places == 0)


def test_stopping(endless, monkeypatch):
    """What waits is refused at once, what is being answered a little later; nothing hangs."""
    monkeypatch.setattr("imp_kit.serving.server.GRACE_SECONDS", 0.3)
    monkeypatch.setattr("imp_kit.serving.server.SAFETY_SECONDS", 60)
    long = {"model": endless.name, "messages": [user("What?")], "max_tokens": 90_000}
    with served(endless, batch_size=1, queue=4) as (url, server):
        answered = begin(url, **long)
        wait_until(lambda: server.batcher.running == 1)
        waiting = begin(url, **long, stream=True)
        wait_until(lambda: server.batcher.waiting == 1)
        server.should_exit = True
        for client in (waiting, answered):
            response = client.connection.getresponse()
            error = json.loads(response.read())["error"]
            assert (response.status, error["type"], error["code"]) == (503, "server_error", "stopping")


def test_a_stream_that_breaks_off_says_why(endless, monkeypatch):
    monkeypatch.setattr("imp_kit.serving.server.GRACE_SECONDS", 0.1)
    monkeypatch.setattr("imp_kit.serving.server.SAFETY_SECONDS", 60)
    with served(endless) as (url, server):
        stream = begin(
            url, model=endless.name, messages=[user("What?")], max_tokens=90_000, stream=True
        ).connection.getresponse()
        assert (stream.status, stream.readline()[:6]) == (200, b"data: ")
        server.should_exit = True
        *_, last = [line for line in stream.read().decode().split("\n\n") if line]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "stopping"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs the signals of Unix")
def test_ctrl_c_while_an_answer_is_made(endless):
    with started("--checkpoint", str(endless.snapshot.folder), "--device", "cpu", "--dtype", "fp32") as (url, process):
        stream = begin(
            url, model=endless.name, messages=[user("What?")], max_tokens=90_000, stream=True
        ).connection.getresponse()
        assert stream.readline().startswith(b"data: ")
        process.send_signal(signal.SIGINT)
        *_, last = [line for line in stream.read().decode().split("\n\n") if line]
        printed, errors = process.communicate(timeout=60)
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "stopping"
    assert (process.returncode, printed, errors) == (130, "", "")


def test_a_batch_that_does_not_fit_is_halved(imp, monkeypatch):
    expected = imp.ask(BUS, COLORS).text
    with served(imp, batch_size=8) as (url, server):
        row = imp.engine._row_bytes(40)
        monkeypatch.setattr(engines, "free_memory", lambda _: 2.5 * row)
        sizes, real = [], imp.engine.stream
        monkeypatch.setattr(imp.engine, "stream", lambda turns, *rest: sizes.append(len(turns)) or real(turns, *rest))
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: Client(url).ask(**request(COLORS, max_tokens=40)), range(16)))
    assert {(status, text(answer)) for status, answer in answers} == {(200, expected)}
    assert max(sizes) <= 2


def test_an_error_within_costs_its_batch_only(imp, monkeypatch, capsys):
    with served(imp) as (url, _):
        client = Client(url)
        with monkeypatch.context() as patch:
            patch.setattr(imp.engine, "stream", lambda *_: 1 / 0)
            status, body = client.ask(**request(COLORS))
            assert (status, body["error"]["type"]) == (500, "server_error")
            assert "ZeroDivision" not in body["error"]["message"]
            patch.setattr(imp.engine, "stream", lambda *_: (_ for _ in ()).throw(imp_kit.MemoryLimitError("Too much.")))
            status, body = client.ask(**request(COLORS, stream=True))
            assert (status, body["error"]["code"], body["error"]["message"]) == (503, "out_of_memory", "Too much.")
        assert client.ask(**request(COLORS))[0] == 200
    assert "ZeroDivisionError" in capsys.readouterr().err


# The command ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "--batch-size is 0; give a whole number from 1."),
        ({"queue": -1}, "--queue is -1; give a whole number from 0."),
        ({"port": 70000}, "--port is 70000; give a whole number from 0 to 65535."),
        ({"port": -1}, "--port is -1; give a whole number from 0 to 65535."),
        ({"host": "no.such.host.invalid"}, "no address of the name 'no.such.host.invalid'; choose another --host."),
        ({"host": "192.0.2.1", "port": 0}, "cannot listen at 192.0.2.1:0: Cannot assign requested address. Choose"),
        ({"api_key_env": "IMP_KIT_NO_KEY"}, "'IMP_KIT_NO_KEY' holds no key"),
        ({"api_key_env": "IMP_KIT_BAD_KEY"}, "'IMP_KIT_BAD_KEY' holds no key"),
        ({"api_key_env": ""}, "holds no key"),
        ({"api_key_env": "sk-1234"}, "The environment variable that --api-key-env names holds no key"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense(settings, message, monkeypatch):
    """They are refused before anything is loaded."""
    monkeypatch.setenv("IMP_KIT_BAD_KEY", "two\nlines")
    with pytest.raises(imp_kit.SettingError, match=re.escape(message)):
        serve(pytest.fail, **settings)


def test_a_port_that_is_taken(url):
    port = Client(url).place.port
    with pytest.raises(imp_kit.SettingError, match=f"cannot listen at 127.0.0.1:{port}: .*. Choose another --port."):
        serve(pytest.fail, port=port)


@pytest.mark.slow
def test_beyond_this_machine():
    command = [sys.executable, "-m", "imp_kit", "serve", *NANO, "--port", "0", "--host", "0.0.0.0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(2)]
        process.terminate()
    assert lines[0] == ("imp-kit: There is no key, so whoever reaches this machine can ask; --api-key-env sets one.\n")
    assert lines[1].startswith("imp-kit: imp-nano answers at http://0.0.0.0:")


@pytest.mark.slow
def test_a_key_from_the_environment():
    with started(*NANO, "--host", "::1", "--api-key-env", "KEY", env={**os.environ, "KEY": "s3"}) as (url, _):
        assert url.startswith("http://[::1]:")
        assert Client(url).send("GET", "/v1/models")[0] == 401
        assert Client(url).send("GET", "/v1/models", Authorization="Bearer s3")[0] == 200


# Clients -------------------------------------------------------------------------------------------------------


def test_the_openai_package(imp, url):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["imp-nano"]
        asked = {"model": "imp-nano", "messages": [user(COLORS, BUS)]}
        answer = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2, temperature=0)
        assert answer.choices[0].message.content == imp.ask(BUS, COLORS).text
        assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2
        pieces = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces[:-1]) == imp.ask(BUS, COLORS).text
        assert pieces[-1].usage.completion_tokens == answer.usage.completion_tokens
        # What came back goes into the next request as it is.
        messages = [*asked["messages"], answer.choices[0].message.model_dump(), user("Where is it?")]
        client.chat.completions.create(model="imp-nano", messages=messages)
        with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'"):
            client.chat.completions.create(**{**asked, "model": "gpt-4"})
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**asked, n=3)
        assert (caught.value.param, caught.value.code) == ("n", "unsupported_parameter")


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl(imp, url, tmp_path):
    (tmp_path / "request.json").write_text(json.dumps(request(COLORS)), "utf-8")
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", f"{url}/chat/completions", "--json"]
    ended = subprocess.run(
        [*command, f"@{tmp_path / 'request.json'}"], capture_output=True, text=True, timeout=600, check=True
    )
    assert text(json.loads(ended.stdout)) == imp.ask(BUS, COLORS).text


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("llm"), reason="the command llm is not on PATH: pip install llm")
def test_llm(imp, url, tmp_path):
    """simonw's llm: a picture as an attachment, a stream, and the next question of the conversation."""
    models = f"- model_id: imp\n  model_name: imp-nano\n  api_base: {url}\n  vision: true\n"
    (tmp_path / "extra-openai-models.yaml").write_text(models, "utf-8")
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    environment.pop("PYTHONPATH", None)

    def llm(*arguments):
        command = ["llm", "-m", "imp", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, timeout=120, check=True
        ).stdout.strip()

    chat = imp.chat(BUS)
    assert llm(COLORS, "-a", str(ROOT / "images" / "bus.png"), "-o", "max_tokens", "40") == chat.say(COLORS).text
    assert llm("-c", "Where is it?") == chat.say("Where is it?").text
    assert llm("Is there a bus?", "--no-stream") == imp.ask(None, "Is there a bus?").text


TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText, GenerateConfig
from inspect_ai.scorer import includes

@task
def bus():
    message = ChatMessageUser(content=[ContentText(text=%r), ContentImage(image=%r)])
    config = GenerateConfig(temperature=0, max_tokens=40, seed=3, logprobs=True, top_logprobs=2, stop_seqs=["zzz"])
    return Task(dataset=[Sample(id=n, input=[message], target=%r) for n in range(6)], scorer=includes(), config=config)
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("inspect"), reason="the command inspect is not on PATH: pip install inspect-ai")
def test_inspect_ai(imp, url, tmp_path):
    """Its provider openai-api: six samples at once, each right, with scores of their tokens."""
    answer = imp.ask(BUS, COLORS).text
    (tmp_path / "bus.py").write_text(TASK % (COLORS, str(ROOT / "images" / "bus.png"), answer), "utf-8")
    environment = {**os.environ, "IMP_BASE_URL": url, "IMP_API_KEY": "none"}
    environment.pop("PYTHONPATH", None)

    def inspect(*arguments):
        pipes = {"capture_output": True, "text": True, "timeout": 300}
        ended = subprocess.run(["inspect", *arguments], cwd=tmp_path, env=environment, **pipes, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    inspect("eval", "bus.py", "--model", "openai-api/imp/imp-nano", "--display", "plain")
    (log,) = (tmp_path / "logs").glob("*.eval")
    result = json.loads(inspect("log", "dump", str(log)))
    assert (result["status"], len(result["samples"])) == ("success", 6)
    assert result["results"]["scores"][0]["metrics"]["accuracy"]["value"] == 1.0
    for sample in result["samples"]:
        (choice,) = sample["output"]["choices"]
        assert re.sub(r"\s+", " ", sample["output"]["completion"]) == answer
        assert len(choice["logprobs"]["content"][0]["top_logprobs"]) == 2


def test_data_urls_say_what_they_hold():
    assert data_url(b"abc", "jpeg") == "data:image/jpeg;base64,YWJj"
