"""The first minute of verify-real, against a hub of our own that serves all five repositories in full size.

Their weights are headers alone: nothing behind them is asked for. The tokenizers have the published ids and sizes, but
words of their own.
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path

import pytest
from loopback_hub import serve
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from imp_kit.checkpoints.published import published_tensors
from imp_kit.checkpoints.registry import PUBLISHED

ROOT = Path(__file__).parents[1]
INDEX = "model.safetensors.index.json"
FIRST_ADDED = {"imp": 50257, "imp_qwen2": 151643, "imp_phi3": 32000}


def letters(family: str) -> dict[str, int]:
    """A vocabulary as long as the published one: every byte, and words that no text has."""
    start = ["<unk>", "<s>", "</s>"] if family == "imp_phi3" else []
    alphabet = ["▁", "a"] if family == "imp_phi3" else sorted(pre_tokenizers.ByteLevel.alphabet())
    last = ["<|endoftext|>"] if family == "imp" else []
    count = FIRST_ADDED[family] - len(start) - len(alphabet) - len(last)
    if family == "imp_phi3":
        words = [f"#{n}" for n in range(count)]
    else:
        words = ["".join(pair) for pair in islice(merges(alphabet), count)]
    return {token: id for id, token in enumerate([*start, *alphabet, *words, *last])}


def merges(alphabet: list[str]) -> Iterator[tuple[str, str]]:
    """Each word of two letters, then of three."""
    yield from product(alphabet, alphabet)
    yield from ((first + second, third) for first, second, third in product(alphabet, repeat=3))


def tokenizer_json(family: str, added: dict[str, int]) -> bytes:
    tokenizer = Tokenizer(models.BPE(letters(family), [], unk_token="<unk>" if family == "imp_phi3" else None))
    if family == "imp_phi3":
        tokenizer.normalizer = normalizers.Prepend("▁")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    for token in sorted(added, key=added.get):
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=not token.isspace())])
    return tokenizer.to_str().encode()


def dump(value) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def header(tensors: dict, dtype: str) -> bytes:
    """The beginning of a safetensors file: what its tensors are called, and where they would be."""
    places, end = {}, 0
    for key, shape in tensors.items():
        size = 2
        for side in shape:
            size *= side
        places[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end := end + size]}
    text = json.dumps(places).encode()
    return len(text).to_bytes(8, "little") + text


def write_weights(files: dict, tensors: dict, name: str) -> None:
    shards = [file for file in PUBLISHED[name].files if file.endswith(".safetensors")]
    keys = sorted(tensors)
    places = {key: shards[number * len(shards) // len(keys)] for number, key in enumerate(keys)}
    for shard in shards:
        part = {key: tensors[key] for key in keys if places[key] == shard}
        files[shard] = header(part, PUBLISHED[name].dtype)
    total = 2 * sum(math.prod(shape) for shape in tensors.values())
    files[INDEX] = dump({"metadata": {"total_size": total}, "weight_map": places})


def repository(name: str) -> dict[str, bytes]:
    """All files of a repository as the registry has them."""
    entry = PUBLISHED[name]
    family = entry.config["model_type"]
    files = {file: dump(content) for file, content in entry.contents.items()}
    added = entry.contents["added_tokens.json"]
    kind = {"imp": "CodeGenTokenizer", "imp_qwen2": "Qwen2Tokenizer", "imp_phi3": "LlamaTokenizer"}[family]
    files["tokenizer_config.json"] = dump(
        {"tokenizer_class": kind, "bos_token": "<s>" if family == "imp_phi3" else None}
    )
    files.setdefault("special_tokens_map.json", dump({"eos_token": "</s>"}))
    words = letters(family)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = [f"{left} {right}" for left, right in islice(merges(alphabet), len(words)) if left + right in words]
    lines = "\n".join(["#version: 0.2", *made, ""])
    files |= {"vocab.json": dump(words), "merges.txt": lines.encode(), "README.md": b"# Imp"}
    if "tokenizer.json" in entry.files:
        files["tokenizer.json"] = tokenizer_json(family, added)
    if family == "imp_phi3":
        files["tokenizer.model"] = b"not needed"
    write_weights(files, published_tensors(name), name)
    files |= {"modeling_imp.py": b"raise SystemExit('code of the hub ran')"}
    return files


def told_size(name: str, file: str, data: bytes) -> int:
    """The published size of what is not known byte for byte, since words of our own have other lengths."""
    known, content = PUBLISHED[name].files.get(file), PUBLISHED[name].contents.get(file)
    if known is None or file == INDEX or (content and len(dump(content)) == known):
        return len(data)
    return int(known)


@pytest.fixture(scope="module")
def repositories():
    return {entry.hub_id: repository(name) for name, entry in PUBLISHED.items()}


def first_minute(repositories: dict, out: Path, *arguments: str):
    """Run the script against a hub of these repositories; its output, its JSON, and what was asked and sent."""
    with serve(repositories, out / "cache") as (server, environment):
        for name, entry in PUBLISHED.items():
            server.commits[entry.hub_id] = entry.commit.ljust(40, "0")
            for file, data in repositories.get(entry.hub_id, {}).items():
                server.sizes[entry.hub_id, file] = told_size(name, file, data)
        command = [sys.executable, str(ROOT / "tests" / "tools" / "verify_real.py"), "--out", str(out), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
    (message,) = out.glob("*-files.json") if list(out.glob("*-files.json")) else (None,)
    assert done.returncode == 2
    assert "--trust-remote-code" in done.stderr
    return done.stdout, message and json.loads(message.read_text("utf-8")), server


def rows(output: str) -> list[list[str]]:
    lines = [line for line in output.splitlines() if line.startswith("| imp-")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.slow
def test_nothing_differs_where_all_is_as_published(repositories, tmp_path):
    output, message, server = first_minute(repositories, tmp_path)
    assert {row[0]: row[1] for row in rows(output)} == dict.fromkeys(PUBLISHED, "nothing differs"), output
    facts = {look["name"]: look["facts"] for look in message["checkpoints"]}
    assert facts["imp-v1.5-4b-phi3"]["around a prompt"] == "[1] before, [] behind"
    assert facts["imp-v1.5-4b-phi3"]["picture"] == "729 tokens, pad"
    assert facts["imp-v1.5-3b-196"]["picture"] == "196 tokens, square"
    assert facts["imp-v1.5-2b-qwen1.5"]["tokenizer"] == "vocab.json"
    assert "</s> 50295" in facts["imp-v1-3b"]["control tokens"]
    assert not [path for path in server.asked if path.endswith(".py")]
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


SURPRISES = {  # repository -> how it is spoilt, and what the table must name
    "imp-v1-3b": (
        lambda files: files.update({"config.json": files["config.json"].replace(b"gelu_new", b"relu")}),
        ["config.json: activation_function", "config.json: hidden_act", "config.json, bytes", "loading"],
    ),
    "imp-v1.5-3b-phi2": (
        lambda files: files.update(
            {"tokenizer.json": tokenizer_json("imp", PUBLISHED["imp-v1-3b"].contents["added_tokens.json"])}
        ),
        ["tokenizer.json"],
    ),
    "imp-v1.5-2b-qwen1.5": (
        lambda files: write_weights(
            files,
            published_tensors("imp-v1.5-2b-qwen1.5")
            | {"model.vision_tower.vision_tower.vision_model.post_layernorm.weight": (1152,)},
            "imp-v1.5-2b-qwen1.5",
        ),
        ["1 tensors, the first model.vision_tower.vision_tower.vision_model.post_layernorm.weight", f"{INDEX}, bytes"],
    ),
    "imp-v1.5-4b-phi3": (
        lambda files: files.update(
            {"generation_config.json": files["generation_config.json"].replace(b"32007", b"32010")}
        ),
        ["generation_config.json: eos_token_id"],
    ),
    "imp-v1.5-3b-196": (lambda files: files.pop("added_tokens.json"), ["added_tokens.json"]),
}


@pytest.mark.slow
def test_one_surprise_in_each_repository_is_named(repositories, tmp_path):
    spoilt = {hub_id: dict(files) for hub_id, files in repositories.items()}
    for name, (spoil, _) in SURPRISES.items():
        spoil(spoilt[PUBLISHED[name].hub_id])
    output, message, _ = first_minute(spoilt, tmp_path)
    for name, (_, expected) in SURPRISES.items():
        assert sorted(row[1] for row in rows(output) if row[0] == name) == sorted(expected), output
        (look,) = [look for look in message["checkpoints"] if look["name"] == name]
        assert sorted(what for what, *_ in look["differences"]) == sorted(expected)


@pytest.mark.slow
def test_a_repository_that_is_gone_costs_only_itself(repositories, tmp_path):
    left = {hub_id: files for hub_id, files in repositories.items() if not hub_id.endswith("196")}
    output, _, _ = first_minute(left, tmp_path, "imp-v1-3b", "imp-v1.5-3b-196")
    assert [row[0] for row in rows(output)] == ["imp-v1-3b", "imp-v1.5-3b-196"]
    assert rows(output)[0][1] == "nothing differs"
    assert "not read: " in rows(output)[1][3]
