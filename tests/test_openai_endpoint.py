"""An endpoint that behaves, and one that does not: each fault has one clear end, nothing answered is asked again."""

import base64
import contextlib
import io
import json
import math
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from email.utils import formatdate

import pytest
from loopback_openai import Talk, completion, serve
from PIL import Image
from quick import quick

import imp_kit
from imp_kit.errors import EndpointError, ReplyError
from imp_kit.experiments import runs
from imp_kit.experiments.captcha import probe as captcha
from imp_kit.experiments.frames import PROBES, samples_frame
from imp_kit.experiments.report import write
from imp_kit.experiments.runs import Case, Subject, _digest, expect, read, read_head, run
from imp_kit.subjects import openai_endpoint
from imp_kit.subjects.named import FORMS, subject_named
from imp_kit.subjects.openai_endpoint import OpenAIEndpoint
from imp_kit.tools.cli import main

pytest.importorskip("openai")
KEY = "sk-test-0123456789-abcdefghij"
RED = Image.new("RGB", (8, 6), (250, 3, 1))


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(openai_endpoint, "FIRST_DELAY", 0.01)


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)


def cases(count: int) -> list[Case]:
    return [Case(f"case {i}", RED, f"question {i}", {}, {}, i) for i in range(count)]


def good(talk: Talk, number: int) -> None:
    talk.give(completion(f"answer to {talk.question}"))


def endpoint(server, **settings) -> OpenAIEndpoint:
    return OpenAIEndpoint(server.url, "tiny", **{"retries": 1, "timeout": 60, **settings})


