"""What notebook 02 shows: calls tried live or looked up in the table, and a checkpoint whose code must not run."""

import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

from imp_kit.checkpoints.hub import NANO_FOLDER
from imp_kit.errors import ImpKitError
from imp_kit.experiments.transformers_matrix.measure import (
    RUNS,
    VERSIONS,
    Row,
    environment,
    own_version,
    read_table,
    run_call,
)

CODE = 'raise SystemExit("This code was run.")\n'


def recorded(version: str, call: str) -> Row:
    """What the kit's table says of a call, an id of CALLS, in a version of transformers. Raises ImpKitError."""
    row = next((row for row in read_table() if (row.version, row.call) == (version, call)), None)
    if row is None:
        raise ImpKitError(f"The table has no call {call!r} in {version}. Its versions are {', '.join(VERSIONS)}.")
    return row


def attempts(version: str, folder: str | os.PathLike = RUNS) -> Callable[[str], Row]:
    """A function that tries a call, an id of CALLS, in a version of transformers; it tries each call once.

    A version that is not installed is put under `folder`, see `environment`; where pip cannot fetch it, the function
    gives what the kit's table has recorded. A line is printed in both cases. Raises ImpKitError for what is no version.
    """
    if version != own_version():
        print(f"transformers {version} is put into the folder {folder}, once; no installed package is replaced.")
    try:
        version_env = environment(version, folder)
    except ImpKitError as error:
        if version not in VERSIONS:
            raise
        print(f"{error}\nUntil then you see what was recorded.")
        return lambda call: recorded(version, call)
    return cache(lambda call: run_call(call, version_env))


def copy_with_code(folder: str | os.PathLike) -> Path:
    """Copy imp-nano to `folder` and add code, named in its config.json as Imp's is, that ends the program if it runs.

    A copy that is there is replaced. Raises OSError.
    """
    folder = Path(shutil.copytree(NANO_FOLDER, folder, dirs_exist_ok=True))
    (folder / "modeling_imp.py").write_text(CODE, "utf-8")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_imp.ImpForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder
