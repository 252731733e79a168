"""A hub cache that holds a tiny Imp with code of its own, as the hub holds Imp's."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
from oracle import DECODER, SPECIAL, Oracle, write_checkpoint

from imp_kit.errors import SettingError
from imp_kit.tools.official import check_version

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_ID = "MILVLG/imp-v1-3b"
MODULES = ("configuration_imp", "modeling_imp")
CLASSES = {"AutoConfig": "configuration_imp.ImpConfig", "AutoModelForCausalLM": "modeling_imp.ImpForCausalLM"}

INSTALLED = version("transformers")
try:
    check_version(INSTALLED)
    REFUSED = False
except SettingError:
    REFUSED = True
# For what needs the code to run: with another transformers only the refusals can be tested.
route = pytest.mark.skipif(REFUSED, reason=f"the route is not right with transformers {INSTALLED}")


def put(cache: Path, hub_id: str = HUB_ID, commit: str = COMMIT, owner: str = "", head: str = "", **changes) -> Path:
    """Write a checkpoint with random weights and its code into a hub cache; return the snapshot's folder.

    `owner`, such as "MILVLG/imp-v1-3b--", stands before each class in auto_map; `head` stands before the code of each
    module; `changes` replace values of config.json. The weights are the same each time.
    """
    repo = cache / f"models--{hub_id.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True, exist_ok=True)
    (repo / "refs" / "main").write_text(commit)
    folder = repo / "snapshots" / commit
    # Longer than the oracle's other tests need: a question in letters is nearly as many tokens.
    oracle = Oracle(decoder={**DECODER, "max_position_embeddings": 1024})
    oracle.randomise(0)
    values = {
        "auto_map": {name: owner + reference for name, reference in CLASSES.items()},
        "eos_token_id": [SPECIAL["<|endoftext|>"], SPECIAL["</s>"]],
        "image_token_index": SPECIAL["<image>"],
    }
    write_checkpoint(oracle, folder, "new", **{**values, **changes})
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    for module in MODULES:
        source = (Path(__file__).parent / f"{module}.py").read_text("utf-8")
        (folder / f"{module}.py").write_text(head + source, "utf-8")
    return folder
