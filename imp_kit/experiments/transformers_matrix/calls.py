"""The calls of the loading experiment; run as a script, it tries one of them and writes down what happened.

    python -s -P loading_calls.py CALL RESULT.json

The script writes tiny checkpoints with code of their own, named and laid out as Imp's are, into the current folder and
into the hub cache that HF_HOME names. It uses neither the kit nor the network, so it runs with any version of
transformers.
"""

import ast
import importlib
import importlib.metadata
import json
import linecache
import os
import platform
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

WORKS, ERROR, SILENT, NOT_RUN = "works", "error", "silently wrong", "not run"
DOTTED, PLAIN = "Imp-v1.5-3B-Phi2", "imp-v1-3b"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TYPED = "<the call>"  # the file name that a traceback shows for the line of a call
LENGTH = object()
PACKAGES = ("torch", "transformers", "huggingface_hub", "tokenizers", "accelerate")

CONFIGURATION = """\
from transformers import PretrainedConfig


class ImpConfig(PretrainedConfig):
    model_type = "imp"
    origin = "{origin}"

    def __init__(self, vocab_size=16, hidden_size=8, rope_theta=10000.0, rope_scaling=None, probe="", **kwargs):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = self.num_attention_heads = 1
        self.max_position_embeddings = 64
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        self.probe = probe
        super().__init__(tie_word_embeddings=False, **kwargs)
"""

# A relative import of a second file, as Imp has: the first, the configuration, is imported already when it is needed.
VISION_ENCODER = """\
from torch import nn


def build_projector(size):
    return nn.Linear(size, size)
"""

# One feature a probe, each written as Imp's own code has it; without a probe nothing is left that could break.
MODELING = """\
import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_imp import ImpConfig
from .vision_encoder import build_projector


class ImpForCausalLM(PreTrainedModel):
    config_class = ImpConfig
    origin = "{origin}"
    _no_split_modules = []
    _supports_cache_class = True
    on_cache, by_name_only = None, False

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        on_meta = nn.Linear(1, 1).weight.is_meta
        if config.probe == "buffer":
            self.register_buffer("frequencies", torch.arange(1.0, 1025.0), persistent=False)
        if config.probe == "projector":
            self.mm_projector = build_projector(config.hidden_size)
            if on_meta:
                from transformers.modeling_utils import _load_state_dict_into_meta_model

                zeros = {{name: torch.zeros_like(p, device="cpu") for name, p in self.mm_projector.named_parameters()}}
                _load_state_dict_into_meta_model(self.mm_projector, zeros, zeros.keys(), "", zeros.keys())
                self.mm_projector.to("cpu")
        if config.probe == "tower":
            place = {{"device_map": "auto"}} if on_meta else {{}}
            self.vision_tower = ImpForCausalLM.from_pretrained("./tower", **place)
        self.post_init()

    def _init_weights(self, module):
        if self.config.probe == "weights" and isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(mean=0.0, std=0.02)

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, attention_mask=None, **kwargs):
        if past_key_values is None and not self.by_name_only:
            past_key_values = kwargs.get("cache")
        past_length = 0
        if past_key_values is not None:
            past_length = past_key_values.get_seq_length()
            if self.on_cache is not None:
                self.on_cache(past_key_values)
        return {{"input_ids": input_ids[:, past_length:], "past_key_values": past_key_values}}

    def forward(self, input_ids=None, past_key_values=None, attention_mask=None, **kwargs):
        cache = DynamicCache() if past_key_values is None else past_key_values
        states = self.embed_tokens(input_ids)[:, None]
        _, values = cache.update(states, states, 0)
        return CausalLMOutputWithPast(logits=self.lm_head(values.mean(2)), past_key_values=cache)


class ImpWithGenerate(ImpForCausalLM, GenerationMixin):
    pass
"""


class LineFailed(Exception):
    """The line of a call raised an error, which is the cause of this one; `what` says in which state."""

    def __init__(self, what: str = ""):
        super().__init__(what)
        self.what = what


class Wrong(Exception):
    """The line of a call raised nothing and its result is not the right one."""


@dataclass(frozen=True)
class Call:
    """One thing to try.

    `line` is what a person types and what is run; `sentence` says what it is about, `label` says it in a few words.
    `run` prepares the line's surroundings, runs it and returns what came; it raises LineFailed or Wrong, and any other
    error says that the line was not reached.
    """

    id: str
    group: str  # "name": how a checkpoint is named; "code": what else Imp's code relies on
    label: str
    line: str
    sentence: str
    run: Callable[[str], str]


