"""imp-nano by llama.cpp, type by type, beside the kit in fp32: python tests/tools/llama_cpp_skills.py --samples 25

The last questions of imp-nano's exam, each skill in trained and unseen wordings. Prints, as Markdown, how many answers
are right with their Wilson intervals (95 %), how many have the kit's tokens, and where the first others differ.
"""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm.auto import tqdm

import imp_kit
from imp_kit.answers import Answer
from imp_kit.engine import Conversation
from imp_kit.experiments.stats import wilson
from imp_kit.imp import Imp
from imp_kit.llama_cpp.export import TYPES, export_gguf
from imp_kit.model.sampling import Sampling
from imp_kit.nano.training.evaluation import LONGEST_ANSWER, WORDINGS, Case, exam, mark
from imp_kit.nano.training.lessons import SKILLS

SHOWN = 8  # answers with other tokens


def cases(samples: int, seed: int) -> Iterator[tuple[str, Case]]:
    """Each skill's questions, with its name."""
    for skill in SKILLS:
        for wording in WORDINGS:
            for case in exam(skill, wording, seed, samples):
                yield skill, case


def last_answer(imp: Imp, case: Case) -> Answer:
    """The answer to a case's last question, after those to the others."""
    conversation = Conversation(imp.engine, case.image)
    for turn in case.turns:
        imp.engine.answer([conversation.ask(turn.question)], Sampling(LONGEST_ANSWER), [0])
    return conversation.answers[-1]


def first_difference(kit: Answer, other: Answer) -> int:
    """The number of tokens that two answers share at their beginnings."""
    pairs = enumerate(zip(kit.token_ids, other.token_ids, strict=False))
    shorter = min(len(kit.token_ids), len(other.token_ids))
    return next((place for place, (one, two) in pairs if one != two), shorter)


def measure(types: Sequence[str], samples: int, seed: int) -> None:
    """Ask, and print."""
    kit = imp_kit.load("imp-nano", device="cpu", dtype="fp32")
    right: dict[str, dict[str, list[bool]]] = {name: defaultdict(list) for name in ("kit", *types)}
    equal: dict[str, list[bool]] = {name: [] for name in types}
    differences = []
    with tempfile.TemporaryDirectory() as folder:
        imps = {}
        for name in types:
            export_gguf("imp-nano", Path(folder) / name, name, progress=False)
            imps[name] = imp_kit.load(Path(folder) / name, engine="llama.cpp")
        for skill, case in tqdm(list(cases(samples, seed))):
            answer = last_answer(kit, case)
            right["kit"][skill].append(mark(case, answer.text)[0])
            for name, imp in imps.items():
                other = last_answer(imp, case)
                right[name][skill].append(mark(case, other.text)[0])
                equal[name].append(other.token_ids == answer.token_ids)
                if not equal[name][-1]:
                    differences.append((name, skill, first_difference(answer, other), answer.text, other.text))
    print(f"| skill | {' | '.join(right)} |\n| --- |{' --- |' * len(right)}")
    for skill in (*SKILLS, "all"):
        marks = {name: found[skill] if skill in found else sum(found.values(), []) for name, found in right.items()}
        shares = [wilson(sum(each), len(each)) for each in marks.values()]
        cells = [f"{s.right} of {s.total} ({s.low:.1%} to {s.high:.1%})" for s in shares]
        print(f"| {skill} | {' | '.join(cells)} |")
    for name, same in equal.items():
        print(f"\n{name}: {sum(same)} of {len(same)} answers have the kit's tokens.")
        for of, skill, place, one, two in [d for d in differences if d[0] == name][:SHOWN]:
            print(f"    {of}, {skill}, after {place} tokens: {one[:100]!r} | {two[:100]!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", nargs="+", choices=TYPES, default=["f32", "f16", "q8_0", "q4_0"])
    parser.add_argument("--samples", type=int, default=25, help="of each skill in each wording (default: 25)")
    parser.add_argument("--seed", type=int, default=1)
    measure(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
