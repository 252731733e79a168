"""The answers of a run with their scores as a pandas DataFrame: a row for each sample."""

import os
from collections.abc import Sequence
from dataclasses import MISSING, fields
from importlib import resources
from typing import TYPE_CHECKING

from imp_kit.errors import RunError
from imp_kit.experiments.captcha import probe as captcha
from imp_kit.experiments.documents import probe as documents
from imp_kit.experiments.japanese import probe as japanese
from imp_kit.experiments.pope import probe as pope
from imp_kit.experiments.runs import read, read_head
from imp_kit.system.extras import require

if TYPE_CHECKING:
    from pandas import DataFrame

PROBES = {probe.NAME: probe for probe in (captcha, japanese, documents, pope)}
# Facts that the kit's scores need, for each experiment.
TRUTH = {
    captcha.NAME: {"code", "caption", "glyph"},
    japanese.NAME: set(),
    documents.NAME: {"rule", "answer"},
    pope.NAME: {"kind"},
}
# What an answered record holds in every experiment.
KINDS = {"factors": dict, "truth": dict, "seed": int, "question": str, "answer": str}
# Columns of every experiment. Text is kept as Python's strings: pyarrow cannot hold half a character.
COLUMNS = {
    "experiment": "string[python]",
    "checkpoint": "string[python]",
    "revision": "string[python]",
    "size": "string[python]",
    "run_seed": "Int64",
    "sample_id": "string[python]",
    "seed": "int64",
    "question": "string[python]",
    "answer": "string[python]",
    "status": "string[python]",
    "finish": "string[python]",
    "tokens": "Int64",
    "seconds": "Float64",
}


def samples_frame(run: str | os.PathLike) -> "DataFrame":
    """The answered samples of a run's folder, a row each, in the order of the run's cases.

    Scores are made anew from the answers. Failed samples have no row. What is unknown, or makes no sense for a sample,
    is missing (pandas.NA).

    Columns of every experiment, and their dtypes:

    - experiment, checkpoint, revision, size (string), run_seed (Int64): the run's, from run.json. `revision` is missing
      for a local checkpoint.
    - sample_id (string), seed (int64): the sample's.
    - question, answer, status (string); `status` is "ok".
    - finish (string): "stop", "length" where the limit of tokens ended the answer, or "refusal" where the model behind
      an endpoint, or a filter there, declined to answer.
    - tokens (Int64), seconds (Float64): of the answer.
    - expected (string): the right answer; where several are accepted, they stand between " | ".

    Of the reading probe, "captcha":

    - level (int64), caption_kind, question_kind, changed (string), value (object: a text or a number): the condition.
      codes (string): "ladder", or "captions" for the codes on which captions are compared.
    - glyph_width, glyph_height (float64): of a character, as fractions of the image's width and height.
    - caption (string): the caption below the code. expected_characters (Int64): letters and digits of the code.
    - extracted (string): what the answer says is written.
    - exact, strict, contained (boolean): the extracted text is the code; the whole answer is; the code is in it.
    - errors (Int64): edits from the code to the extracted text, whose sum over that of expected_characters is the CER.
      edit_share (Float64, 0 to 1): edits over the longer text. position (Float64, 0 to 1): characters in position.
    - outcome (string): "code", "both", "caption only" or "neither". invented (bool): the answer gives some text.

    Of "japanese":

    - part, skill, language (string), picture (bool): the condition. shown (string): what the question is about;
      questions with the same value share an image.
    - answer_kind (string): the closed set that the right answer is from, or "written" or "accepted".
    - references (string): good answers to compare with, with " | " between them.
    - right, both (boolean): right in any language; right and in Japanese. japanese (bool): in Japanese.
    - bridged (string): the answer to an English question, in Japanese by dictionary.
    - repetition (float64, 0 to 1). characters, replaced_inside, replaced_at_end (int64): of the answer, and its U+FFFD.

    Of "documents":

    - kind, skill (string): of document and of question. control (string): "none", "no image" or "other image".
    - rule (string): by which the answer is scored. truth (string): as JSON, all that the rule needs.
    - extracted (string): what the answer gives. right (bool), score (float64, 0 to 1): what that is worth.
    - refused (bool): the answer gives nothing and says so.

    Of "pope":

    - sampling (string): how absent things are chosen; empty for a control. control (string): "none", "gray image" or
      "no image". kind (string): the thing that is asked for. present (bool): it is there.
    - extracted (string): "yes", "no" or neither. right, yes (bool).

    Raises RunError for a folder that holds no run, a run of an experiment without scores, a record that lacks what this
    version reads, or a run without an answer; SettingError where pandas or a score's package is missing.
    """
    require("measure", "pandas", what="A table of samples")
    head = read_head(run)
    return frame_of(complete(read(run), run, head["experiment"]), head, run)


def _unexpected(run: str | os.PathLike, what: object) -> RunError:
    return RunError(f"{run} holds a value of an unexpected type ({what}). Run the probe anew in a new folder.")


def published_frame(experiment: str) -> "DataFrame":
    """What others published about the question of an experiment, with its sources: text, as it stands there."""
    require("measure", "pandas", what="A table of published results")
    import pandas

    with resources.files(f"imp_kit.experiments.{experiment}").joinpath("published.csv").open(encoding="utf-8") as file:
        return pandas.read_csv(file, dtype="string[python]").fillna("")


def complete(records: list[dict], run: str | os.PathLike, experiment: str) -> list[dict]:
    """The records, once each answered one is known to hold what scores need. Raises RunError."""
    if experiment not in PROBES:
        raise RunError(f"{run} holds a run of {experiment!r}; the kit has scores of {', '.join(PROBES)}.")
    factors = {field.name: field.default is MISSING for field in fields(PROBES[experiment].Cell)}
    answered = [record for record in records if record["status"] == "ok"]
    for record in answered:
        lacking = KINDS.keys() - record.keys()
        if not lacking:
            wrong = [name for name, kind in KINDS.items() if not isinstance(record[name], kind)]
            if wrong:
                raise _unexpected(run, f"the {' and the '.join(wrong)} of {record['sample_id']!r}")
            lacking = {name for name, needed in factors.items() if needed and name not in record["factors"]}
            lacking |= (TRUTH[experiment] - record["truth"].keys()) | (record["factors"].keys() - factors)
        if lacking:
            raise RunError(
                f"{run}: the record of {record['sample_id']!r} has not what this version of the kit reads "
                f"({', '.join(sorted(lacking))}); make the report with the version that made the run, or run it anew."
            )
    if not answered:
        raise RunError(f"{run} holds no answered sample; run the probe again first.")
    return records


def frame_of(records: Sequence[dict], head: dict, run: str | os.PathLike = "The run") -> "DataFrame":
    """The same for records that were read already, from the folder `run`.

    `head` is what run.json holds; it names the experiment at least. Raises RunError for a value that makes no sense.
    """
    require("measure", "pandas", what="A table of samples")
    import pandas

    probe = PROBES[head["experiment"]]
    dtypes = COLUMNS | probe.COLUMNS
    shared = {name: head.get(name) for name in ("experiment", "checkpoint", "revision", "size")}
    shared["run_seed"] = head.get("seed")
    answered = [record for record in records if record["status"] == "ok"]
    try:
        rows = [
            shared | {name: record.get(name) for name in COLUMNS.keys() - shared.keys()} | probe.row(sample)
            for record, sample in zip(answered, probe.samples(answered), strict=True)
        ]
        return pandas.DataFrame(rows, columns=list(dtypes)).astype(dtypes)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise _unexpected(run, f"{type(error).__name__}: {error}") from error