def run_line(line: str, **names):
    """The value of an expression, or None for a statement. Raises LineFailed."""
    linecache.cache[TYPED] = (len(line), None, [line + "\n"], TYPED)
    is_statement = not isinstance(ast.parse(line).body[0], ast.Expr)
    try:
        return eval(compile(line, TYPED, "exec" if is_statement else "eval"), names)
    except Exception as error:
        raise LineFailed from error


# ------------------------------------------------------------------------------------------------ the tiny checkpoints


def write_checkpoint(folder: Path, origin: str, code_from: str = "", probe: str = "") -> Path:
    """A complete checkpoint; with `code_from`, a hub id, config.json points there and the folder holds no code."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    if not code_from:
        (folder / "configuration_imp.py").write_text(CONFIGURATION.format(origin=origin), "utf-8")
        (folder / "vision_encoder.py").write_text(VISION_ENCODER, "utf-8")
        (folder / "modeling_imp.py").write_text(MODELING.format(origin=origin), "utf-8")
    place = f"{code_from}--" if code_from else ""
    config = {
        "model_type": "imp",
        "architectures": ["ImpForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{place}configuration_imp.ImpConfig",
            "AutoModelForCausalLM": f"{place}modeling_imp.ImpForCausalLM",
        },
        "probe": probe,
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    shapes = {"embed_tokens.weight": (16, 8), "lm_head.weight": (16, 8), "lm_head.bias": (16,)}
    if probe == "projector":
        shapes |= {"mm_projector.weight": (8, 8), "mm_projector.bias": (8,)}
    if probe == "tower":
        shapes |= {f"vision_tower.{name}": shape for name, shape in shapes.items()}
    values = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=values) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    words = {"<unk>": 0, "red": 1, "bus": 2}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return folder


def write_to_hub_cache(name: str) -> None:
    """The checkpoint MILVLG/`name` as a download leaves it on the disk."""
    repository = Path(os.environ["HF_HOME"]) / "hub" / f"models--MILVLG--{name}"
    write_checkpoint(repository / "snapshots" / COMMIT, f"MILVLG/{name}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


def check_weights(model, folder: Path) -> None:
    """Raises Wrong where a parameter is not what the folder's file says."""
    import torch
    from safetensors.torch import load_file

    loaded = model.state_dict()
    stored = load_file(folder / "model.safetensors")
    wrong = [name for name, tensor in stored.items() if not torch.equal(loaded[name].cpu(), tensor)]
    if wrong:
        raise Wrong(f"{', '.join(wrong)}: not the values of the file")


# --------------------------------------------------------------------------------------- how a checkpoint may be named


def load_by_name(origin: str) -> Callable[[str], str]:
    """Run a line that loads something, with every checkpoint in its place; what comes must be `origin`'s own."""

    def run(line: str) -> str:
        from huggingface_hub import snapshot_download
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        for name in (DOTTED, "my_imp", "A.1", "B.1"):
            write_checkpoint(Path(name), name)
        folder = write_checkpoint(Path("my_copy"), "my_copy", code_from=f"MILVLG/{DOTTED}")
        for name in (DOTTED, PLAIN):
            write_to_hub_cache(name)
        loaded = run_line(
            line,
            AutoConfig=AutoConfig,
            AutoModelForCausalLM=AutoModelForCausalLM,
            AutoTokenizer=AutoTokenizer,
            snapshot_download=snapshot_download,
        )
        kind = type(loaded)
        if "Tokenizer" in kind.__name__:
            if loaded("red bus")["input_ids"] != [1, 2]:
                raise Wrong("other token ids than the file's")
            return kind.__name__
        if kind.origin != origin:
            raise Wrong(f"the class of {kind.origin} came, not that of {origin}")
        if hasattr(loaded, "parameters"):
            check_weights(loaded, folder)  # all of these checkpoints hold the same values
        return kind.__module__

    return run


