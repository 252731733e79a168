"""A model behind an OpenAI-compatible address, in the cloud or on this machine, asked as a checkpoint is asked.

Nothing is sent before somebody names the address and asks. What is sent goes to that address only: a redirect is not
followed, and a loopback address is never reached through a proxy.
"""

import base64
import contextlib
import io
import json
import math
import os
import random
import re
import threading
import time
import warnings
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from importlib import import_module
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, Unpack
from urllib.parse import urlsplit

from imp_kit.errors import EndpointError, ReplyError, SettingError
from imp_kit.images import check_order, open_image
from imp_kit.model.sampling import Sampling
from imp_kit.prompts import check_question
from imp_kit.settings import Settings, named_settings, read_settings
from imp_kit.system.extras import require
from imp_kit.system.loopback import is_loopback

FIRST_DELAY = 0.5  # seconds before the first retry; each further one waits twice as long,
LONGEST_DELAY = 120.0  # at most so long; a server that asks for more ends the run
MOST_BYTES = 10_000_000  # of a response, many times what an answer needs
MOST_SHOWN = 300  # characters of a server's own words in an error
WAIT_STEP = 0.2  # seconds waited at a time: on Windows Ctrl-C never ends a wait without a limit, elsewhere not always
SECRET = 8  # characters from which a key is looked for in what a server sends; shorter ones are words such as "none"
AGAIN = {408, 409, 425, 429}  # with those from 500 on: the next request may be answered
REFUSED = {"content_filter", "content_policy_violation", "refusal", "safety"}
NO_MONEY = {"insufficient_quota", "billing_hard_limit_reached", "insufficient_balance"}
UNSUPPORTED = {"unsupported_parameter", "unsupported_value"}
# Anthropic's layer says in words alone that a setting is deprecated, as others say that it is not supported.
NOT_TAKEN = re.compile("deprecated|unsupported|not? (support|allow|permit|accept)", re.IGNORECASE)


@dataclass(frozen=True)
class EndpointAnswer:
    """What a server answered; `str(answer)` is the text. What it did not tell is None."""

    text: str
    finish: str | None  # "stop", "length", or "refusal": the model or a filter of the server's declined to answer
    refusal: str | None  # the server's words, where it gives them apart from the text
    served_model: str | None  # who answered, as the server names it
    input_tokens: int | None
    output_tokens: int | None
    cost: float | None  # as the server counts it
    seconds: float  # from the request that was answered to its answer
    left_out: tuple[str, ...]  # settings that the server does not take

    def __str__(self) -> str:
        return self.text

    def record(self) -> dict:
        """All but the text, as an experiment's record keeps it; `tokens` is what records of a checkpoint name so."""
        values = {name: value for name, value in asdict(self).items() if name != "text"}
        return values | {"left_out": list(self.left_out), "tokens": self.output_tokens}


class _Failed(Exception):
    """A request without an answer: whether it is worth another one, after which time, and if all others fail alike."""

    def __init__(self, what: str, *, again: bool = False, after: float | None = None, all_fail: bool = False):
        super().__init__(what)
        self.again, self.after, self.all_fail = again, after, all_fail


