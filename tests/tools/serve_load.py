"""How many answers `python -m imp_kit serve` gives a second, and what hours of work do to it.

python tests/tools/serve_load.py [--checkpoint NAME] [--dtype fp32] [--rounds 5] [--answers 64] [--minutes 10]

First each round asks the same questions one after the other with `ask`, then a server with 1, 8 and 32 clients at once;
the medians and the ratios to `ask` of the same round are printed as a Markdown table. With --minutes, 32 clients ask a
server that has places for 24, all the time: a table has the answers, the refusals (429), what was lost, and the
server's memory. Each answer is compared with that of `ask`; the exit status is 1 where one is wrong or lost, in fp32.
"""

import argparse
import base64
import http.client
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import psutil

ROOT = Path(__file__).parents[2]
IMAGES = ("bus.png", "door.png", "diagram.png")
QUESTIONS = ("Describe the image.", "What color is it?", "Is there a bus?", "What is in the center of the image?")
CLIENTS = (1, 8, 32)
MINUTES_CLIENTS, MINUTES_QUEUE = 32, 16


@contextmanager
def started(*arguments: str, **settings) -> Iterator[tuple[str, subprocess.Popen]]:
    """A server in a process of its own on a free port: its address, and the process. It is stopped at the end."""
    command = [sys.executable, "-m", "imp_kit", "serve", "--port", "0", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, **settings) as process:
        try:
            lines = iter(process.stdout.readline, "")
            line = next((line for line in lines if " answers at " in line), "")
            if not line:
                raise RuntimeError(f"the server did not start: {process.stderr.read()}")
            yield line.partition(" answers at ")[2].split()[0], process
        finally:
            process.terminate()


def data_url(image: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def user(text: str, image: bytes | None = None) -> dict:
    """A message of a user, with an image or without."""
    parts: list[dict] = [{"type": "text", "text": text}]
    if image is not None:
        parts.append({"type": "image_url", "image_url": {"url": data_url(image)}})
    return {"role": "user", "content": parts}


class Client:
    """One connection that is kept."""

    def __init__(self, url: str, timeout: float = 300):
        self.place = urlsplit(url)
        self.connection = http.client.HTTPConnection(self.place.hostname, self.place.port, timeout=timeout)

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict, bytes]:
        """Status, headers by their names in lower case, and content of a response."""
        kind = {} if body is None else {"Content-Type": "application/json"}
        self.connection.request(method, path, body, {**kind, **headers})
        response = self.connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()

    def ask(self, **request) -> tuple[int, dict]:
        """Status and JSON of a request for a completion."""
        status, _, content = self.send("POST", f"{self.place.path}/chat/completions", json.dumps(request).encode())
        return status, json.loads(content)


def requests_of(count: int) -> list[tuple[str, str]]:
    """Names of images and questions."""
    return [(IMAGES[n % len(IMAGES)], QUESTIONS[n % len(QUESTIONS)]) for n in range(count)]


class Load:
    """Clients that ask a server, each on its own connection, and what came of it."""

    def __init__(self, url: str, model: str, expected: dict[tuple[str, str], str]):
        self.url, self.model, self.expected = url, model, expected
        self.files = {name: (ROOT / "images" / name).read_bytes() for name in IMAGES}
        self.counts: Counter[str] = Counter()
        self._local, self._lock = threading.local(), threading.Lock()

    def ask(self, pair: tuple[str, str]) -> None:
        """Ask until there is an answer, as a client does that is told to wait."""
        if not hasattr(self._local, "client"):
            self._local.client = Client(self.url)
        name, question = pair
        while True:
            try:
                status, answer = self._local.client.ask(
                    model=self.model, messages=[user(question, self.files[name])], max_tokens=40
                )
            except (OSError, http.client.HTTPException, ValueError):
                self._local.client = Client(self.url)
                return self._count("lost")
            if status != 429:
                break
            self._count("429")
            time.sleep(0.5)
        if status != 200:
            return self._count("lost")
        same = answer["choices"][0]["message"]["content"] == self.expected[pair]
        self._count("answers" if same else "wrong")

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def run(self, clients: int, count: int) -> float:
        """Answers a second."""
        start = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(self.ask, requests_of(count)))
        return count / (time.perf_counter() - start)


