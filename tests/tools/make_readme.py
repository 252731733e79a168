"""Draws images/readme.png: sample drawings with questions, and the answers that imp-nano gives to them.

python tests/tools/make_readme.py
"""

from pathlib import Path

import matplotlib.pyplot as plt

import imp_kit

IMAGES = Path(__file__).parents[2] / "images"
CHATS = {
    "bus.png": ("What are the colors of the bus in the image?", "Is there a cat?"),
    "door.png": ("What is the person holding?", "Where is the door?", "What color is it?"),
}


def main() -> None:
    imp = imp_kit.load("imp-nano", device="cpu", dtype="fp32")
    figure, rows = plt.subplots(1, 2, figsize=(9, 4.6), layout="constrained")
    for axes, (name, questions) in zip(rows, CHATS.items(), strict=True):
        chat = imp.chat(IMAGES / name)
        for question in questions:
            chat.say(question)
        axes.imshow(chat.view.picture, extent=(0, 4, 0, 3), aspect="auto")
        for row, (question, answer) in enumerate(chat.turns):
            axes.text(0, -0.3 - 0.55 * row, question, color="#777777", fontsize=10)
            axes.text(0, -0.52 - 0.55 * row, str(answer), color="black", fontsize=11)
        axes.set(xlim=(0, 4), ylim=(-1.9, 3))
        axes.axis("off")
    figure.supxlabel(
        f"greedy answers of {imp.name}, the checkpoint that comes with the kit", fontsize=8, color="#999999"
    )
    figure.savefig(IMAGES / "readme.png", dpi=110)


if __name__ == "__main__":
    main()