class OpenAIEndpoint:
    """Ask a model at `base_url`, which ends in /v1 as a rule, by the chat completions of OpenAI's protocol.

    The key is read from the environment variable `api_key_env`; without one no key is sent. Up to `concurrency`
    requests are under way at once. `timeout` is in seconds, for one request; one that fails for a passing reason is
    sent again up to `retries` times, after 0.5, 1, 2, ... seconds or when the server says (120 s at most).
    Raises SettingError for values that make no sense.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str | None = None,
        concurrency: int = 1,
        timeout: float = 60.0,
        retries: int = 4,
    ):
        require("endpoint", what="An endpoint")
        host = _check_address(base_url)
        if not isinstance(model, str) or not model.strip():
            raise SettingError(f"The model is {model!r}; give the name by which the endpoint knows it.")
        for name, count, least in (("concurrency", concurrency, 1), ("retries", retries, 0)):
            if not isinstance(count, int) or isinstance(count, bool) or count < least:
                raise SettingError(f"{name} is {count!r}; give a whole number from {least}.")
        if not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
            raise SettingError(f"timeout is {timeout!r}; give seconds above 0.")
        import openai

        self.base_url, self.model, self.api_key_env = base_url.rstrip("/"), model.strip(), api_key_env
        self.concurrency, self.timeout, self.retries = concurrency, float(timeout), retries
        self._key = _read_key(api_key_env)
        local = is_loopback(host)
        if self._key and not local and self.base_url.startswith("http:"):
            warnings.warn(f"The key and the images go to {host} unencrypted; use https where you can.", stacklevel=2)
        # httpx2, or httpx in earlier versions of openai.
        http = openai.DefaultHttpxClient.__bases__[0].__module__.partition(".")[0]
        self._openai, self._http = openai, import_module(http)
        # With each request, or a variable of the environment that was meant for another server could take its place.
        self._headers = {"Authorization": f"Bearer {self._key}" if self._key else openai.Omit()}
        http_client = openai.DefaultHttpxClient(follow_redirects=False, trust_env=not local)
        weakref.finalize(self, http_client.close)
        client = openai.OpenAI(
            base_url=self.base_url,
            api_key=self._key or "none",
            max_retries=0,
            timeout=openai.Timeout(self.timeout, connect=min(self.timeout, 10.0)),
            http_client=http_client,
        )
        client.organization = client.project = None  # the package reads them from the environment, too
        # The package loads this when it is first used: done here, so that it is not counted in the first answer's time.
        self._completions: Any = client.chat.completions.with_streaming_response
        self._limit, self._left_out = "max_tokens", set[str]()
        self._announced = self._silent = False  # what was said once is not said again

    @property
    def identity(self) -> dict[str, str]:
        return {"checkpoint": self.model, "endpoint": self.base_url}

    @property
    def place(self) -> dict[str, Any]:
        """The options of a command that asks the same endpoint."""
        options = {"subject": f"{self.base_url}#{self.model}", "api-key-env": self.api_key_env}
        return options | ({"concurrency": self.concurrency} if self.concurrency > 1 else {})

    def announce(self, questions: int, images: int, later: int = 0) -> None:
        """Say how much goes where, before anything is sent; `later` is how many more questions may follow."""
        more = f" Up to {later:,} more questions follow, with an image or without." if later else ""
        what = f"{questions:,} questions, {images:,} of them with an image, go"
        if questions == 1:
            what = f"1 question with{'' if images else 'out'} an image goes"
        print(f"imp-kit: {what} to {self._where}.{more}")
        self._announced = True

    @named_settings
    def ask(self, image: Any, question: str, **settings: Unpack[Settings]) -> EndpointAnswer:
        """The answer to a question about an image, or about none where `image` is None; see `images.open_image`.

        Before its first request it says where images go. Raises ReplyError where this request failed for good,
        EndpointError where all would; ImageError, PromptError, SettingError.
        """
        sampling, stops = read_settings(settings)
        self._announce_once()
        return self._ask(image, question, sampling, stops, threading.Event())

    @named_settings
    def ask_each(
        self, pairs: Iterable[tuple[Any, str]], **settings: Unpack[Settings]
    ) -> Iterator[tuple[int, EndpointAnswer | Exception]]:
        """The number of each pair of image and question with its answer, or with what was raised, as they come.

        The next question is asked only once an answer was taken, so never more than `concurrency` are under way or
        waiting to be taken. Raises EndpointError where all would fail, after the answers that were under way;
        SettingError.
        """
        sampling, stops = read_settings(settings)
        self._announce_once()
        rest, stopped = enumerate(pairs), threading.Event()
        tasks: SimpleQueue = SimpleQueue()
        replies: SimpleQueue = SimpleQueue()

        def work() -> None:
            while (task := tasks.get()) is not None:
                number, pair = task
                try:
                    image, question = pair
                    replies.put((number, self._ask(image, question, sampling, stops, stopped)))
                except Exception as error:  # in a thread it would be lost, and its answer waited for
                    replies.put((number, error))

        under_way = started = 0
        end = None
        try:
            for task in islice(rest, self.concurrency):
                # As daemons, or an interrupted process would end only when a slow server has answered.
                threading.Thread(target=work, daemon=True).start()
                started += 1
                tasks.put(task)
                under_way += 1
            while under_way:
                number, reply = _next_reply(replies)
                under_way -= 1
                if isinstance(reply, EndpointError) and not isinstance(reply, ReplyError):
                    end = end or reply
                    stopped.set()
                elif not (end and isinstance(reply, Exception)):
                    yield number, reply
                for task in () if end else islice(rest, 1):
                    tasks.put(task)
                    under_way += 1
            if end:
                raise end
        finally:
            stopped.set()
            for _ in range(started):
                tasks.put(None)

    @property
    def _where(self) -> str:
        return f"{self.base_url} (model {self.model})"

    def _announce_once(self) -> None:
        if not self._announced:
            print(f"imp-kit: questions and their images go to {self._where}.")
            self._announced = True

    def _ask(
        self, image: Any, question: str, sampling: Sampling, stops: tuple[str, ...], stopped: threading.Event
    ) -> EndpointAnswer:
        """One answer, after as many requests as it takes, or until `stopped`."""
        check_order(image, question)
        check_question(question)
        content: Any = question
        if image is not None:
            content = [
                {"type": "image_url", "image_url": {"url": _data_url(image)}},
                {"type": "text", "text": question},
            ]
        for tries in range(1, self.retries + 2):
            try:
                return self._request(content, sampling, stops)
            except _Failed as failed:
                delay = min(FIRST_DELAY * 2 ** (tries - 1), LONGEST_DELAY) * random.uniform(0.75, 1)  # not all at once
                delay = max(delay, failed.after or 0)
                what = self._without_key(f"{self._where}: {failed}")
                if delay > LONGEST_DELAY:
                    raise EndpointError(f"{what} It asks to wait {delay:,.0f} s before the next request.") from None
                if not failed.again or tries > self.retries or _is_stopped(stopped, within=delay):
                    tried = f" It was asked {tries} times." if tries > 1 else ""
                    raise (EndpointError if failed.all_fail else ReplyError)(what + tried) from None
        raise AssertionError("unreachable")

    def _request(self, content: Any, sampling: Sampling, stops: tuple[str, ...]) -> EndpointAnswer:
        """One request. Raises _Failed."""
        chosen = {
            self._limit: sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p if sampling.top_p < 1 else None,
            "seed": sampling.seed,
            "stop": list(stops) or None,
        }
        left_out = tuple(sorted(self._left_out))
        chosen = {name: value for name, value in chosen.items() if value is not None and name not in left_out}
        start = time.perf_counter()
        try:
            with self._completions.create(
                model=self.model, messages=[{"role": "user", "content": content}], extra_headers=self._headers, **chosen
            ) as response:
                body = self._read(response, start + self.timeout)
                kind = response.headers.get("content-type", "").partition(";")[0]
        except self._openai.APIStatusError as error:
            if self._adapts(error, chosen):
                return self._request(content, sampling, stops)
            seconds = time.perf_counter() - start
            if _is_filtered(error):
                said = self._without_key(_said(error))
                return EndpointAnswer(said, "refusal", said, None, None, None, None, seconds, left_out)
            raise self._status_failure(error) from None
        except (self._openai.APIConnectionError, self._http.HTTPError) as error:
            raise self._connection_failure(error) from None
        return self._answer(body.decode("utf-8", "replace"), kind, time.perf_counter() - start, left_out)

    def _read(self, response: Any, deadline: float) -> bytes:
        """A response's body, as long as it comes in time and is not too long."""
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > MOST_BYTES:
                raise _Failed(f"the response is longer than {MOST_BYTES:,} bytes, too long for an answer.")
            if time.perf_counter() > deadline:
                raise _Failed(f"no whole answer within {self.timeout:g} s.", again=True)
        return bytes(body)

    def _adapts(self, error: Any, chosen: dict) -> bool:
        """Whether the next request will do without a setting that the server does not take, by its own words."""
        name = _setting_not_taken(error, chosen) if error.status_code == 400 else None
        if name == "max_tokens":
            self._limit = "max_completion_tokens"  # its name for models that think before they answer
            return True
        if name != "temperature":
            return False
        if "temperature" not in self._left_out:
            self._left_out.add("temperature")
            warnings.warn(
                f"{self._where} takes no temperature, so its answers may differ from run to run.", stacklevel=2
            )
        return True

    def _status_failure(self, error: Any) -> _Failed:
        status, said = error.status_code, _said(error)
        words = f"status {status}" + (f": {said.rstrip('.')}" if said else "")
        if status == 401:
            wrong = f"the key in {self.api_key_env} is refused" if self._key else "a key is asked for"
            name = "" if self._key else " Name the environment variable that holds it as api_key_env (--api-key-env)."
            return _Failed(f"{wrong} ({words}).{name}", all_fail=True)
        if 300 <= status < 400:
            target = error.response.headers.get("location", "somewhere else")
            return _Failed(f"sends the request on to {target:.200}; name that address if you trust it.", all_fail=True)
        if status in (404, 405):
            hint = "Is the model's name right, and does the address end in /v1?"
            return _Failed(f"there is no such model or address ({words}). {hint}", all_fail=True)
        if status in (402, 407) or (status == 429 and _kinds(error) & NO_MONEY):
            return _Failed(f"{words}.", all_fail=True)
        again = status in AGAIN or status >= 500
        return _Failed(f"{words}.", again=again, after=_retry_after(error.response.headers) if again else None)

    def _connection_failure(self, error: Exception) -> _Failed:
        """openai's error, or that of the HTTP package where the body broke off."""
        cause = error.__cause__ if isinstance(error, self._openai.APIConnectionError) and error.__cause__ else error
        if isinstance(cause, self._http.ConnectError | self._http.ConnectTimeout | self._http.ProxyError):
            return _Failed(f"cannot be reached ({cause}). Is the server running there?", again=True, all_fail=True)
        if isinstance(cause, self._http.TimeoutException):
            return _Failed(f"no answer within {self.timeout:g} s.", again=True)
        return _Failed(f"the connection broke ({cause or type(cause).__name__}).", again=True)

    def _answer(self, body: str, kind: str, seconds: float, left_out: tuple[str, ...]) -> EndpointAnswer:
        """The answer in a response's body. Raises _Failed."""
        if kind == "text/html" or body.lstrip().startswith("<"):
            raise _Failed(
                "a web page came instead of an answer. Does the address end in /v1? Or a proxy answers in its place.",
                all_fail=True,
            )
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            raise _Failed(f"the response is no JSON: {_shown(body)!r}.", again=True) from None
        found = found if isinstance(found, dict) else {}
        choices, error = found.get("choices"), found.get("error")
        if not isinstance(choices, list) or not choices:
            # Some gateways give the status within a response whose own status is 200.
            status = _whole(error.get("code")) if isinstance(error, dict) else None
            again = status is not None and (status in AGAIN or status >= 500)
            raise _Failed(f"the response holds no answer: {_shown(body)!r}.", again=again)
        try:
            message, finish = choices[0]["message"], choices[0].get("finish_reason")
            refusal, text = message.get("refusal"), _text(message.get("content"))
        except (TypeError, KeyError, AttributeError):
            raise _Failed(f"the response holds no text: {_shown(body)!r}.") from None
        finish = finish.lower() if isinstance(finish, str) else None
        refusal = self._without_key(refusal) if isinstance(refusal, str) and refusal else None
        if refusal or finish in REFUSED:
            finish = "refusal"
        if not text and finish in ("length", "max_tokens") and not self._silent:
            self._silent = True
            warnings.warn(
                f"{self._where} gave no word within its limit of tokens, as a model does that thinks for longer before "
                "it answers. The records of such samples have the finish 'length' and an empty answer.",
                stacklevel=2,
            )
        usage = found["usage"] if isinstance(found.get("usage"), dict) else {}
        cost, name = usage.get("cost"), found.get("model")
        return EndpointAnswer(
            text=self._without_key(text or refusal or ""),
            finish="length" if finish == "max_tokens" else finish,
            refusal=refusal,
            served_model=self._without_key(name[:MOST_SHOWN]) if isinstance(name, str) else None,
            input_tokens=_whole(usage.get("prompt_tokens")),
            output_tokens=_whole(usage.get("completion_tokens")),
            cost=float(cost) if isinstance(cost, int | float) and math.isfinite(cost) else None,
            seconds=seconds,
            left_out=left_out,
        )

    def _without_key(self, text: str) -> str:
        """A server's words go into files, and it may repeat the key in them."""
        return text.replace(self._key, "***") if self._key and len(self._key) >= SECRET else text