def measure(args: argparse.Namespace, imp, expected: dict[tuple[str, str], str]) -> Counter:
    """Print the table of throughputs."""
    speeds: dict[str, list[float]] = {}
    with started(*args.server) as (url, _):
        load = Load(url, imp.name, expected)
        load.run(max(CLIENTS), args.answers)  # what the first request costs more
        for _ in range(args.rounds):
            start = time.perf_counter()
            for name, question in requests_of(args.answers):
                imp.ask(ROOT / "images" / name, question, max_new_tokens=40)
            speeds.setdefault("ask", []).append(args.answers / (time.perf_counter() - start))
            for clients in CLIENTS:
                speeds.setdefault(f"serve, clients: {clients}", []).append(load.run(clients, args.answers))
    print("| asked by | answers a second, median | ratio to ask, median | from | to |")
    print("| --- | --- | --- | --- | --- |")
    for name, each in speeds.items():
        ratios = [speed / alone for speed, alone in zip(each, speeds["ask"], strict=True)]
        print(
            f"| {name} | {median(each):.1f} | {median(ratios):.2f} | {min(ratios):.2f} | {max(ratios):.2f} |",
            flush=True,
        )
    return load.counts


def endure(args: argparse.Namespace, name: str, expected: dict[tuple[str, str], str]) -> Counter:
    """Print the table of memory and answers over time."""
    total: Counter[str] = Counter()
    with started(*args.server, "--queue", str(MINUTES_QUEUE)) as (url, process):
        load, server = Load(url, name, expected), psutil.Process(process.pid)
        end = time.monotonic() + 60 * args.minutes
        print(f"\n{MINUTES_CLIENTS} clients, {8 + MINUTES_QUEUE} places")
        print("| minute | answers | 429 | wrong | lost | memory of the server, MB |")
        print("| --- | --- | --- | --- | --- | --- |")

        def client(start: int) -> None:
            pairs = requests_of(start + 12)
            while time.monotonic() < end:
                load.ask(pairs[start % len(pairs)])
                start += 1

        with ThreadPoolExecutor(MINUTES_CLIENTS) as pool:
            running = [pool.submit(client, start) for start in range(MINUTES_CLIENTS)]
            begun = time.monotonic()
            while not all(each.done() for each in running):
                time.sleep(min(60.0, max(5.0, end - time.monotonic())))
                counts, load.counts = load.counts, Counter()
                total += counts
                cells = [counts[key] for key in ("answers", "429", "wrong", "lost")]
                minute = (time.monotonic() - begun) / 60
                print("|", f"{minute:.1f}", "|", *(f"{cell} |" for cell in cells), end=" ")
                print(f"{server.memory_info().rss / 1e6:.0f} |", flush=True)
        for each in running:
            each.result()
    return total


def main() -> None:
    import imp_kit

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="imp-nano")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--answers", type=int, default=64, help="of each measurement (default: 64)")
    parser.add_argument("--minutes", type=float, default=0)
    args = parser.parse_args()
    args.server = ["--checkpoint", args.checkpoint, "--device", args.device, "--dtype", args.dtype]
    imp = imp_kit.load(args.checkpoint, device=args.device, dtype=args.dtype)
    expected = {
        pair: imp.ask(ROOT / "images" / pair[0], pair[1], max_new_tokens=40).text for pair in set(requests_of(12))
    }
    counts = measure(args, imp, expected) if args.rounds else Counter()
    if args.minutes:
        counts += endure(args, imp.name, expected)
    print(f"\n{dict(counts)}; wrong ones count in fp32 only")
    sys.exit(bool(counts["lost"] or (args.dtype == "fp32" and counts["wrong"])))


if __name__ == "__main__":
    main()
