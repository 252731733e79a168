"""Make the sample images again: `python tests/tools/make_samples.py`.

The photographs come out of scikit-image's wheel; matplotlib only lends its DejaVu fonts. Nothing is random.
"""

from pathlib import Path

import matplotlib
import skimage.data
from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).parents[2] / "images"
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
SCALE = 4  # drawings are made this much larger and then reduced, which smooths their edges

INK = (45, 48, 58)
SKIN = (240, 200, 165)


class Drawing:
    """A canvas whose coordinates are those of the finished picture."""

    def __init__(self, width, height, colour):
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), colour)
        self.draw = ImageDraw.Draw(self.image)

    def box(self, x0, y0, x1, y1, fill, outline=None, width=2, radius=0, corners=None):
        """A rectangle; `radius` rounds the corners (top left, top right, bottom right, bottom left)."""
        edges = [v * SCALE for v in (x0, y0, x1, y1)]
        self.draw.rounded_rectangle(edges, radius * SCALE, fill, outline, round(width * SCALE), corners=corners)

    def ellipse(self, x, y, rx, ry, fill, outline=None, width=2):
        edges = [v * SCALE for v in (x - rx, y - ry, x + rx, y + ry)]
        self.draw.ellipse(edges, fill, outline, width * SCALE)

    def arch(self, x, y, radius, fill):
        edges = [v * SCALE for v in (x - radius, y - radius, x + radius, y + radius)]
        self.draw.pieslice(edges, 180, 360, fill)

    def polygon(self, points, fill, outline=None, width=2):
        self.draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill)
        if outline:
            self.line([*points, points[0]], outline, width)

    def line(self, points, colour, width):
        """Joined segments with round ends."""
        for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
            self.draw.line([v * SCALE for v in (x0, y0, x1, y1)], colour, round(width * SCALE))
        for x, y in points:
            self.ellipse(x, y, width / 2, width / 2, colour)

    def limb(self, points, colour, width):
        """A thick line with an outline."""
        self.line(points, INK, width + 5)
        self.line(points, colour, width)

    def arrow(self, points, colour=INK, dashed=False):
        """Straight segments along the axes, the last one ending in an arrow head."""
        (x0, y0), (x1, y1) = points[-2:]
        dx, dy = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
        for (ax, ay), (bx, by) in zip(points, [*points[1:-1], (x1 - 5 * dx, y1 - 5 * dy)], strict=False):
            length = abs(bx - ax) + abs(by - ay)
            step = 7 if dashed else max(length, 1)
            for start in range(0, int(length), int(step)):
                stop = min(start + (4 if dashed else step), length)
                ends = [(ax + (bx - ax) * t / length, ay + (by - ay) * t / length) for t in (start, stop)]
                self.line(ends, colour, 1.6)
        head = [(x1, y1), (x1 - 8 * dx + 4 * dy, y1 - 8 * dy + 4 * dx)]
        self.polygon([*head, (x1 - 8 * dx - 4 * dy, y1 - 8 * dy - 4 * dx)], colour)

    def text(self, x, y, text, size, bold=False, colour=INK, anchor="mm"):
        font = ImageFont.truetype(str(FONTS / f"DejaVuSans{'-Bold' * bold}.ttf"), round(size * SCALE))
        self.draw.text((x * SCALE, y * SCALE), text, colour, font, anchor)

    def save(self, name):
        self.image.reduce(SCALE).save(FOLDER / name, optimize=True)


def photographs():
    pictures = {
        "astronaut": skimage.data.astronaut(),
        "cat": skimage.data.chelsea(),
        "coffee": skimage.data.coffee(),
        "camera": skimage.data.camera(),
        "rocket": skimage.data.rocket(),
    }
    for name, array in pictures.items():
        Image.fromarray(array).save(FOLDER / f"{name}.jpg", quality=88, optimize=True)