def _check_address(base_url: str) -> str:
    """The host of an address. Raises SettingError, in which nothing stands that may be secret."""
    example = "give one such as http://127.0.0.1:8000/v1"
    if not isinstance(base_url, str) or not re.match("https?://", base_url):
        raise SettingError(f"The endpoint's address has no http:// or https:// at its beginning; {example}.")
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port
        (host or "").encode("idna")  # no part of a name is empty or longer than 63 letters
    except ValueError:
        host = None
    if not host or re.search(r"[\s\x00-\x1f\x7f]", base_url):
        raise SettingError(f"The endpoint's address is no valid one; {example}.")
    if parts.username is not None or parts.password is not None:
        raise SettingError(
            "The endpoint's address holds a user's name or a password, which would stand in the records; put a key "
            "into an environment variable, and name that as api_key_env (--api-key-env)."
        )
    if parts.query or parts.fragment:
        raise SettingError(f"The endpoint's address has something after ? or #; {example}.")
    return host


def _read_key(name: str | None) -> str | None:
    """The key in an environment variable. Raises SettingError; in case `name` is the key itself, it is not repeated."""
    if name is None:
        return None
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise SettingError("api_key_env is the name of an environment variable that holds the key, not the key itself.")
    shown = name if re.fullmatch("[A-Z_]+", name) else "that api_key_env names"
    key = os.environ.get(name, "").strip()
    if not key:
        raise SettingError(f"The environment variable {shown} is not set, or empty; put the endpoint's key there.")
    if not re.fullmatch("[!-~]+", key):
        raise SettingError(f"The environment variable {shown} holds blanks or other characters that no key has.")
    return key