def shown_image(body: dict) -> Image.Image | None:
    """The image of a request, None for a question without one."""
    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        return None
    head, _, data = content[0]["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_what_is_sent(key, capsys, monkeypatch):
    """The image pixel by pixel, the settings by the protocol's names, and nothing of the environment but the key."""
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "another-secret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer another-secret")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with serve(good) as server:
        with_key = endpoint(server, api_key_env="TEST_KEY")
        settings = {"max_new_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["\n"]}
        answer = with_key.ask(RED, "What is red?", **settings)
        endpoint(server).ask(None, "What is blue?")
    (path, headers, body), (_, other_headers, other_body) = server.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert "Authorization" not in other_headers
    assert "another-secret" not in f"{headers}{other_headers}"
    assert shown_image(body).tobytes() == RED.tobytes()
    del body["messages"]
    names = {"max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["\n"]}
    assert body == {"model": "tiny", **names}
    question = [{"role": "user", "content": "What is blue?"}]
    assert other_body == {"model": "tiny", "messages": question, "max_tokens": 100, "temperature": 0.0}
    assert str(answer) == "answer to What is red?"
    assert (answer.finish, answer.served_model, answer.input_tokens, answer.output_tokens) == ("stop", "tiny-1", 11, 4)
    said = f"imp-kit: questions and their images go to {server.url} (model tiny).\n"
    assert capsys.readouterr().out == said * 2


def test_settings_are_checked_before_anything_is_sent():
    with serve(good) as server:
        asked = endpoint(server)
        for wrong in ({"temperature": -1}, {"max_new_tokens": 0}, {"stop": ""}, {"beams": 3}):
            with pytest.raises(imp_kit.SettingError):
                asked.ask(RED, "question", **wrong)
        with pytest.raises(imp_kit.PromptError):
            asked.ask(RED, " ")
        with pytest.raises(imp_kit.ImageError):
            asked.ask("no_such_file.png", "question")
    assert server.requests == []


SHORT = 3  # seconds: a timeout that only what is slow by design exceeds


def slow(talk: Talk) -> None:
    time.sleep(2 * SHORT)
    talk.give(completion("too late"))


# What passes: the request is sent again, and answered.
PASSING = {
    "429": lambda talk: talk.fail(429, "slow down"),
    "429 with Retry-After: 1": lambda talk: talk.fail(429, "slow down", Retry_After="1"),
    "500": lambda talk: talk.fail(500, "oh no"),
    "502 as a proxy's page": lambda talk: talk.give("<html>Bad Gateway</html>", 502, "text/html"),
    "503 without a body": lambda talk: talk.give("", 503),
    "504 within a 200": lambda talk: talk.give({"error": {"message": "upstream", "code": 504}}),
    "slower than the timeout": slow,
    "half a body": lambda talk: talk.give_half(completion("x" * 1000)),
    "invalid JSON": lambda talk: talk.give('{"choices": [{"message"'),
    "an empty body": lambda talk: talk.give(""),
    "a dropped connection": lambda talk: talk.hang_up(),
    "a byte at a time, slower than the timeout": lambda talk: talk.give_slowly(completion("x" * 50), 2 * SHORT),
    "429 with Retry-After, a date": lambda talk: talk.fail(429, "slow", Retry_After=formatdate(time.time() + 2.5)),
    "429 with a Retry-After that is none": lambda talk: talk.fail(429, "slow down", Retry_After="soon"),
}
WAITS = {  # seconds before the request that is answered
    "429 with Retry-After: 1": 1,
    "429 with Retry-After, a date": 1.4,
    "slower than the timeout": SHORT,
    "a byte at a time, slower than the timeout": SHORT,
}


@pytest.mark.parametrize("fault", quick(11, PASSING))
def test_a_fault_that_passes_costs_another_request(fault, tmp_path):
    def answer(talk, number):
        (good if number else lambda talk, _: PASSING[fault](talk))(talk, number)

    with serve(answer) as server:
        start = time.perf_counter()
        timeout = SHORT if "timeout" in fault else 60
        (record,) = run("trial", cases(1), Subject.of(endpoint(server, timeout=timeout)), tmp_path)
        seconds = time.perf_counter() - start
    assert (record["status"], record["answer"]) == ("ok", "answer to question 0")
    assert len(server.requests) == 2
    assert 0 < record["seconds"] <= seconds - WAITS.get(fault, 0)


def deep(talk: Talk) -> None:
    talk.give("[" * 100_000)


# What does not pass, or what another request cannot change: recorded, with so many requests; the others are answered.
RECORDED = {
    "429 again and again": (PASSING["429"], 2, "status 429: slow down"),
    "500 again and again": (PASSING["500"], 2, "status 500: oh no"),
    "502 again and again": (PASSING["502 as a proxy's page"], 2, "status 502: a web page"),
    "always too slow": (slow, 2, f"no answer within {SHORT} s"),
    "always invalid JSON": (PASSING["invalid JSON"], 2, "is no JSON"),
    "much too long": (lambda talk: talk.give(completion("x" * 11_000_000)), 1, "longer than 10,000,000 bytes"),
    "empty choices": (lambda talk: talk.give({"choices": []}), 1, "holds no answer"),
    "JSON that is no completion": (lambda talk: talk.give({"hello": "there"}), 1, "holds no answer"),
    "JSON that is no object": (lambda talk: talk.give([1]), 1, "holds no answer"),
    "a choice without a message": (lambda talk: talk.give({"choices": [{"text": "a"}]}), 1, "holds no text"),
    "content that is no text": (lambda talk: talk.give(completion(5)), 1, "holds no text"),
    "400": (lambda talk: talk.fail(400, "the image is too small"), 1, "status 400: the image is too small"),
    "400 in a list": (
        lambda talk: talk.give([{"error": {"code": 400, "message": "the image is too small"}}], 400),
        1,
        "status 400: the image is too small",
    ),
    "400 about a value": (lambda talk: talk.fail(400, "temperature is above 1"), 1, "status 400: temperature is above"),
    "403": (lambda talk: talk.fail(403, "not for you"), 1, "status 403: not for you"),
    "413": (lambda talk: talk.give("", 413), 1, "status 413"),
    "always half a body": (PASSING["half a body"], 2, "the connection broke"),
    "always a dropped connection": (PASSING["a dropped connection"], 2, "the connection broke"),
    "JSON too deep": (deep, 2, "is no JSON"),
    "422 as FastAPI has it": (lambda talk: talk.give({"detail": [{"loc": "x"}]}, 422), 1, '422: [{"loc": "x"}]'),
}


@pytest.mark.parametrize("fault", quick(11, RECORDED))
def test_a_fault_of_one_sample_is_recorded_and_the_others_are_answered(fault, tmp_path):
    misbehave, requests, message = RECORDED[fault]

    def answer(talk, number):
        misbehave(talk) if talk.question == "question 1" else good(talk, number)

    with serve(answer) as server:
        timeout = SHORT if "slow" in fault else 60
        records = run("trial", cases(3), Subject.of(endpoint(server, timeout=timeout)), tmp_path)
    assert [record["status"] for record in records] == ["ok", "error", "ok"]
    assert len(server.requests) == 2 + requests
    error = records[1]["error"]
    assert error.startswith(f"ReplyError: {server.url} (model tiny): ")
    assert message in error
    assert len(error) < 700
    assert ("It was asked 2 times" in error) == (requests == 2)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_ten_faults_in_a_row_stop_the_run(concurrency, tmp_path):
    with (
        serve(lambda talk, number: talk.fail(400, "no images here")) as server,
        pytest.raises(imp_kit.RunError, match=r"10 samples in a row failed, .*400: no images here.* kept; when the"),
    ):
        run("trial", cases(40), Subject.of(endpoint(server, concurrency=concurrency)), tmp_path)
    assert 10 <= len(server.requests) < 10 + concurrency
    assert len(read(tmp_path)) == 10


# What all requests would meet: the run stops at once, with one line.
STOPPING = {
    "401 without a key": (
        lambda talk: talk.fail(401, "no key"),
        r"a key is asked for \(status 401: no key\)\. Name the",
    ),
    "402": (lambda talk: talk.fail(402, "no credit"), "status 402: no credit"),
    "404": (
        lambda talk: talk.fail(404, "no model tiny"),
        r"no such model or address \(status 404: no model tiny\)\. Is",
    ),
    "404 as a page": (lambda talk: talk.give("<html>", 404, "text/html"), "status 404: a web page"),
    "405": (lambda talk: talk.give("", 405), "status 405"),
    "a quota that is used up": (lambda talk: talk.fail(429, "pay", "insufficient_quota"), "status 429: pay"),
    "Retry-After of an hour": (lambda talk: talk.fail(429, "x", Retry_After="3600"), "asks to wait 3,600 s"),
    "a proxy's page": (lambda talk: talk.give("<!doctype html><p>Log in", kind="text/html"), "a web page came"),
    "a page that says it is JSON": (lambda talk: talk.give(" <html>"), "a web page came"),
    "a redirect": (lambda talk: talk.give("", 307, Location="http://127.0.0.1:9/v1"), "on to http://127.0.0.1:9/v1"),
}


@pytest.mark.parametrize("fault", STOPPING)
def test_a_fault_of_all_requests_stops_the_run_at_once(fault, tmp_path):
    misbehave, message = STOPPING[fault]

    def answer(talk, number):
        misbehave(talk) if number > 1 else good(talk, number)

    with serve(answer) as server:
        with pytest.raises(EndpointError, match=message) as caught:
            run("trial", cases(5), Subject.of(endpoint(server)), tmp_path)
        assert not isinstance(caught.value, ReplyError)
        assert str(caught.value).endswith("What was answered is kept; when the cause is gone, run the same again.")
        assert len(server.requests) == 3
        assert [record["status"] for record in read(tmp_path)] == ["ok", "ok"]
        server.answer = good  # the cause is gone: the run goes on
        assert len(run("trial", cases(5), Subject.of(endpoint(server)), tmp_path)) == 5
    assert len(server.requests) == 6


def test_a_refused_key_is_named_by_its_variable(key):
    with (
        serve(lambda talk, number: talk.fail(401, f"wrong key {talk.headers['Authorization']}")) as server,
        pytest.raises(EndpointError, match=r"the key in TEST_KEY is refused \(status 401: wrong key Bearer \*\*\*\)"),
    ):
        endpoint(server, api_key_env="TEST_KEY").ask(None, "question")


@pytest.mark.parametrize("address", ["http://127.0.0.1:{}/v1", "https://127.0.0.1:{}/v1", "http://no-host.invalid/v1"])
def test_nothing_is_there(address, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens there
        asked = OpenAIEndpoint(address.format(taken.getsockname()[1]), "tiny", retries=1, timeout=60)
        with pytest.raises(EndpointError, match=r"cannot be reached \(.*\)\. Is the server running there\? .* 2 times"):
            run("trial", cases(3), Subject.of(asked), tmp_path)
    assert read(tmp_path) == []


def test_a_server_without_tls_where_https_is_named():
    with serve(good) as server, pytest.raises(EndpointError, match="cannot be reached"):
        OpenAIEndpoint(server.url.replace("http:", "https:"), "tiny", retries=0).ask(None, "question")


ODD = {
    "plain text as its type": lambda talk: talk.give(completion("fine"), kind="text/plain; charset=utf-8"),
    "no type": lambda talk: talk.give(completion("fine"), kind=""),
    "text in parts": lambda talk: talk.give(completion([{"type": "text", "text": x} for x in ("fi", "ne")])),
    "no finish, usage or model": lambda talk: talk.give({"choices": [{"message": {"content": "fine"}}]}),
    "figures that are none": lambda talk: talk.give(
        completion("fine", usage=False, model=5) | {"usage": {"prompt_tokens": "many", "completion_tokens": -1}}
    ),
}


@pytest.mark.parametrize("form", ODD)
def test_odd_forms_of_an_answer_are_read(form):
    with serve(lambda talk, number: ODD[form](talk)) as server:
        answer = endpoint(server).ask(RED, "question")
    assert answer.text == "fine"
    if "figures" in form or "no finish" in form:
        assert (answer.served_model, answer.input_tokens, answer.output_tokens, answer.cost) == (None,) * 4


def test_refusals_and_length_stops_are_answers_told_apart(tmp_path):
    gives = [
        lambda talk: talk.give(completion(None, refusal="I won't.")),
        lambda talk: talk.give(completion("The", finish="content_filter")),
        lambda talk: talk.fail(400, "filtered", "content_filter"),
        lambda talk: talk.give(completion("The bus is", finish="length")),
        lambda talk: talk.give(completion(None, finish="length")),
        lambda talk: talk.give(completion("x" * 5000)),  # longer than it was asked for
        lambda talk: talk.give(completion(None, finish="length")),
    ]
    silent = pytest.warns(UserWarning, match="gave no word within its limit of tokens")
    with serve(lambda talk, number: gives[number](talk)) as server, silent as warned:
        records = run("trial", cases(7), Subject.of(endpoint(server)), tmp_path, settings={"max_new_tokens": 5})
    assert [each.category for each in warned].count(UserWarning) == 1
    found = [(record["status"], record["answer"], record["finish"], record["refusal"]) for record in records]
    assert found == [
        ("ok", "I won't.", "refusal", "I won't."),
        ("ok", "The", "refusal", None),
        ("ok", "filtered", "refusal", "filtered"),
        ("ok", "The bus is", "length", None),
        ("ok", "", "length", None),
        ("ok", "x" * 5000, "stop", None),
        ("ok", "", "length", None),
    ]
    assert len(server.requests) == 7


@pytest.mark.parametrize(
    "refuse",
    [
        lambda talk, name: talk.fail(400, f"Unsupported: {name}", "unsupported_parameter", name),
        lambda talk, name: talk.fail(400, f"`{name}` is deprecated for this model.", "invalid_request_error"),
        lambda talk, name: talk.give({"detail": f"Unsupported parameter: {name}"}, 400),
        lambda talk, name: talk.give([{"error": {"code": 400, "message": f"{name} is not supported"}}], 400),
    ],
)
def test_settings_that_a_server_does_not_take_are_left_out_and_it_is_said(refuse, tmp_path):
    """Models that think before they answer know the limit by another name and take no temperature."""

    def answer(talk, number):
        for name in ("max_tokens", "temperature"):
            if name in talk.body:
                return refuse(talk, name)
        good(talk, number)

    with serve(answer) as server, pytest.warns(UserWarning, match="takes no temperature"):
        records = run("trial", cases(2), Subject.of(endpoint(server, retries=0)), tmp_path)
    assert [record["left_out"] for record in records] == [["temperature"]] * 2
    assert len(server.requests) == 4
    assert server.requests[-1][2]["max_completion_tokens"] == 100


def test_records_keep_what_the_server_tells(tmp_path):
    def answer(talk, number):
        body = completion(f"answer {number}", model="tiny-2026-01-01")
        body["usage"]["cost"] = 0.25
        talk.give(body)

    with serve(answer) as server:
        (record,) = run("trial", cases(1), Subject.of(endpoint(server)), tmp_path)
    assert (record["checkpoint"], record["endpoint"]) == ("tiny", server.url)
    assert (record["served_model"], record["cost"], record["left_out"]) == ("tiny-2026-01-01", 0.25, [])
    assert (record["input_tokens"], record["output_tokens"], record["tokens"]) == (11, 4, 4)
    assert record["seconds"] > 0


def test_another_model_behind_the_same_name_is_noticed(tmp_path):
    served = ["one"]

    def answer(talk, number):
        talk.give(completion(model=served[-1]))

    with serve(answer) as server:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run("trial", cases(2), Subject.of(endpoint(server)), tmp_path)
        served.append("two")
        with pytest.warns(UserWarning, match="now says that two answers, before it was one") as caught:
            records = run("trial", cases(5), Subject.of(endpoint(server)), tmp_path)
    assert [each.category for each in caught].count(UserWarning) == 1
    assert [record["served_model"] for record in records] == ["one", "one", "two", "two", "two"]


def test_before_the_first_request_it_says_how_many_images_go_where(tmp_path, capsys):
    made = [*cases(3), Case("none", None, "without", {}, {}, 0), Case("drawn", lambda: RED, "drawn", {}, {}, 0)]
    seen = []

    def answer(talk, number):
        seen.append(capsys.readouterr().out)
        good(talk, number)

    with serve(answer) as server:
        run("trial", made, Subject.of(endpoint(server)), tmp_path, later=2)
        run("trial", [*made, *cases(4)[3:]], Subject.of(endpoint(server)), tmp_path)
        expect(made, endpoint(server), settings={})
    where = f"{server.url} (model tiny)."
    later = "Up to 2 more questions follow, with an image or without."
    assert seen[0] == f"imp-kit: 5 questions, 4 of them with an image, go to {where} {later}\n"
    assert seen[5].endswith(f"imp-kit: 1 question with an image goes to {where}\n")
    assert f"imp-kit: 6 questions, 5 of them with an image, go to {where}\n" in seen[6]


@pytest.mark.parametrize("concurrency", [1, 5])
def test_so_many_requests_at_once_and_no_more(concurrency, tmp_path):
    now, most, lock, together = [0], [0], threading.Lock(), threading.Barrier(concurrency, timeout=60)

    def answer(talk, number):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        if number < 20:
            together.wait()
        time.sleep(0.05)  # one too many would come meanwhile
        with lock:
            now[0] -= 1
        good(talk, number)

    with serve(answer) as server:
        asked = endpoint(server, concurrency=concurrency, timeout=100)
        records = run("trial", cases(20), Subject.of(asked), tmp_path)
        assert expect(cases(30), asked, settings={}).samples == 30
    assert [record["answer"] for record in records] == [f"answer to question {i}" for i in range(20)]
    assert most[0] == concurrency


def test_each_answer_is_on_disk_as_soon_as_it_is_there(tmp_path):
    """One request hangs; the others are written meanwhile."""
    lines, written = tmp_path / "samples.jsonl", []

    def answer(talk, number):
        if talk.question == "question 0":
            deadline = time.monotonic() + 100
            while len(lines.read_bytes().splitlines()) < 11 and time.monotonic() < deadline:
                time.sleep(0.02)
            written.extend(json.loads(line)["sample_id"] for line in lines.read_text("utf-8").splitlines())
        good(talk, number)

    with serve(answer) as server:
        records = run("trial", cases(12), Subject.of(endpoint(server, concurrency=3, timeout=200)), tmp_path)
    assert sorted(written) == sorted(f"case {i}" for i in range(1, 12))
    assert [record["answer"] for record in records] == [f"answer to question {i}" for i in range(12)]


def test_a_question_is_taken_only_once_an_answer_was(tmp_path):
    """So that pictures do not pile up, and a killed run has lost no more than what was under way."""
    taken = []

    def pairs():
        for i in range(12):
            taken.append(i)
            yield None, f"question {i}"

    with serve(good) as server:
        for done, (number, reply) in enumerate(endpoint(server, concurrency=3).ask_each(pairs())):
            assert reply.text == f"answer to question {number}"
            assert len(taken) <= done + 3
            if done == 5:
                break
        end = time.monotonic() + 60
        while len(server.requests) < len(taken) and time.monotonic() < end:
            time.sleep(0.02)
        assert len(server.requests) == len(taken) <= 8
        assert list(endpoint(server).ask_each([])) == []


def test_what_is_no_pair_is_an_error_in_its_place():
    pairs = [(None, "question 0"), 5, (None,), ("What is this?", "bus.png"), (None, "question 4")]
    with serve(good) as server:
        replies = dict(endpoint(server, concurrency=2).ask_each(pairs))
    assert [str(replies[number]) for number in (0, 4)] == ["answer to question 0", "answer to question 4"]
    assert isinstance(replies[1], TypeError)
    assert isinstance(replies[2], ValueError)
    assert isinstance(replies[3], imp_kit.PromptError)


def test_a_huge_concurrency_costs_no_more_than_the_questions():
    with serve(good) as server:
        start = time.process_time()
        assert len(list(endpoint(server, concurrency=10**9).ask_each([(None, "question 0")]))) == 1
        assert time.process_time() - start < 10


def test_answers_that_are_under_way_are_kept_when_the_run_stops(tmp_path, monkeypatch):
    together, failed, dealt_with = threading.Barrier(4, timeout=60), threading.Event(), threading.Event()
    next_reply = openai_endpoint._next_reply

    def watched(replies):
        if failed.is_set():
            dealt_with.set()
        number, reply = next_reply(replies)
        if isinstance(reply, EndpointError):
            failed.set()
        return number, reply

    def answer(talk, number):
        together.wait()
        if talk.question == "question 0":
            return talk.fail(401, "no")
        assert dealt_with.wait(60)
        good(talk, number)

    monkeypatch.setattr(openai_endpoint, "_next_reply", watched)
    with serve(answer) as server, pytest.raises(EndpointError, match="a key is asked for"):
        run("trial", cases(20), Subject.of(endpoint(server, concurrency=4, timeout=100)), tmp_path)
    assert sorted(record["sample_id"] for record in read(tmp_path)) == ["case 1", "case 2", "case 3"]
    assert len(server.requests) == 4


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("wakes", [True, False])
def test_an_interrupt_does_not_wait_for_the_server_and_gives_the_command(wakes, tmp_path, key):
    """Also where the signal wakes no waiting thread, as on Windows, or when a thread is just about to wait."""
    ended, waited = threading.Event(), []

    def answer(talk, number):
        if number == 6:
            os.kill(os.getpid(), signal.SIGINT)
        if number >= 4:
            waited.append(ended.wait(60))
            return talk.fail(500, "later")
        good(talk, number)

    with serve(answer) as server:
        asked = endpoint(server, concurrency=3, api_key_env="TEST_KEY", timeout=100)
        if not wakes:  # it goes to a thread of the server's, begun before; Python deals with it in the main thread
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with pytest.raises(KeyboardInterrupt) as caught:
                run("captcha", cases(20), Subject.of(asked), tmp_path, design={"size": "smoke", "seed": 1})
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        assert waited == []
        ended.set()
        time.sleep(1)
        assert len(server.requests) == 7  # nothing is sent again once it was stopped
    again = (
        f"To go on: python -m imp_kit probe captcha --subject {shlex.quote(server.url + '#tiny')} "
        f"--api-key-env TEST_KEY --concurrency 3 --out {tmp_path} --size smoke --seed 1"
    )
    assert str(caught.value) == f"imp-kit: stopped; 4 of 20 samples are answered and kept in {tmp_path}. {again}"


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_an_interrupt_ends_the_wait_before_a_retry(monkeypatch):
    """Also where the signal wakes no waiting thread."""
    monkeypatch.setattr(openai_endpoint, "FIRST_DELAY", 100)
    over = threading.Event()

    def answer(talk, number):
        talk.fail(500, "later")
        if not over.wait(0.5):  # until the client waits
            os.kill(os.getpid(), signal.SIGINT)

    with serve(answer) as server:
        asked = endpoint(server)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            start = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                asked.ask(None, "question")
            assert time.monotonic() - start < 60  # the wait before the retry is at least 75 s
        finally:
            over.set()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    assert len(server.requests) == 1


def test_making_an_endpoint_loads_what_its_requests_need():
    """In a process of its own; else the first answer would seem slow."""
    code = """
import sys
from imp_kit.subjects.openai_endpoint import OpenAIEndpoint
assert "openai.resources.chat.completions" not in sys.modules
OpenAIEndpoint("http://127.0.0.1:9/v1", "tiny")
assert "openai.resources.chat.completions" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def identify(body: dict) -> str:
    """A request's image and question."""
    image, content = shown_image(body), body["messages"][-1]["content"]
    return f"{_digest(image)} {content if isinstance(content, str) else content[1]['text']}"


def kept(folder) -> Counter[str]:
    """What is on disk as answered, in the same words."""
    file = folder / "samples.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    records = [json.loads(line) for line in lines]
    assert len({record["sample_id"] for record in records}) == len(records)
    return Counter(f"{record['picture_sha256']} {record['question']}" for record in records)


MORE = 16  # further requests that are answered after those the kill waits for; more than are under way at once


def killed_and_resumed(command: list[str], folder, server, lines: list[int], resume) -> list[tuple[int, int]]:
    """Kill a command with SIGKILL after so many new lines, again and again, then `resume` it to its end.

    The result is how many were asked and how many newly kept in each part. What was on disk is never asked again.
    """
    parts, chance = [], random.Random(1)
    for wanted in [*lines, None]:
        before, asked = kept(folder), len(server.requests)
        if wanted is None:
            server.most = math.inf
            resume()
        else:
            server.most, server.held = asked + wanted + MORE, threading.Event()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            while process.poll() is None and kept(folder).total() < before.total() + wanted:
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.03))
            assert process.poll() is None, process.communicate()
            process.send_signal(signal.SIGKILL)
            process.communicate()
            time.sleep(1)  # what was on its way arrives
            server.held.set()
        new = Counter(identify(body) for _, _, body in server.requests[asked:])
        parts.append((new.total(), kept(folder).total() - before.total()))
        for name, count in new.items():
            assert count + before[name] <= server.known[name], f"{name} was answered and asked again"
    return parts


def steady(talk: Talk, number: int) -> None:
    time.sleep(0.01 + 0.04 * random.Random(number).random())
    if number >= talk.server.most:  # so that the run cannot end before it is killed
        talk.server.held.wait(60)
    talk.give(completion("yes"))


SCRIPT = """
import sys
from test_openai_endpoint import many
many(sys.argv[1], sys.argv[2])
"""


def many(url: str, folder) -> None:
    made = [Case(f"case {i}", Image.new("RGB", (8, 6), (i, 3, 1)), f"question {i}", {}, {}, i) for i in range(24)]
    run("trial", made, Subject.of(OpenAIEndpoint(url, "tiny", concurrency=2)), folder)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_killed_run_asks_nothing_again_that_was_answered(tmp_path):
    folder, pictures = tmp_path / "run", [Image.new("RGB", (8, 6), (i, 3, 1)) for i in range(24)]
    with serve(steady) as server:
        server.known = Counter(f"{_digest(picture)} question {i}" for i, picture in enumerate(pictures))
        paths = f"import sys; sys.path[:0] = {sys.path!r}\n"
        command = [sys.executable, "-c", paths + SCRIPT, server.url, str(folder)]
        parts = killed_and_resumed(command, folder, server, [4], lambda: many(server.url, folder))
    assert kept(folder) == server.known
    assert all(asked - new <= 2 for asked, new in parts)
    assert parts[-1][0] == parts[-1][1]


KILLS = 2  # each start of the command takes seconds; with 10, 258 samples took 326 requests


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_kills_at_concurrency_eight(tmp_path):
    """Of the command itself, over a probe of 258 samples."""
    made, folder = PROBES["pope"].cases("lesson", 1), tmp_path / "run"
    with serve(steady) as server:
        server.known = Counter(f"{_digest(case.picture)} {case.question}" for case in made)
        options = ["--subject", f"{server.url}#tiny", "--concurrency", "8", "--size", "lesson", "--out", str(folder)]
        command = [sys.executable, "-m", "imp_kit", "probe", "pope", *options]
        lines = [random.Random(i).randint(1, 20) for i in range(KILLS)]
        parts = killed_and_resumed(command, folder, server, lines, lambda: main(command[3:]))
    print(f"\n(asked, kept) of each part: {parts}; {len(server.requests)} requests for {len(made)} samples")
    assert kept(folder) == server.known
    assert all(asked - new <= 8 for asked, new in parts)
    assert parts[-1][0] == parts[-1][1]
    assert len(read(folder)) == len(made)


WRONG = {
    "no scheme": ({"base_url": "127.0.0.1:8000/v1"}, "has no http:// or https:// at its beginning"),
    "another scheme": ({"base_url": "ftp://host/v1"}, "has no http:// or https:// at its beginning"),
    "no text": ({"base_url": None}, "has no http:// or https:// at its beginning"),
    "no host": ({"base_url": "http:///v1"}, "is no valid one"),
    "a port that is none": ({"base_url": "http://host:port/v1"}, "is no valid one"),
    "a blank": ({"base_url": "http://ho st/v1"}, "is no valid one"),
    "a name with an empty part": ({"base_url": "http://host..example/v1"}, "is no valid one"),
    "a part that is too long": ({"base_url": f"http://{'a' * 64}.example/v1"}, "is no valid one"),
    "a password": ({"base_url": f"https://me:{KEY}@host/v1"}, "holds a user's name or a password"),
    "a user": ({"base_url": f"https://{KEY}@host/v1"}, "holds a user's name or a password"),
    "a query": ({"base_url": f"https://host/v1?key={KEY}"}, "has something after"),
    "no model": ({"model": " "}, "The model is ' '"),
    "a variable that is not set": ({"api_key_env": "NOT_SET"}, "variable NOT_SET is not set, or empty"),
    "a variable that is empty": ({"api_key_env": "EMPTY_KEY"}, "variable EMPTY_KEY is not set, or empty"),
    "the key as the variable": ({"api_key_env": KEY}, "the name of an environment variable that holds the key, not"),
    "a key that looks like a name": ({"api_key_env": "abc0123456"}, "variable that api_key_env names is not set"),
    "a key with blanks": ({"api_key_env": "BLANK_KEY"}, "holds blanks or other characters"),
    "no concurrency": ({"concurrency": 0}, "concurrency is 0"),
    "half a concurrency": ({"concurrency": 1.5}, "concurrency is 1.5"),
    "no timeout": ({"timeout": 0}, "timeout is 0"),
    "an endless timeout": ({"timeout": float("inf")}, "timeout is inf"),
    "negative retries": ({"retries": -1}, "retries is -1"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_makes_no_endpoint(what, monkeypatch):
    monkeypatch.setenv("EMPTY_KEY", " \n")
    monkeypatch.setenv("BLANK_KEY", f"{KEY} {KEY}")
    changed, message = WRONG[what]
    with pytest.raises(imp_kit.SettingError) as caught:
        OpenAIEndpoint(**{"base_url": "http://127.0.0.1:8000/v1", "model": "tiny", **changed})
    assert message in str(caught.value)
    assert KEY not in str(caught.value)
    assert "abc0123456" not in str(caught.value)


def test_a_key_over_an_open_line_is_warned_about(key, monkeypatch):
    with pytest.warns(UserWarning, match=r"go to model\.example unencrypted"):
        OpenAIEndpoint("http://model.example/v1", "tiny", api_key_env="TEST_KEY")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OpenAIEndpoint("https://model.example/v1", "tiny", api_key_env="TEST_KEY")
        OpenAIEndpoint("http://model.example/v1", "tiny")
        for host in ("127.0.0.1:8000", "localhost:8000", "[::1]:8000"):
            OpenAIEndpoint(f"http://{host}/v1", "tiny", api_key_env="TEST_KEY")


def test_openai_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(imp_kit.SettingError, match="An endpoint needs openai: pip install openai"):
        OpenAIEndpoint("http://127.0.0.1:8000/v1", "tiny")


def test_subjects_by_name(key):
    asked = subject_named("https://host.example/v1#org/model:7b", api_key_env="TEST_KEY", concurrency=3)
    assert (asked.base_url, asked.model, asked.concurrency) == ("https://host.example/v1", "org/model:7b", 3)
    assert asked.place == {
        "subject": "https://host.example/v1#org/model:7b", "api-key-env": "TEST_KEY", "concurrency": 3
    }  # fmt: skip
    assert asked.identity == {"checkpoint": "org/model:7b", "endpoint": "https://host.example/v1"}
    assert subject_named("imp-v1-3b", device="cpu", revision="main") == "imp-v1-3b"
    for text, settings, message in (
        ("http://127.0.0.1:8000/v1", {}, "model is missing; name it after #"),
        ("http://127.0.0.1:8000/v1#", {}, "model is missing; name it after #"),
        ("http://127.0.0.1:8000/v1#tiny", {"device": "cuda"}, "takes no device, dtype or revision"),
        ("ftp://127.0.0.1:8000/v1#tiny", {}, "has no http:// or https://"),
        ("imp-nano", {"concurrency": 2}, "'imp-nano' is no endpoint"),
        ("transformers:some/model", {"api_key_env": "TEST_KEY"}, "is no endpoint"),
    ):
        with pytest.raises(imp_kit.SettingError, match=message):
            subject_named(text, **settings)


class Planted:
    """Gives the true answer to a share of the questions, through the server."""

    def __init__(self, made, share: float, seed: int = 0):
        chance = random.Random(seed)
        self.answers = {
            f"{_digest(case.picture)} {case.question}": case.truth["code"] if chance.random() < share else "Nothing."
            for case in made
        }

    def __call__(self, talk: Talk, number: int) -> None:
        talk.give(completion(self.answers[identify(talk.body)], model="tiny-1"))


def test_the_key_is_in_no_file_and_no_message(key, tmp_path, capfd, monkeypatch):
    """Though the server repeats it, in errors and in answers."""
    monkeypatch.chdir(tmp_path)
    count, broken = Counter(), set()

    def answer(talk, number):
        name = identify(talk.body)
        count[name] += 1
        broken.update({name} if number == 8 else ())
        if count[name] == 1 and number % 2:
            return talk.fail(500, f"you sent {talk.headers['Authorization']}")
        if name in broken:
            return talk.fail(400, f"you sent {talk.headers['Authorization']}")
        talk.give(completion(f"your key is {talk.headers['Authorization']}", model=KEY))

    with serve(answer) as server:
        subject = ["--subject", f"{server.url}#tiny", "--api-key-env", "TEST_KEY", "--concurrency", "2"]
        main(["probe", "captcha", *subject, "--size", "smoke", "--out", "run"])
        assert sum(record["status"] == "error" for record in read("run")) == 1
        main(["report", "run"])
        server.answer = lambda talk, number: talk.fail(401, f"you sent {talk.headers['Authorization']}")
        with pytest.raises(SystemExit):
            main(["probe", "captcha", *subject, "--size", "smoke", "--out", "other"])
    assert all(headers["Authorization"] == f"Bearer {KEY}" for _, headers, _ in server.requests)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.name for file in files} >= {"run.json", "samples.jsonl", "report.md"}
    for file in files:
        assert KEY.encode() not in file.read_bytes(), file
    printed = capfd.readouterr()
    assert KEY not in printed.out + printed.err
    assert "refused (status 401: you sent Bearer ***)" in printed.err
    asked = subject_named(f"{server.url}#tiny", api_key_env="TEST_KEY")
    assert KEY not in repr(asked) + str(asked.place) + str(asked.identity)
    assert "your key is Bearer ***" in (tmp_path / "run" / "report.md").read_text("utf-8").replace("&#42;", "*")


def test_the_command_line_asks_an_endpoint_and_repeats_itself(tmp_path, capsys):
    made = captcha.possible_cases("smoke", 1)
    with serve(Planted(made, 0.7)) as server:
        arguments = ["probe", "captcha", "--subject", f"{server.url}#tiny", "--size", "smoke", "--out", str(tmp_path)]
        main(arguments)
        out = capsys.readouterr().out
        assert f"samples of {server.url}#tiny are answered" in out
        count = len(server.requests)
        again = runs.command(read_head(tmp_path), tmp_path)
        assert shlex.split(again)[3:] == [*arguments[:4], "--out", str(tmp_path), "--size", "smoke", "--seed", "1"]
        main(shlex.split(again)[3:])
        assert "all were there already, nothing was asked" in capsys.readouterr().out
        assert len(server.requests) == count
    frame = samples_frame(tmp_path)
    assert set(frame.finish) == {"stop"}
    assert set(frame.tokens) == {4}
    text = write([tmp_path]).read_text("utf-8")
    assert again in text
    for cell in (f"| endpoint | http&#58;//127.0.0.1&#58;{server.server_port}/v1 |", f"tiny-1 ({count} answers)",
                 f"{11 * count} input, {4 * count} output"):  # fmt: skip
        assert cell in text


def test_a_subject_and_a_checkpoint_exclude_each_other(tmp_path, capsys):
    for more, message in (
        (["--subject", "http://127.0.0.1:9/v1#m", "--checkpoint", "imp-nano"], "--subject and --checkpoint exclude"),
        (["--subject", ""], "--subject is empty"),
        (["--subject", "http://127.0.0.1:9/v1"], "The endpoint's model is missing"),
        (["--subject", "http://127.0.0.1:9/v1#m", "--device", "cpu"], "takes no device"),
        (["--checkpoint", "imp-nano", "--concurrency", "4"], "'imp-nano' is no endpoint"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["probe", "pope", *more, "--size", "smoke", "--out", str(tmp_path / "run")])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--subject", "--checkpoint"])
@pytest.mark.parametrize("name", ["127.0.0.1:9/v1#m", "gpt-4.1-mini"])
def test_a_subject_that_names_nothing_is_told_how_others_are_written(option, name, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["probe", "pope", option, name, "--size", "smoke", "--out", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert f"There is no folder {name!r} and no checkpoint of that name." in said
    assert said.endswith(f" {FORMS}\n") == (option == "--subject")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_a_text_is_a_subject_of_the_command(tmp_path):
    class Other:
        place, identity = "transformers:some/model", {"dtype": "bf16", "revision": "abc"}

        def ask(self, picture, question, **settings):
            return "yes"

    run("pope", cases(1), Subject.of(Other()), tmp_path, design={"size": "smoke", "seed": 2})
    assert runs.command(read_head(tmp_path), tmp_path) == (
        f"python -m imp_kit probe pope --subject transformers:some/model --out {tmp_path} --revision abc --size smoke "
        "--seed 2 --dtype bf16"
    )


def test_a_plain_object_is_asked_as_before(tmp_path):
    """Without `ask_each` answers come in batches and in order."""
    asked = []

    class Many:
        def ask(self, picture, question, **settings):
            raise AssertionError

        def ask_many(self, pairs, batch_size, progress, **settings):
            asked.append(len(pairs))
            return [question.upper() for _, question in pairs]

    records = run("trial", cases(20), Subject.of(Many()), tmp_path)
    assert asked == [8, 8, 4]
    assert [record["sample_id"] for record in records] == [f"case {i}" for i in range(20)]
    with contextlib.suppress(FileNotFoundError):
        assert re.findall('"(served_model|refusal)"', (tmp_path / "samples.jsonl").read_text()) == []