def bus():
    red, glass, grey = (214, 40, 40), (168, 212, 236), (150, 154, 162)
    d = Drawing(640, 420, (130, 190, 235))
    d.box(0, 310, 640, 420, (150, 150, 150))  # road
    d.box(0, 306, 640, 314, (128, 130, 128))
    for x in range(20, 640, 130):
        d.box(x, 386, x + 70, 393, (250, 250, 246), radius=3)
    d.ellipse(320, 368, 275, 12, (124, 124, 122))  # shadow

    d.line([(574, 150), (600, 150), (600, 166)], INK, 5)  # mirror
    d.box(591, 160, 609, 196, grey, INK, 3, 6)
    d.box(60, 84, 580, 345, "white", INK, 5, 34)
    d.box(63, 222, 577, 342, red, radius=31, corners=(False, False, True, True))
    d.box(60, 219, 580, 224, INK)
    d.box(60, 84, 580, 345, None, INK, 5, 34)
    for x in (88, 183, 278, 373):
        d.box(x, 118, x + 80, 194, glass, INK, 4, 10)
        d.polygon([(x + 14, 186), (x + 44, 126), (x + 58, 126), (x + 28, 186)], (206, 232, 246))
    d.box(470, 122, 526, 330, glass, INK, 4, 8)  # door with two wings
    d.box(496, 122, 500, 330, INK)
    d.box(540, 118, 580, 206, glass, INK, 4, 8)  # windscreen, seen from the side
    d.box(52, 318, 92, 336, grey, INK, 3, 6)  # bumpers
    d.box(548, 318, 590, 336, grey, INK, 3, 6)
    d.ellipse(566, 272, 12, 14, (255, 214, 80), INK, 3)
    d.box(60, 256, 72, 290, (255, 150, 60), INK, 3, 3)
    for x in (165, 410):
        d.arch(x, 344, 52, INK)
        d.ellipse(x, 344, 40, 40, (52, 54, 60))
        d.ellipse(x, 344, 20, 20, (205, 208, 214), INK, 3)
        d.ellipse(x, 344, 6, 6, INK)
    d.save("bus.png")


