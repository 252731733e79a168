"""Every checkpoint of the family loads under whatever name a user gives it, and answers alike."""

from pathlib import Path

import pytest
import torch
from oracle import CONTROL, make_oracle, write_checkpoint

import imp_kit
from imp_kit.checkpoints import HUB_IDS

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
BUS = Path(__file__).parent.parent / "images" / "bus.png"
QUESTION = "What are the colors of the bus in the image?"
CHECKPOINTS = [  # short name, family, layout of the tensors' names
    ("imp-v1-3b", "imp", "old"),
    ("imp-v1.5-3b-phi2", "imp", "old"),
    ("imp-v1.5-3b-phi2", "imp", "new"),  # which of the two it has is not known
    ("imp-v1.5-3b-196", "imp", "old"),
    ("imp-v1.5-2b-qwen1.5", "imp_qwen2", "qwen"),
    ("imp-v1.5-4b-phi3", "imp_phi3", "phi3"),
]


@pytest.fixture(scope="module")
def oracles():
    return {family: make_oracle(seed=7, family=family) for family in CONTROL}


@pytest.fixture(params=CHECKPOINTS, ids=lambda checkpoint: f"{checkpoint[0]}-{checkpoint[2]}")
def cached(request, oracles, tmp_path, monkeypatch):
    """A tiny model of the family in a hub cache under its published name, offline. Returns short name and snapshot."""
    from huggingface_hub import constants

    name, family, layout = request.param
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / f"models--{HUB_IDS[name].replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    snapshot = write_checkpoint(oracles[family], repo / "snapshots" / COMMIT, layout)
    return name, snapshot


def answer(checkpoint):
    return imp_kit.load(checkpoint, device="cpu", dtype="fp32").ask(BUS, QUESTION, max_new_tokens=24)


def test_the_names_cover_the_family():
    assert {name for name, *_ in CHECKPOINTS} == HUB_IDS.keys()
    assert {family for _, family, _ in CHECKPOINTS} == CONTROL.keys()


def test_all_names_of_a_checkpoint_answer_alike(cached, tmp_path, monkeypatch):
    name, snapshot = cached
    hub_id = HUB_IDS[name]
    dotted = tmp_path / "elsewhere" / hub_id  # a folder called as the repository, dots and all
    dotted.parent.mkdir(parents=True)
    dotted.symlink_to(snapshot)
    known = [name, hub_id, f"{hub_id}/", hub_id.lower(), f"{name}/", snapshot, f"{snapshot}/"]
    answers = [answer(form) for form in [*known, dotted, f"{dotted}/"]]
    monkeypatch.chdir(dotted.parent)
    answers += [answer(form) for form in (dotted.name, f"{dotted.name}/")]
    ids = answers[0].token_ids
    assert len(set(ids)) > 3, "an answer of one token over and over would tell little"
    assert [reply.token_ids for reply in answers] == [ids] * len(answers)
    assert {reply.prompt for reply in answers} == {answers[0].prompt}
    for form, reply in zip(known, answers, strict=False):
        assert (reply.checkpoint, reply.revision) == (hub_id, COMMIT), form


def test_the_answer_is_the_oracles(cached, oracles):
    """Not merely alike: the tokens are those of transformers' own classes for the same prompt."""
    name, _ = cached
    imp = imp_kit.load(name, device="cpu", dtype="fp32")
    oracle = oracles[imp.model.config.family]
    reply = imp.ask(BUS, QUESTION, max_new_tokens=24)
    before, after = reply.prompt.split("<image>")
    marks = CONTROL[imp.model.config.family]
    pixels = imp_kit.images.to_pixels(imp_kit.images.open_image(BUS), oracle.tower["image_size"], pad=False)
    with torch.inference_mode():
        prompt = oracle.embed(tokenize(imp, before, marks), pixels, tokenize(imp, after, marks))
    greedy = oracle.greedy(prompt, 24)
    ends = [place for place, id in enumerate(greedy) if id in imp.stop_ids]
    assert list(reply.token_ids) == greedy[: ends[0] if ends else None]


def tokenize(imp, text, marks):
    """Ids of a prompt whose control tokens stand in it as text, by the tokenizers library's own rules."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(imp.snapshot.folder / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert set(ids) & set(marks.values()) or not any(mark in text for mark in marks)
    return ids