def name_calls() -> list[Call]:
    """Every way to name a checkpoint, for a configuration and for a model, and what goes with them."""
    dotted, plain, cached = f"MILVLG/{DOTTED}", f"MILVLG/{PLAIN}", f'snapshot_download("MILVLG/{DOTTED}")'
    ways = (  # id, what is typed, its label, whose class must come, in words
        ("folder", f'"./{DOTTED}"', f"./{DOTTED}", DOTTED, "a folder with a dot in its name"),
        ("folder-slash", f'"./{DOTTED}/"', f"./{DOTTED}/", DOTTED, "that folder with a slash at the end"),
        ("hub", f'"{dotted}"', dotted, dotted, "a hub id with a dot in it"),
        ("hub-slash", f'"{dotted}/"', f"{dotted}/", dotted, "a hub id with a slash at the end"),
        ("snapshot", cached, "…/snapshots/<commit>", dotted, "the hub cache's folder, named after the commit"),
        ("plain-folder", '"./my_imp"', "./my_imp", "my_imp", "a folder without a dot in its name"),
        ("plain-hub", f'"{plain}"', plain, plain, "a hub id without a dot"),
        ("mapped", '"./my_copy"', "./my_copy, code on the hub", dotted, f"a folder whose code is that of {dotted}"),
    )
    # A tokenizer has no code of its own: only what the blog typed matters.
    kinds = {"config": ("AutoConfig", ways), "model": ("AutoModelForCausalLM", ways)}
    kinds["tokenizer"] = ("AutoTokenizer", ways[2:4])
    calls = [
        Call(
            f"{noun}-{way}",
            "name",
            f"{noun}  {label}",
            f"{auto}.from_pretrained({typed}, trust_remote_code=True)",
            f"Load the {noun} from {words}.",
            load_by_name(origin),
        )
        for noun, (auto, chosen) in kinds.items()
        for way, typed, label, origin, words in chosen
    ]
    two = Call(
        "model-two-slashes",
        "name",
        "model  ./A.1/, then ./B.1/",
        '[AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True) for folder in ("./A.1/", "./B.1/")][1]',
        "Load two models from folders with a slash at the end; the second must be of its own class.",
        load_by_name("B.1"),
    )
    return [*calls, two]


# --------------------------------------------------------------------------------------- what else Imp's code relies on


def own_code(probe: str = ""):
    """The classes of a checkpoint's code, imported as any package is: its folder's name has no dot."""
    write_checkpoint(Path("my_imp"), "my_imp", probe=probe)
    if probe == "tower":
        write_checkpoint(Path("tower"), "tower")
    sys.path.insert(0, os.getcwd())
    return importlib.import_module("my_imp.configuration_imp").ImpConfig, importlib.import_module("my_imp.modeling_imp")


def on_cache(expected) -> Callable[[str], str]:
    """Run the line on the cache that `generate` hands to the model, at every step.

    Its value must be `expected`, or the number of tokens in the cache where that is LENGTH; any value will do for ....
    """

    def run(line: str) -> str:
        import torch

        ImpConfig, code = own_code()
        torch.manual_seed(0)
        model = code.ImpWithGenerate(ImpConfig()).eval()
        lengths = []

        def look(past_key_values) -> None:
            length = past_key_values.get_seq_length()
            lengths.append(length)
            try:
                got = run_line(line, past_key_values=past_key_values)
            except LineFailed as failure:
                raise LineFailed(f"the cache held {length} tokens") from failure.__cause__
            right = length if expected is LENGTH else expected
            if right is not ... and got != right:
                raise Wrong(f"{got!r}, not {right!r}; the cache held {length} tokens")

        model.on_cache = look
        prompt = torch.tensor([[1, 2, 3]])
        ids = model.generate(prompt, max_new_tokens=4, do_sample=False, attention_mask=torch.ones_like(prompt))
        if not any(lengths):
            raise RuntimeError("generate never handed a filled cache to the model")
        greedy = prompt
        with torch.no_grad():
            for _ in range(4):
                greedy = torch.cat((greedy, model(greedy).logits[:, -1:].argmax(-1)), 1)
        if not torch.equal(ids, greedy):
            raise Wrong("other tokens than without a cache")
        return f"caches of {', '.join(map(str, lengths))} tokens"

    return run


def cache_by_name(line: str) -> str:
    """Run a line that generates; from the second token on the model must be given the cache as past_key_values."""
    import torch

    ImpConfig, code = own_code()
    model = code.ImpWithGenerate(ImpConfig()).eval()
    lengths = []
    model.on_cache, model.by_name_only = lambda cache: lengths.append(cache.get_seq_length()), True
    run_line(line, model=model, input_ids=torch.tensor([[1, 2, 3]]))
    if not any(lengths):
        raise Wrong("no filled cache is given by that name, so each token reads the whole text again")
    return f"caches of {', '.join(map(str, lengths))} tokens"