def door():
    green, dark_green, blue, dark_blue = (46, 140, 82), (28, 104, 60), (52, 110, 200), (38, 84, 160)
    brown, brown_top, brown_side, tape = (176, 118, 64), (204, 150, 94), (140, 90, 46), (224, 190, 140)
    trousers, far_trousers, hair, shoe = (92, 98, 120), (76, 82, 104), (84, 54, 36), (60, 46, 42)
    d = Drawing(640, 480, (250, 241, 220))
    d.box(0, 404, 640, 480, (222, 196, 156))  # floor
    d.box(0, 394, 640, 406, (238, 226, 200), (200, 180, 150), 1)

    d.box(420, 48, 622, 424, (252, 250, 244), INK, 4)  # white frame, and the bright outside behind it
    d.box(438, 66, 604, 424, (196, 228, 246), INK, 3)
    d.box(440, 350, 602, 422, (172, 212, 136))
    d.box(420, 421, 622, 428, (200, 180, 150), INK, 2)  # sill

    def leaf(u0, v0, u1, v1):
        """Corners of a part of the door leaf, in fractions of its width from the hinge and of its height."""
        corners = ((u0, v0), (u1, v0), (u1, v1), (u0, v1))
        return [(603 - 128 * u, 68 + 22 * u + v * (353 - 40 * u)) for u, v in corners]

    d.polygon(leaf(0, 0, 1, 1), green, INK, 4)  # the leaf swings away from him, hinges on the right
    for top, bottom in ((0.08, 0.46), (0.56, 0.93)):
        d.polygon(leaf(0.16, top, 0.8, bottom), dark_green)
        d.polygon(leaf(0.2, top + 0.015, 0.76, bottom - 0.015), (54, 152, 92))
    d.ellipse(487, 246, 8, 8, (244, 204, 84), INK, 3)

    d.ellipse(296, 440, 84, 9, (198, 172, 132))  # shadow
    d.limb([(296, 290), (292, 360), (286, 416)], far_trousers, 40)  # standing leg
    d.box(262, 414, 338, 440, shoe, INK, 3, 12, (True, True, False, False))
    d.limb([(306, 288), (388, 282), (450, 304)], trousers, 36)  # raised leg, its sole against the door
    d.polygon([(445, 286), (466, 258), (482, 262), (474, 334), (460, 334), (440, 322)], shoe, INK, 3)

    d.limb([(318, 190), (352, 238), (420, 244)], dark_blue, 24)  # far arm, mostly behind the box
    d.box(258, 156, 334, 304, blue, INK, 4, 28, (True, True, False, False))  # shirt
    d.box(260, 290, 332, 304, INK)  # belt
    d.box(280, 136, 308, 166, SKIN, INK, 3, 6)  # neck
    d.box(284, 152, 310, 160, SKIN)
    d.ellipse(300, 104, 38, 42, SKIN, INK, 4)  # head, looking at the door
    d.polygon(
        [
            (262, 108),
            (262, 84),
            (274, 64),
            (296, 56),
            (322, 60),
            (336, 78),
            (312, 82),
            (290, 84),
            (284, 104),
            (276, 118),
            (266, 118),
        ],
        hair,
        INK,
        3,
    )
    d.ellipse(280, 112, 7, 10, SKIN, INK, 3)  # ear
    d.ellipse(321, 100, 4, 5, INK)  # eye
    d.line([(314, 88), (328, 88)], hair, 3)
    d.polygon([(334, 102), (346, 114), (334, 117)], SKIN, SKIN, 2)  # nose
    d.line([(335, 101), (346, 114), (335, 117)], INK, 3)
    d.line([(314, 124), (322, 129), (331, 126)], (170, 70, 60), 3)  # smile

    d.polygon([(338, 154), (358, 138), (452, 138), (432, 154)], brown_top, INK, 4)  # box
    d.polygon([(432, 154), (452, 138), (452, 222), (432, 238)], brown_side, INK, 4)
    d.polygon([(338, 154), (432, 154), (432, 238), (338, 238)], brown, INK, 4)
    d.polygon([(376, 156), (394, 156), (394, 186), (376, 186)], tape)
    d.polygon([(377, 152), (395, 152), (413, 140), (395, 140)], tape)
    for y in (184, 193, 202, 211):
        d.limb([(436, y + 2), (448, y - 4)], SKIN, 5)  # fingers of the far hand, around the box
    d.limb([(292, 186), (304, 246), (366, 244)], blue, 26)  # near arm
    d.limb([(374, 243), (388, 240)], SKIN, 17)
    d.save("door.png")