def _next_reply(replies: SimpleQueue) -> Any:
    """The next reply, once there is one; Ctrl-C ends the wait."""
    while True:
        with contextlib.suppress(Empty):
            return replies.get(timeout=WAIT_STEP)


def _is_stopped(stopped: threading.Event, within: float) -> bool:
    """Whether it is set within so many seconds; Ctrl-C ends the wait."""
    end = time.monotonic() + within
    while (left := end - time.monotonic()) > 0:
        if stopped.wait(min(left, WAIT_STEP)):
            return True
    return stopped.is_set()


def _data_url(image: Any) -> str:
    """An image as PNG, of which no pixel is changed."""
    content = io.BytesIO()
    open_image(image).save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _text(content: object) -> str | None:
    """A message's text, which some servers give in parts."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    if content is not None and not isinstance(content, str):
        raise TypeError
    return content


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _shown(text: str) -> str:
    """The beginning of a server's words on one line."""
    return " ".join(text.split())[:MOST_SHOWN]


def _error_in(body: Any) -> Any:
    """The error in a response's body, which Gemini's layer puts into a list."""
    body = body[0] if isinstance(body, list) and body else body
    return body["error"] if isinstance(body, dict) and isinstance(body.get("error"), dict) else body


def _said(error: Any) -> str:
    """A server's own words in an error; those of a web page are for people."""
    body = _error_in(error.body)
    if isinstance(body, dict):
        said = body.get("message") or body.get("detail") or body.get("error") or ""
        return _shown(said if isinstance(said, str) else json.dumps(said))
    text = body if isinstance(body, str) else ""
    return "a web page" if text.lstrip().startswith("<") else _shown(text)


def _setting_not_taken(error: Any, chosen: dict) -> str | None:
    """The setting that a server does not take, by its own words; None where it says nothing of the kind."""
    if str(error.code) in UNSUPPORTED and error.param in list(chosen):
        return error.param
    said = _said(error)
    named = [name for name in ("max_tokens", "temperature") if name in chosen and name in said]
    return named[0] if named and NOT_TAKEN.search(said) else None


def _kinds(error: Any) -> set[str]:
    """What a server calls its error."""
    body = _error_in(error.body)
    named = [body.get(name) for name in ("code", "type", "status")] if isinstance(body, dict) else []
    return {str(name) for name in (error.code, error.type, *named)}


def _is_filtered(error: Any) -> bool:
    """Whether a filter refused the question itself, which some servers give as a bad request."""
    return error.status_code in (400, 403, 422) and bool(_kinds(error) & REFUSED)


def _retry_after(headers: Any) -> float | None:
    """How many seconds a server asks to wait, given as such or as a date; None where it does not ask."""
    asked = headers.get("retry-after", "")
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(asked).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
