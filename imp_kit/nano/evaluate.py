"""Measures a checkpoint on drawings that training never saw, and writes the card of imp-nano.

python -m imp_kit.nano evaluate --seed 1 --samples 1000 --json imp_kit/nano/checkpoint/evaluation.json
"""

import json
import platform
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from imp_kit import __version__
from imp_kit.assistant import Imp
from imp_kit.errors import SettingError
from imp_kit.images import to_pixels
from imp_kit.model.generate import generate
from imp_kit.nano.draw import draw, sample_scene
from imp_kit.nano.lessons import SKILLS, Turn, question, score
from imp_kit.sampling import Sampling

EVALUATION = 3  # stream of random numbers; train.py has its own, so no drawing here was ever trained on
WORDINGS = ("trained", "unseen")
BATCH = 32
LONGEST = 80  # tokens of an answer; the longest true one has about 60


def exam(skill: str, wording: str, seed: int, samples: int) -> Iterator[tuple[Image.Image, list[Turn]]]:
    """Drawings with a conversation whose last turn tests `skill`; scenes without such a question are passed over."""
    index = 0
    while samples:
        rng = np.random.default_rng([EVALUATION, seed, SKILLS.index(skill), WORDINGS.index(wording), index])
        scene = sample_scene(rng)
        turns = question(scene, skill, rng, wording)
        index += 1
        if turns:
            samples -= 1
            yield draw(scene, rng), turns


@torch.inference_mode()
def answer_batch(imp: Imp, pictures: list[Image.Image], conversations: list[list[Turn]]) -> list[str]:
    """The checkpoint's own last answers in conversations of equal length; earlier answers are its own, too."""
    model, config = imp.model, imp.model.config
    pixels = torch.stack([to_pixels(picture, config.vision.image_size, config.pad) for picture in pictures])
    features = model.encode(pixels)
    opening = imp.tokenizer.encode_pieces(imp.template.open())
    histories: list[list[int]] = [[] for _ in pictures]
    for turn in range(len(conversations[0])):
        for history, turns in zip(histories, conversations, strict=True):
            history += imp.tokenizer.encode_pieces(imp.template.ask(turns[turn].question, first=turn == 0))
        rows = [model.splice([opening, features[i], ids])[0] for i, ids in enumerate(histories)]
        pads = torch.tensor([max(map(len, rows)) - len(row) for row in rows], device=model.device)
        embeddings = pad_sequence(rows, batch_first=True, padding_side="left")
        cache = model.new_cache(embeddings.shape[1] + LONGEST, len(rows))
        answers: list[list[int]] = [[] for _ in pictures]
        for step in generate(model, embeddings, cache, Sampling(LONGEST), imp.stop_ids, pads):
            for answer, token in zip(answers, step, strict=True):
                if token is not None and token not in imp.stop_ids:
                    answer.append(token)
        for history, answer in zip(histories, answers, strict=True):
            history += answer
    return [imp.tokenizer.decode(answer).strip() for answer in answers]


def evaluate(imp: Imp, seed: int, samples: int) -> dict:
    """Score every skill on `samples` drawings in trained and in unseen wordings.

    Returns a dictionary fit for JSON: per skill and wording the number right, the share and its Wilson interval
    (95 %, scipy), and the first mistakes in full. Raises SettingError.
    """
    if seed < 0 or samples < 1:
        raise SettingError(f"seed is {seed} and samples {samples}; give a seed from 0 and at least one sample.")
    from scipy.stats import binomtest

    skills: dict[str, dict] = {}
    with tqdm(total=len(SKILLS) * len(WORDINGS) * samples, unit="answer") as bar:
        for skill in SKILLS:
            skills[skill] = {}
            for wording in WORDINGS:
                cases = list(exam(skill, wording, seed, samples))
                replies: list[str] = []
                for start in range(0, len(cases), BATCH):
                    pictures, turns = zip(*cases[start : start + BATCH], strict=True)
                    replies += answer_batch(imp, list(pictures), list(turns))
                    bar.update(len(pictures))
                truths = [turns[-1] for _, turns in cases]
                right = [score(reply, turn.answer) for reply, turn in zip(replies, truths, strict=True)]
                interval = binomtest(sum(right), samples).proportion_ci(method="wilson")
                skills[skill][wording] = {
                    "right": sum(right),
                    "samples": samples,
                    "share": sum(right) / samples,
                    "wilson_95": [interval.low, interval.high],
                    "mistakes": [
                        {"question": turn.question, "truth": turn.answer, "answer": reply}
                        for turn, reply, good in zip(truths, replies, right, strict=True)
                        if not good
                    ][:10],
                }
    return {
        "checkpoint": imp.name,
        "dtype": imp.dtype,
        "device": str(imp.model.device),
        "seed": seed,
        "date": date.today().isoformat(),
        "versions": {"imp-kit": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "skills": skills,
    }


def table(figures: dict) -> str:
    """The scores as Markdown: share of exactly right answers with its interval."""
    lines = ["| skill | trained wordings | unseen wordings |", "| --- | --- | --- |"]
    for skill, by_wording in figures["skills"].items():
        cells = (
            f"{entry['share']:.1%} ({entry['wilson_95'][0]:.1%} – {entry['wilson_95'][1]:.1%})"
            for entry in (by_wording[wording] for wording in WORDINGS)
        )
        lines.append(f"| {skill.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def check_target(file: Path) -> None:
    """Raise SettingError where the card would replace a README.md that is no card; asked before the work, not after."""
    card = file.with_name("README.md")
    if card.exists() and not card.read_text("utf-8").startswith("# imp-nano"):
        raise SettingError(f"{card} is no card of imp-nano and would be replaced; choose another folder for --json.")


def write(figures: dict, file: Path) -> None:
    """Write the figures as JSON, and beside them README.md: the text of CARD.md with their table filled in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    card = (Path(__file__).parent / "CARD.md").read_text("utf-8")
    samples = figures["skills"][SKILLS[0]][WORDINGS[0]]["samples"]
    card = card.replace("{table}", table(figures)).replace("{seed}", str(figures["seed"]))
    card = card.replace("{samples}", f"{samples}").replace("{date}", figures["date"])
    file.with_name("README.md").write_text(card, "utf-8")
