"""What notebook 06 teaches, for several seeds, as Markdown: `python tests/tools/contrastive.py [--seeds N]`.

The seed decides the drawings to learn from, the first weights and the order of the pairs; the 500 held-out drawings are
the same for all, and those of the notebook. Then imp-nano's zero-shot classes on them. About seven minutes of one core.
"""

import argparse

import imp_kit
from imp_kit.lessons import contrastive

COLOR = "What color is it?\nAnswer the question using a single word or phrase."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--size", choices=tuple(contrastive.SIZES), default="lesson")
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    size = contrastive.size_of(chosen.size)
    held_out = contrastive.draw_pairs(size.held_out, seed=2)
    print("| seed | asked | images | labels | by chance | right |" + "\n|" + " --- |" * 6)
    for seed in range(chosen.seeds):
        pairs = contrastive.draw_pairs(size.drawings, seed=100 + seed)
        towers = [contrastive.train(pairs, loss, size=chosen.size, seed=seed) for loss in contrastive.LOSSES]
        show(seed, contrastive.zero_shot(towers, held_out).reset_index().to_numpy())
    imp = imp_kit.load("imp-nano")
    kinds = contrastive.SEEN_KINDS
    tasks = {
        "kind, imp-nano": (kinds, held_out.kinds, {}),
        "kind, imp-nano, per token": (kinds, held_out.kinds, {"per_token": True}),
        "color, imp-nano": (contrastive.COLORS, held_out.colors, {"question": COLOR}),
    }
    rows = [
        contrastive.score(name, imp.classify(held_out.images, labels, **settings), truths)
        for name, (labels, truths, settings) in tasks.items()
    ]
    show("", [row.values() for row in rows])


def show(seed: object, rows: object) -> None:
    for row in rows:
        print(f"| {seed} |", " | ".join(map(str, row)), "|", flush=True)


if __name__ == "__main__":
    main()