def generate_directly(line: str) -> str:
    """Run a line that generates with an object of Imp's own class."""
    import torch

    ImpConfig, code = own_code()
    return _shape(run_line(line, model=code.ImpForCausalLM(ImpConfig()).eval(), input_ids=torch.tensor([[1, 2, 3]])))


def generate_by_auto_class(line: str) -> str:
    """Run a line that loads a model by its code and generates."""
    import torch
    from transformers import AutoModelForCausalLM

    write_checkpoint(Path("my_imp"), "my_imp")
    names = {"AutoModelForCausalLM": AutoModelForCausalLM, "input_ids": torch.tensor([[1, 2, 3]])}
    return _shape(run_line(line, **names))


def _shape(ids) -> str:
    if tuple(ids.shape) != (1, 5):
        raise Wrong(f"{tuple(ids.shape)} token ids, not (1, 5)")
    return f"{ids.shape[1]} token ids"


def load_with(probe: str) -> Callable[[str], str]:
    """Run a line that loads a model whose code has the probe's feature; parameters and buffer must be right."""

    def run(line: str) -> str:
        import accelerate  # noqa: F401  (device_map needs it, and its absence is not what is looked for)
        import torch

        code = own_code(probe)[1]
        model = run_line(line, ImpForCausalLM=code.ImpForCausalLM)
        check_weights(model, Path("my_imp"))
        if probe == "buffer" and not torch.equal(model.frequencies.cpu(), torch.arange(1.0, 1025.0)):
            raise Wrong("frequencies: not the values that __init__ computed")
        return f"{len(list(model.parameters())) + len(list(model.buffers()))} tensors, all right"

    return run


def value(expected) -> Callable[[str], str]:
    """Run a line on a configuration or an empty cache; its value must be `expected`."""

    def run(line: str) -> str:
        from transformers import PretrainedConfig
        from transformers.cache_utils import DynamicCache

        config = own_code()[0]()
        got = run_line(line, config=config, PretrainedConfig=PretrainedConfig, DynamicCache=DynamicCache)
        if expected is not ... and got != expected:
            raise Wrong(f"{got!r}, not {expected!r}")
        return type(got).__name__ if expected is ... else repr(got)

    return run