def diagram():
    vision, text, language, memory = (216, 234, 252), (255, 236, 208), (218, 242, 220), (236, 224, 248)
    caption = (98, 102, 114)
    d = Drawing(640, 640, "white")
    d.text(320, 22, "Imp: from a picture and a question to an answer", 15, bold=True)
    d.box(14, 42, 210, 518, (247, 250, 254), (190, 208, 230), 1, 8)  # one panel per column
    d.box(222, 42, 418, 518, (254, 251, 245), (232, 214, 186), 1, 8)
    d.box(430, 42, 626, 518, (247, 252, 247), (192, 220, 194), 1, 8)
    for x, title in ((112, "VISION"), (320, "TEXT"), (528, "LANGUAGE MODEL")):
        d.text(x, 56, title, 10, bold=True, colour=caption)

    def block(x, y, height, colour, title, *lines):
        d.box(x - 84, y, x + 84, y + height, colour, INK, 1.5, 6)
        first = y + height / 2 - 6.5 * len(lines)
        d.text(x, first, title, 12, bold=True)
        for number, line in enumerate(lines, 1):
            d.text(x, first + 1.5 + 13 * number, line, 10)

    left, middle, right = 112, 320, 528
    block(left, 70, 46, vision, "Picture", "384 x 384 x 3")
    block(left, 142, 46, vision, "Patches 14 x 14", "27 x 27 = 729 patches")
    block(left, 214, 62, vision, "SigLIP tower", "27 layers, 26 used", "width 1152, 16 heads")
    block(left, 302, 46, vision, "Features", "729 x 1152")
    block(left, 374, 62, vision, "Projector", "Linear, GELU, Linear", "1152 to 2560")
    block(left, 462, 46, vision, "Visual tokens", "729 x 2560")
    block(middle, 70, 62, text, "Prompt", "one <image> mark", "and the question")
    block(middle, 158, 46, text, "Tokenizer", "text to N token ids")
    block(middle, 230, 46, text, "Token embeddings", "N x 2560")
    block(middle, 462, 46, text, "Splice at <image>", "(N - 1 + 729) x 2560")
    block(right, 70, 46, language, "Answer", "until the end token")
    block(right, 142, 46, language, "Greedy choice", "the largest logit")
    block(right, 214, 46, language, "Logits", "one per vocabulary entry")
    block(
        right,
        286,
        94,
        language,
        "Phi-2 decoder",
        "32 layers, width 2560",
        "32 heads of 80 dims",
        "rotary: 32 of 80 dims",
        "causal attention",
    )
    block(right, 416, 46, memory, "KV cache", "keys, values per layer")

    for x, y0, y1 in (
        (left, 116, 142),
        (left, 188, 214),
        (left, 276, 302),
        (left, 348, 374),
        (left, 436, 462),
        (middle, 132, 158),
        (middle, 204, 230),
        (right, 286, 260),
        (right, 214, 188),
        (right, 142, 116),
    ):
        d.arrow([(x, y0), (x, y1)])
    d.arrow([(middle, 276), (middle, 462)])
    d.arrow([(196, 485), (236, 485)])
    d.arrow([(404, 485), (424, 485), (424, 344), (444, 344)])
    d.arrow([(right - 16, 380), (right - 16, 416)], (120, 80, 160))
    d.arrow([(right + 16, 416), (right + 16, 380)], (120, 80, 160))
    d.text(right - 22, 398, "store", 9, colour=caption, anchor="rm")
    d.text(right + 22, 398, "reuse", 9, colour=caption, anchor="lm")
    d.arrow([(444, 165), (424, 165), (424, 253), (404, 253)], (190, 60, 50), dashed=True)
    d.text(right, 478, "Each new token goes back in", 9, colour=caption)
    d.text(right, 491, "alone; the rest is in the cache.", 9, colour=caption)

    d.box(244, 300, 396, 436, "white", (232, 214, 186), 1, 6)  # what the splice does, on the long arrow
    d.text(middle, 314, "what the splice does", 9, colour=caption)
    for y, words, widths in (
        (326, ("A", "<image>", "What", "?"), (18, 60, 40, 18)),
        (386, ("A", "729 visual tokens", "What", "?"), (14, 86, 28, 12)),
    ):
        x = middle - (sum(widths) + 3) / 2
        for word, width, colour in zip(words, widths, (text, vision, text, text), strict=True):
            d.box(x, y, x + width, y + 20, colour, INK, 1, 3)
            d.text(x + width / 2, y + 10, word, 8)
            x += width + 1
    d.arrow([(middle, 350), (middle, 382)])
    d.text(middle, 420, "the mark makes room for the picture", 8, colour=caption)

    d.box(14, 530, 626, 626, (250, 250, 250), (205, 205, 210), 1, 8)
    d.text(26, 546, "LEGEND", 10, bold=True, colour=caption, anchor="lm")
    entries = (
        (vision, "computed from the picture"),
        (text, "computed from the text"),
        (language, "language model"),
        (memory, "kept between steps"),
    )
    for number, (colour, meaning) in enumerate(entries):
        x, y = 26 + 200 * (number % 2), 566 + 22 * (number // 2)
        d.box(x, y - 7, x + 22, y + 7, colour, INK, 1.5, 3)
        d.text(x + 30, y, meaning, 10, anchor="lm")
    for y, meaning, colour, dashed in (
        (566, "data", INK, False),
        (588, "the chosen token, fed back", (190, 60, 50), True),
    ):
        d.arrow([(420, y), (446, y)], colour, dashed)
        d.text(454, y, meaning, 10, anchor="lm")
    d.text(
        26,
        611,
        "Sizes are rows x columns. N: tokens of the prompt, the <image> mark among them.",
        10,
        colour=caption,
        anchor="lm",
    )
    d.save("diagram.png")


if __name__ == "__main__":
    photographs()
    bus()
    door()
    diagram()
