"""python -m imp_kit: the verbs of the kit in a shell."""

import argparse
import codecs
import io
import os
import shlex
import signal
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from imp_kit import __version__
from imp_kit.errors import CheckpointError, ImageError, ImpKitError, PromptError, SettingError, Stopped
from imp_kit.system import interrupts
from imp_kit.system.extras import require

if TYPE_CHECKING:
    from imp_kit.imp import Chat, Imp

UNDONE = {
    "probe": "nothing was asked yet",
    "finetune": "nothing was written",
    "export": "the file that was being written is gone",
}  # what an interrupt says of a command


def parser() -> argparse.ArgumentParser:
    """The command line; building it imports nothing that a command may need."""
    console = Path(sys.argv[0]).stem == "imp-kit"
    top = argparse.ArgumentParser(
        prog="imp-kit" if console else "python -m imp_kit", description="Show Imp a picture and ask."
    )
    top.add_argument("--version", action="version", version=f"imp-kit {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")

    source = argparse.ArgumentParser(add_help=False)
    source.add_argument("--checkpoint", help="name, hub id or folder (default: what this machine can run)")
    source.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    source.add_argument("--dtype", default="auto", help="auto, fp32, bf16 or fp16")
    source.add_argument("--revision", help="branch, tag or commit of the hub")

    model = argparse.ArgumentParser(add_help=False, parents=[source])
    model.add_argument("--quantize", help="int8: the language model's weights in 8 bits; or a type of llama.cpp")
    model.add_argument("--engine", default="torch", help="torch (default), or llama.cpp, for a CPU")
    model.add_argument("--max-new-tokens", type=int, default=100, help="length of an answer, at most (default: 100)")
    model.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest words; above: words by chance")
    model.add_argument("--top-p", type=float, default=1.0, help="leave out the least likely words (default: 1, none)")
    model.add_argument("--seed", type=int, help="makes answers by chance repeatable")
    model.add_argument("--stop", action="append", default=[], help="end the answer before this text")
    model.add_argument("--json", action="store_true", help="print each answer as a line of JSON, with all about it")
    model.add_argument("--quiet", action="store_true", help="print the answers and errors, nothing else")

    question = commands.add_parser("ask", parents=[model], help="answer a question about pictures, one by one")
    question.add_argument("pictures", nargs="+", metavar="picture", help="a picture file; several are asked in turn")
    question.add_argument("question", help="the question; - reads it from stdin")
    question.set_defaults(run=ask)
    caption = commands.add_parser("caption", parents=[model], help="describe pictures, one by one")
    caption.add_argument("pictures", nargs="+", metavar="picture", help="a picture file; several are described in turn")
    caption.set_defaults(run=ask)
    locate = commands.add_parser("locate", parents=[model], help="find a thing in a picture: the corners of its box")
    locate.add_argument("picture", help="a picture file")
    locate.add_argument("phrase", help='what to look for, such as "the bus"; - reads it from stdin')
    locate.add_argument("--draw", metavar="FILE", help="save the picture with the box, if it is found")
    locate.set_defaults(run=find_box)
    conversation = commands.add_parser("chat", parents=[model], help="talk about a picture, a question a line")
    conversation.add_argument("picture", help="a picture file")
    conversation.set_defaults(run=chat)

    web = commands.add_parser("chat-web", parents=[source], help="the same in the browser, on this machine alone")
    web.add_argument("--port", type=int, help="of the page's address (default: the first free one from 7860)")
    web.set_defaults(run=serve_chat)

    checkpoints = commands.add_parser("checkpoints", help="list the names that the kit knows, or inspect one")
    checkpoints.set_defaults(run=list_checkpoints)
    deeper = checkpoints.add_subparsers(metavar="[inspect NAME]")
    inspect = deeper.add_parser("inspect", help="list a checkpoint's tensors without downloading its weights")
    inspect.add_argument("checkpoint", help="name, hub id or folder")
    inspect.add_argument("--revision", help="branch, tag or commit of the hub")
    inspect.set_defaults(run=inspect_checkpoint)

    doctor = commands.add_parser("doctor", help="examine this machine, or explain an error message")
    doctor.add_argument("--why", metavar="TEXT", help="the error, or a whole traceback; - reads it from stdin")
    doctor.set_defaults(run=run_doctor)

    bench = commands.add_parser(
        "bench", parents=[source], help="how fast Imp is here, compared with the machine's limits"
    )
    bench.add_argument("--random", metavar="NAME", help="instead: this published size with random weights")
    bench.add_argument("--quantize", help="int8: the language model's weights in 8 bits; or types of llama.cpp")
    bench.add_argument("--engine", default="torch", help="llama.cpp: the kit's engine and llama.cpp, side by side")
    bench.add_argument("--folder", help="with --engine llama.cpp: keep what is written for it here")
    bench.add_argument(
        "--against",
        metavar="LIBRARY",
        help="transformers, or transformers-static: its classes, the same weights, in turns",
    )
    bench.add_argument("--repeats", type=int, default=5, help="measurements for each median (default: 5)")
    bench.add_argument("--json", metavar="FILE", help="write everything, too")
    bench.add_argument(
        "--plot", "--picture", metavar="FILE", help="plot the figures and the machine's limits; needs matplotlib"
    )
    bench.add_argument("--growth", metavar="FILE", help="measure longer prompts and larger batches, too, and plot them")
    bench.set_defaults(run=measure_speed)

    tune = commands.add_parser("finetune", help="teach a checkpoint new answers with LoRA, from pictures and a CSV")
    tune.add_argument("checkpoint", help="name, hub id or folder")
    tune.add_argument(
        "examples", metavar="CSV", help="columns image (its path from the CSV's folder), question, answer"
    )
    tune.add_argument("--out", required=True, metavar="FOLDER", help="a new folder for the new checkpoint")
    tune.add_argument("--rank", type=int, default=16, help="of the adapters (default: 16)")
    tune.add_argument("--alpha", type=float, help="what is learned counts alpha / rank times (default: as rank)")
    tune.add_argument("--epochs", type=int, default=1, help="how often each example is learned (default: 1)")
    tune.add_argument("--learning-rate", type=float, default=2e-4, metavar="RATE", help="its highest (default: 2e-4)")
    tune.add_argument("--batch-size", type=int, default=8, metavar="N", help="examples of one step (default: 8)")
    tune.add_argument("--targets", nargs="+", metavar="LAYER", help="of qkv, out, up and down (default: all)")
    tune.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    tune.add_argument("--dtype", default="auto", help="of the weights that stay: auto, fp32, bf16 or fp16")
    tune.add_argument("--seed", type=int, default=0, help="of first values and of the examples' order (default: 0)")
    tune.set_defaults(run=tune_checkpoint)

    export = commands.add_parser("export", help="a checkpoint as files for other programs").add_subparsers(
        required=True, metavar="format"
    )
    llama = export.add_parser("gguf", help="for llama.cpp, ollama and LM Studio")
    llama.add_argument("checkpoint", help="name, hub id or folder")
    llama.add_argument("--out", required=True, metavar="FOLDER", help="where the files go")
    llama.add_argument(
        "--type",
        default="q8_0",
        help="f32, f16, bf16, q8_0 (default), q4_0; with llama-cpp-python q6_k, q5_k_m, q4_k_m",
    )
    llama.add_argument("--revision", help="branch, tag or commit of the hub")
    llama.set_defaults(run=export_checkpoint)

    probe = commands.add_parser("probe", help="run an experiment").add_subparsers(required=True, metavar="experiment")
    loading = probe.add_parser("loading", help="which versions of transformers load Imp by its own code")
    loading.add_argument("--versions", nargs="+", metavar="VERSION", help="such as 4.37.2, or newest (default: 16)")
    loading.add_argument("--csv", metavar="FILE", help="the table (default: runs/loading/loading.csv)")
    loading.add_argument("--environments", metavar="FOLDER", help="where pip puts each version (default: runs/loading)")
    loading.add_argument("--plot", "--picture", metavar="FILE", help="draw the table, too; needs matplotlib")
    loading.set_defaults(run=probe_loading)
    experiments = {
        "captcha": "how much of a distorted code is read",
        "japanese": "what a question in Japanese costs an answer",
        "documents": "charts, receipts, tables, handwriting, sketches and boxes: what is read",
        "pope": "things that are not there: how often the answer is yes",
    }
    for name, what in experiments.items():
        experiment = probe.add_parser(name, parents=[source], help=what)
        experiment.add_argument(
            "--size", default="standard", help="smoke, standard (default), full; lesson, but for japanese"
        )
        experiment.add_argument("--seed", type=int, default=1, help="of the pictures (default 1)")
        experiment.add_argument(
            "--out", required=True, metavar="FOLDER", help="where the answers go; a run there goes on"
        )
        experiment.add_argument(
            "--subject",
            help="instead of a checkpoint: transformers:ID, or an endpoint as http://127.0.0.1:8000/v1#MODEL",
        )
        experiment.add_argument(
            "--api-key-env", metavar="NAME", help="the environment variable that holds the endpoint's key"
        )
        experiment.add_argument(
            "--concurrency", type=int, default=1, metavar="N", help="requests to an endpoint at once (default: 1)"
        )
        experiment.set_defaults(run=probe_answers, experiment=name)

    server = commands.add_parser("serve", parents=[source], help="answer programs that speak OpenAI's chat protocol")
    server.add_argument("--quantize", help="int8: the language model's weights in 8 bits; or a type of llama.cpp")
    server.add_argument("--engine", default="torch", help="torch (default), or llama.cpp, for a CPU")
    server.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1, this machine only)")
    server.add_argument("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    server.add_argument("--api-key-env", metavar="NAME", help="the environment variable with the key for clients")
    server.add_argument("--batch-size", type=int, default=8, metavar="N", help="answers at once (default: 8)")
    server.add_argument("--queue", type=int, default=64, metavar="N", help="requests that may wait (default: 64)")
    server.set_defaults(run=run_server, quiet=False)

    report = commands.add_parser("report", help="tables and pictures of experiments, from their folders alone")
    report.add_argument("runs", nargs="+", metavar="RUN", help="folder that a probe wrote")
    report.add_argument("--out", metavar="FOLDER", help="where report.md and its pictures go (default: the first RUN)")
    report.set_defaults(run=write_report)
    return top


def main(arguments: list[str] | None = None) -> None:
    """Run one command; an error of the kit is one line on stderr and exit status 2, a bad finding is status 1."""
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    args = parser().parse_args(arguments)
    resumable = args.command in UNDONE and _is_first()
    if resumable:
        again = Stopped(UNDONE[args.command], f"python -m imp_kit {shlex.join(arguments)}")
        interrupts.hint = str(again)
    # An answer may hold any character, and so may what is typed: an escape or a mark instead of a failure. A closed
    # stream is None.
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=errors)
    notes = _Notes(getattr(args, "quiet", False))
    try:
        with warnings.catch_warnings():
            # One line, as for an error: a line number of the kit does not help the user of a shell.
            warnings.showwarning = lambda message, *_: print(f"imp-kit: {message}", file=notes)
            status = args.run(args)
        if sys.stdout:
            sys.stdout.flush()
    except ImpKitError as error:
        print(f"imp-kit: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as stopped:
        if resumable:
            print(stopped if isinstance(stopped, Stopped) else interrupts.hint, file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # such as `| head`, which reads no further; what Python would flush at its end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:  # such as a folder that cannot be made
        print(f"imp-kit: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if status:
        raise SystemExit(status)


def _settings(args: argparse.Namespace) -> dict:
    return {name: getattr(args, name) for name in ("max_new_tokens", "temperature", "top_p", "seed", "stop")}


def _load(args: argparse.Namespace) -> "Imp":
    from imp_kit.imp import load

    names = ("device", "dtype", "revision", "quantize", "engine")
    with redirect_stdout(_Notes(args.quiet)):  # stdout is for the answers
        imp = load(args.checkpoint, **{name: getattr(args, name) for name in names})
    interrupts.work()
    return imp


class _Notes(io.TextIOBase):
    """What is no answer: to stderr, or nowhere if the user wants quiet."""

    def __init__(self, quiet: bool):
        self.quiet = quiet

    def write(self, text: str) -> int:
        return len(text) if self.quiet else sys.stderr.write(text)


def _print_json(**values: object) -> None:
    import json

    print(json.dumps(values, ensure_ascii=False), flush=True)


def ask(args: argparse.Namespace) -> int:
    """ask and caption: an answer for each picture, to stdout as it is made; 2 if one of several has none."""
    from imp_kit.images import check_order, open_image
    from imp_kit.prompts import CAPTION, check_question
    from imp_kit.settings import read_settings

    settings, several = _settings(args), len(args.pictures) > 1
    # Errors in the arguments are reported before gigabytes are loaded.
    read_settings(settings)
    question = CAPTION if args.command == "caption" else _read_argument(args.question)
    for path in args.pictures:
        check_order(path, question)
    if os.path.isfile(question):
        raise PromptError(f"{question!r} is a file where the question should be: ask PICTURE ... QUESTION.")
    check_question(question)
    if not several:
        open_image(args.pictures[0])
    imp, status = _load(args), 0
    for name in args.pictures:
        try:
            chat = imp.chat(name)
        except ImageError as error:
            if not several:
                raise
            status = 2  # the others have their answers
            print(f"imp-kit: {error}", file=sys.stderr)
            if args.json:
                _print_json(picture=name, question=question, error=str(error))
            continue
        _answer(args, chat, question, settings, f"{name}: " if several else "", picture=name)
    return status


def chat(args: argparse.Namespace) -> None:
    """A conversation, a question a line; one that cannot be asked does not end it."""
    from imp_kit.images import open_image
    from imp_kit.settings import read_settings

    settings = _settings(args)
    read_settings(settings)
    image = open_image(args.picture)
    conversation = _load(args).chat(image)
    notes = _Notes(args.quiet)
    print("Ask about the picture; an empty line ends the chat.", file=notes)
    while question := _read_line("> ", notes):
        try:
            _answer(args, conversation, question, settings, picture=args.picture)
        except PromptError as error:
            print(f"imp-kit: {error}", file=sys.stderr)


def serve_chat(args: argparse.Namespace) -> None:
    """Serve Imp Chat to this machine's browsers until an interrupt."""
    from imp_kit.chat_web import launch

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which lets the pictures of the page be deleted
    page = launch(args.checkpoint, device=args.device, dtype=args.dtype, revision=args.revision, port=args.port)
    interrupts.work()
    print(f"Imp Chat is at {page.url} for the browsers of this machine. Ctrl-C ends it.", flush=True)
    page.wait()


def _answer(
    args: argparse.Namespace, chat: "Chat", question: str, settings: dict, before: str = "", **names: str
) -> None:
    """Print the next answer of a chat: after `before`, piece by piece as it comes, or whole as JSON with `names`."""
    for piece in chat.stream(question, **settings):
        if not args.json:
            print(end=before + piece, flush=True)
            before = ""
    answer = chat.turns[-1][1]
    if args.json:
        _print_json(**names, question=question, **answer.to_dict())
        return
    print(before, flush=True)
    print(f"[{answer.summary}]", file=_Notes(args.quiet))


def _read_argument(text: str) -> str:
    """A question from the command line, or from stdin where "-" stands for it."""
    return _read_stdin().strip() if text == "-" else text


def find_box(args: argparse.Namespace) -> int:
    """Print where a thing is, as fractions and as pixels; 1 if it was not found."""
    from PIL import Image

    from imp_kit.images import check_order, open_image
    from imp_kit.prompts import check_phrase
    from imp_kit.settings import read_settings

    read_settings(_settings(args))
    phrase = _read_argument(args.phrase)
    check_order(args.picture, phrase)
    check_phrase(phrase)
    image = open_image(args.picture)
    target = Path(args.draw) if args.draw else None
    kind = Image.registered_extensions().get(target.suffix.lower()) if target else None
    if target and not (target.parent.is_dir() and kind in Image.SAVE):
        # Reported before the work: a misspelled name should not cost it.
        raise ImageError(f"The picture cannot be saved as {args.draw!r}: name a folder that is there and end in .png.")
    imp = _load(args)
    box, notes = imp.locate(image, phrase, **_settings(args)), _Notes(args.quiet)
    if args.json:
        found = {"fractions": box.fractions, "pixels": box.pixels}
        _print_json(picture=args.picture, phrase=phrase, **found, **box.answer.to_dict())
    else:
        print(f"{box} (pixels {', '.join(map(str, box.pixels))})" if box.pixels else box)
        print(f"[{box.answer.summary}]", file=notes)
    if target and not box:
        print("imp-kit: No picture is written, because nothing was found.", file=notes)
    elif target:
        try:
            box.draw().save(target)
        except (OSError, ValueError) as error:
            raise ImageError(f"The picture cannot be saved as {args.draw!r}: {error}.") from error
        print(f"imp-kit: The picture with the box is in {args.draw}.", file=notes)
    return 0 if box else 1


def _read_line(prompt: str, notes: io.TextIOBase) -> str:
    print(prompt, end="", file=notes, flush=True)
    line = sys.stdin.readline()
    if not line:
        print(file=notes)  # the input ended after the prompt
    return line.strip()


def list_checkpoints(_: argparse.Namespace) -> None:
    """Print each short name and what it stands for."""
    from imp_kit.checkpoints.hub import HUB_IDS, NANO

    print(f"{NANO:<22} bundled with the kit; knows only simple drawings")
    for name, hub_id in HUB_IDS.items():
        print(f"{name:<22} {hub_id} on the hub")


def inspect_checkpoint(args: argparse.Namespace) -> int:
    """Print a checkpoint's tensors and what loading would do with each; 1 if the kit would refuse it."""
    from imp_kit.checkpoints.inspect import inspect

    inspection = inspect(args.checkpoint, args.revision)
    print(*inspection.lines(), sep="\n")
    return 0 if inspection.loads else 1


def run_doctor(args: argparse.Namespace) -> int:
    """Print what is wrong here, or the cause of an error; 1 if something fails, or the error is not known."""
    from imp_kit.tools.doctor import UNKNOWN, examine, explain

    if args.why is None:
        findings = examine()
        print(*findings, sep="\n")
        return int(any(finding.level == "FAIL" for finding in findings))
    text = _read_stdin() if args.why == "-" else args.why
    if not text.strip():
        raise PromptError("There is no error to explain; give its text.")
    explanation = explain(text)
    print(explanation or UNKNOWN)
    return 0 if explanation else 1


def _read_stdin() -> str:
    """What stands on stdin, as UTF-8 or as the UTF-16 in which Windows' shells write files."""
    if sys.stdin is None:
        return ""
    if not hasattr(sys.stdin, "buffer"):  # a stream of text that a caller put there
        return sys.stdin.read()
    data = sys.stdin.buffer.read()
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        encoding = "utf-32"
    elif data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif data.count(0) > len(data) // 10:  # without a byte order mark; Latin letters have a zero before or after them
        encoding = "utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be"
    else:
        encoding = "utf-8-sig"
    return data.decode(encoding, "replace")


def measure_speed(args: argparse.Namespace) -> None:
    """Print how fast a checkpoint is here, as Markdown; write and draw it where a file is named."""
    import json

    from imp_kit.tools.bench import bench, check_files, draw, draw_growth, table

    check_files(args.json, args.plot, args.growth)  # before minutes of work
    interrupts.work()
    if args.engine != "torch":
        return _compare_engines(args)
    if args.folder:
        raise SettingError("--folder is for --engine llama.cpp.")
    names = ("random", "device", "dtype", "revision", "quantize", "against", "repeats")
    result = bench(args.checkpoint, growth=bool(args.growth), **{name: getattr(args, name) for name in names})
    print(table(result))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    if args.plot:
        draw(result, args.plot)
    if args.growth:
        draw_growth(result, args.growth)


def _compare_engines(args: argparse.Namespace) -> None:
    import json

    from imp_kit.tools.engines import compare, table

    if args.engine != "llama.cpp":
        raise SettingError(f"engine is {args.engine!r}; choose torch or llama.cpp.")
    if args.against or args.plot or args.growth or args.device not in ("auto", "cpu"):
        raise SettingError(
            "--engine llama.cpp compares on the CPU, without --against, --plot, --growth and a --device."
        )
    names = ("random", "revision", "dtype", "repeats", "folder")
    result = compare(args.checkpoint, types=args.quantize, **{name: getattr(args, name) for name in names})
    print(table(result))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n", "utf-8")


def tune_checkpoint(args: argparse.Namespace) -> None:
    """Fine-tune a checkpoint, and say where the new one is."""
    from imp_kit.finetuning.run import finetune

    interrupts.work()
    names = ("rank", "alpha", "epochs", "learning_rate", "batch_size", "targets", "device", "dtype", "seed")
    out = finetune(args.checkpoint, args.examples, args.out, **{name: getattr(args, name) for name in names})
    print(f"The new checkpoint is in {out}; ask it with --checkpoint {shlex.quote(str(out))}.")


def export_checkpoint(args: argparse.Namespace) -> None:
    """Write a checkpoint for llama.cpp, and say where it is and how other programs open it."""
    from imp_kit.llama_cpp.export import export_gguf

    interrupts.work()
    files = export_gguf(args.checkpoint, args.out, args.type, revision=args.revision)
    print(*(f"{file} ({os.path.getsize(file) / 1e6:,.1f} MB)" for file in files[:2]), sep="\n")
    print(f"How other programs open them: {files[-1]}")


def run_server(args: argparse.Namespace) -> None:
    """Answer programs until Ctrl-C."""
    require("serve", what="The server")
    from imp_kit.serving.server import serve

    names = ("host", "port", "api_key_env", "batch_size", "queue")
    serve(lambda: _load(args), **{name: getattr(args, name) for name in names})


def probe_loading(args: argparse.Namespace) -> None:
    """Try calls in versions of transformers; the table goes to a file, and in words to stdout."""
    from imp_kit.experiments.transformers_matrix.measure import RUNS, VERSIONS, measure, save_plot, summary

    if args.plot:
        require("measure", "matplotlib", what="The plot")  # before minutes of work
    interrupts.work()
    rows = measure(args.versions or VERSIONS, args.csv or RUNS / "loading.csv", args.environments or RUNS)
    print(summary(rows))
    if args.plot:
        save_plot(rows, args.plot)


def probe_answers(args: argparse.Namespace) -> None:
    """Run a probe, or what is left of it."""
    from imp_kit.checkpoints.hub import locate
    from imp_kit.device import choose_device
    from imp_kit.experiments.captcha import probe as reading
    from imp_kit.experiments.frames import PROBES
    from imp_kit.experiments.runs import answered, read
    from imp_kit.imp import choose_checkpoint
    from imp_kit.subjects.named import FORMS, subject_named

    experiment = PROBES[args.experiment]
    if args.subject is not None and args.checkpoint is not None:
        raise SettingError("--subject and --checkpoint exclude each other; name one of them.")
    if args.subject == "":  # as of a variable that is not set
        raise SettingError("--subject is empty; name a subject, or leave it out for a checkpoint.")
    name = args.subject or args.checkpoint or choose_checkpoint(choose_device(args.device))[0]
    loading = {"device": args.device, "dtype": args.dtype, "revision": args.revision}
    require("measure", what="The probe with its report")  # all at once, and before anything is asked
    before = answered(args.out)
    asking = {"api_key_env": args.api_key_env, "concurrency": args.concurrency}
    subject = subject_named(name, **loading, **asking)
    if subject == args.subject:  # as it was given: a checkpoint's name
        try:
            locate(subject)
        except CheckpointError as error:
            raise CheckpointError(f"{error} {FORMS}") from None
    samples = experiment.run(subject, args.size, args.seed, args.out, **loading)
    if _is_first():
        new = len(answered(args.out) - before)
        failed = sum(record["status"] != "ok" for record in read(args.out))
        asked = f"{new} were asked now" if new or failed else "all were there already, nothing was asked"
        print(f"{len(samples)} samples of {name} are answered and stand in {args.out}: {asked}.")
        if failed:
            print(f"{failed} samples failed; the same command asks them again.")
        if experiment is reading:
            levels = {sample.cell.level for sample in samples if sample.cell.codes == "captions"}
            for level in sorted(levels):
                print(f"Captions were compared at L{level}: {reading.RULE}.")
        print(f"Tables and pictures: python -m imp_kit report {args.out}")


def _is_first() -> bool:
    """Whether this is the only process, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def write_report(args: argparse.Namespace) -> None:
    """Write a report and say where it is."""
    from imp_kit.experiments.report import write

    print(write(args.runs, args.out))