def code_calls() -> list[Call]:
    """A probe for each feature of transformers that Imp's own code uses and that later versions changed."""
    load = 'ImpForCausalLM.from_pretrained("./my_imp", device_map="auto")'
    return [
        Call(
            "cache",
            "code",
            "control: .get_seq_length()",
            "past_key_values.get_seq_length()",
            "The tiny model generates with a cache; a control that must work everywhere.",
            on_cache(LENGTH),
        ),
        Call(
            "cache-name",
            "code",
            "past_key_values= of generate",
            "model.generate(input_ids, max_new_tokens=4)",
            "Generate with code that takes the cache by the name past_key_values, as all did in 2024.",
            cache_by_name,
        ),
        Call(
            "empty-cache",
            "code",
            "past_key_values[0][0]",
            "past_key_values[0][0].shape[2]",
            "While generating, ask the cache for its first layer, though nothing may be in it yet.",
            on_cache(LENGTH),
        ),
        Call(
            "max-length",
            "code",
            ".get_max_length()",
            "past_key_values.get_max_length()",
            "While generating, ask the cache how long it may become.",
            on_cache(None),
        ),
        Call(
            "seen-tokens",
            "code",
            ".seen_tokens",
            "past_key_values.seen_tokens",
            "While generating, ask the cache how many tokens it has seen.",
            on_cache(LENGTH),
        ),
        Call(
            "usable-length",
            "code",
            ".get_usable_length(1)",
            "past_key_values.get_usable_length(1)",
            "While generating, ask the cache how much of it can be used.",
            on_cache(LENGTH),
        ),
        Call(
            "to-legacy",
            "code",
            ".to_legacy_cache()",
            "past_key_values.to_legacy_cache()",
            "While generating, turn the cache into the tuples of earlier versions.",
            on_cache(...),
        ),
        Call(
            "from-legacy",
            "code",
            "DynamicCache.from_legacy_cache",
            "DynamicCache.from_legacy_cache(None)",
            "Make a cache from the tuples of earlier versions.",
            value(...),
        ),
        Call(
            "meta-projector",
            "code",
            "_load_state_dict_into_meta_model",
            load,
            "Load a model whose __init__ fills its projector by a private function of transformers.",
            load_with("projector"),
        ),
        Call(
            "nested-load",
            "code",
            "from_pretrained in __init__",
            load,
            "Load a model whose __init__ loads the vision tower from another checkpoint.",
            load_with("tower"),
        ),
        Call(
            "generate",
            "code",
            "generate, own class",
            "model.generate(input_ids, max_new_tokens=2)",
            "Generate with a class that gets generate from PreTrainedModel alone.",
            generate_directly,
        ),
        Call(
            "generate-auto",
            "code",
            "generate, AutoModelForCausalLM",
            'AutoModelForCausalLM.from_pretrained("./my_imp", trust_remote_code=True)'
            ".generate(input_ids, max_new_tokens=2)",
            "Generate with the same class, loaded by AutoModelForCausalLM.",
            generate_by_auto_class,
        ),
        Call(
            "torch-fx",
            "code",
            "import is_torch_fx_available",
            "from transformers.utils.import_utils import is_torch_fx_available",
            "Import a helper that modeling files of 2024 often import.",
            value(None),
        ),
        Call(
            "token-in-kwargs",
            "code",
            "_set_token_in_kwargs",
            "PretrainedConfig._set_token_in_kwargs({})",
            "Call a private helper of configurations, as the vision tower's configuration does.",
            value(None),
        ),
        Call(
            "pad-token",
            "code",
            "config.pad_token_id by default",
            "config.pad_token_id",
            "Read pad_token_id from a configuration that does not set it.",
            value(None),
        ),
        Call(
            "rope-scaling",
            "code",
            'config.rope_scaling["type"]',
            'None if config.rope_scaling is None else config.rope_scaling["type"]',
            "Read how positions are scaled from a configuration that sets no scaling, as Imp's Phi-3 does.",
            value(None),
        ),
        Call(
            "weights",
            "code",
            "weights after loading",
            'ImpForCausalLM.from_pretrained("./my_imp")',
            "Load a model whose _init_weights fills layers with noise; the file's values must stay.",
            load_with("weights"),
        ),
        Call(
            "buffer",
            "code",
            "buffers after loading",
            'ImpForCausalLM.from_pretrained("./my_imp")',
            "Load a model with a buffer that its file does not hold, as rotary frequencies are; it must be filled.",
            load_with("buffer"),
        ),
    ]


CALLS = {call.id: call for call in (*name_calls(), *code_calls())}


# --------------------------------------------------------------------------------------------------------- one attempt


def asked_for(error: BaseException) -> str:
    """The dotted name of the module that was being imported when one was not found; empty for any other error."""
    name = ""
    if not isinstance(error, ModuleNotFoundError):
        return name
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "import_module" and "name" in frame.f_locals:
            name = frame.f_locals["name"]
        elif str(frame.f_globals.get("__name__")).startswith("transformers_modules."):
            name = frame.f_globals["__name__"]
    return name


def attempt(call: Call) -> dict[str, str]:
    """Try a call: outcome, error, what came or was asked for, and the traceback."""
    told = {"outcome": WORKS, "error_type": "", "message": "", "what": "", "traceback": ""}
    try:
        told["what"] = call.run(call.line)
        return told
    except Wrong as wrong:
        return told | {"outcome": SILENT, "what": str(wrong)}
    except LineFailed as failure:
        outcome, error, what = ERROR, failure.__cause__, failure.what
        if name := asked_for(error):
            what = f"asked for {name}"
        error.__traceback__ = error.__traceback__.tb_next  # from the line on
    except Exception as unexpected:
        outcome, error, what = NOT_RUN, unexpected, ""
    return {
        "outcome": outcome,
        "error_type": type(error).__name__,
        "message": str(error),
        "what": what,
        "traceback": "".join(traceback.format_exception(error)),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that could matter; empty for one that is not there."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = ""
    return found


def main(call_id: str, result: str) -> None:
    # No call needs them, and where torchvision was built for another torch they break every import of a model.
    sys.modules["torchvision"] = sys.modules["timm"] = None
    told = attempt(CALLS[call_id]) | {"versions": versions()}
    Path(result).write_text(json.dumps(told), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
