"""Notebook 06: losses against arithmetic, drawings and captions, the two towers, published classes, exercises."""

import math

import nbformat
import numpy as np
import pytest
import torch
from first_cell import NOTEBOOKS
from PIL import Image
from torch.nn import functional as F

from imp_kit import CheckpointError, ImageError, PromptError, SettingError
from imp_kit.answers import Candidate
from imp_kit.exercises import contrastive as check
from imp_kit.experiments.drawings import COLORS, KINDS
from imp_kit.experiments.stats import wilson
from imp_kit.lessons import contrastive
from imp_kit.lessons.contrastive import SEEN_KINDS, SEEN_PAIRS, SIDE, UNSEEN_KIND, UNSEEN_PAIRS

CELLS = {cell.id: cell.source for cell in nbformat.read(NOTEBOOKS / "06_contrastive.ipynb", as_version=4).cells}
LOGITS = torch.tensor([[2.0, 1.0, -3.0], [-1.0, 0.5, 0.0], [4.0, 0.0, 1.0]])


@pytest.fixture(scope="module")
def pairs():
    return contrastive.draw_pairs(110, seed=5)


@pytest.fixture(scope="module")
def clip(pairs):
    return contrastive.train(pairs, steps=6, batch_size=16, watch=pairs[:3])


# Losses ----------------------------------------------------------------------------------------------------


def test_the_softmax_loss_is_that_of_both_directions():
    """By hand: -log of the share that the right caption, and the right image, has."""
    rows = [math.log(sum(map(math.exp, row))) - row[i] for i, row in enumerate(LOGITS.tolist())]
    columns = [math.log(sum(map(math.exp, row))) - row[i] for i, row in enumerate(LOGITS.T.tolist())]
    assert contrastive.softmax_loss(LOGITS).item() == pytest.approx((sum(rows) + sum(columns)) / 6, abs=1e-6)
    assert contrastive.softmax_loss(torch.zeros(64, 64)).item() == pytest.approx(math.log(64), abs=1e-5)


def test_the_sigmoid_loss_asks_of_each_pair():
    truth = torch.eye(3)
    summed = F.binary_cross_entropy_with_logits(LOGITS, truth, reduction="sum").item()
    assert contrastive.sigmoid_loss(LOGITS).item() == pytest.approx(summed / 3, abs=1e-6)


def test_the_losses_are_those_of_transformers():
    """CLIPModel computes its loss of the logits that it returns."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 19, "bos_token_id": 18}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**small, "image_size": 8, "patch_size": 4}, projection_dim=8
    )
    model = transformers.CLIPModel(config).eval()
    output = model(torch.randint(1, 20, (5, 8)), torch.randn(5, 3, 8, 8), return_loss=True)
    assert contrastive.softmax_loss(output.logits_per_image).item() == pytest.approx(output.loss.item(), abs=1e-5)


# Drawings and captions -------------------------------------------------------------------------------------


def test_what_is_held_out_is_in_no_drawing_to_learn_from(pairs):
    assert len(SEEN_PAIRS) + len(UNSEEN_PAIRS) == len(SEEN_KINDS) * len(COLORS)
    assert {kind for _, kind in SEEN_PAIRS} == {kind for _, kind in UNSEEN_PAIRS} == {*KINDS} - {UNSEEN_KIND}
    assert {color for color, _ in SEEN_PAIRS} == {*COLORS}
    shown = set(zip(pairs.colors, pairs.kinds, strict=True))
    assert shown <= set(SEEN_PAIRS)
    assert not shown & set(UNSEEN_PAIRS)
    assert UNSEEN_KIND not in " ".join(pairs.captions)


def test_captions_say_what_is_drawn(pairs):
    for thing, caption in zip(pairs.things, pairs.captions, strict=True):
        words = caption.split()
        assert thing.kind in words
        assert {*words} & {*COLORS} <= {thing.colors[0]}
        x0, y0, x1, y1 = thing.box  # as drawn
        for word, reached in (("left", x0 < 0.3), ("right", x1 > 0.7), ("top", y0 < 0.3), ("bottom", y1 > 0.7)):
            assert reached or word not in words, caption


def test_different_pairs_share_neither_kind_nor_color(pairs):
    chosen = pairs.different(6)
    assert len(chosen) == len(set(chosen.kinds)) == len(set(chosen.colors)) == 6
    assert chosen.images[0] is pairs.images[0]
    assert len(pairs.different(100)) <= len(SEEN_KINDS)


def test_the_same_seed_draws_the_same():
    one, same, other = (contrastive.draw_pairs(4, seed) for seed in (1, 1, 2))
    assert one.captions == same.captions != other.captions
    assert all(np.array_equal(a, b) for a, b in zip(one.images, same.images, strict=True))


def test_words_become_numbers():
    rows = contrastive.tokenize(["a red bus", "Red bus"])
    assert rows.shape == (2, contrastive.LONGEST)
    assert rows[0, 1:3].tolist() == rows[1, :2].tolist()
    assert (rows[1, 2:] == 0).all()
    for color in COLORS:  # every caption that there can be
        contrastive.tokenize([f"there is an {color} {KINDS[0]} at the bottom right"])


# The towers ------------------------------------------------------------------------------------------------


def test_a_model_is_repeatable_and_its_history_ends_with_it(pairs, clip):
    again = contrastive.train(pairs, steps=6, batch_size=16, watch=pairs[:3])
    for (step, found), (same, other) in zip(clip.history, again.history, strict=True):
        assert step == same
        torch.testing.assert_close(found, other)
    assert [moment.step for moment in clip.history] == [0, 1, 3, 6]
    torch.testing.assert_close(clip.history[-1].similarities, clip.similarities(pairs.images[:3], pairs.captions[:3]))


def test_similarities_are_cosines_and_do_not_depend_on_the_company(pairs, clip):
    texts = ["a bus", "a drawing of a red bus", "a cat"]
    found = clip.similarities(pairs.images[:5], texts)
    assert found.shape == (5, 3)
    assert found.abs().max() <= 1 + 1e-6
    assert not clip.training
    for row, image in zip(found, pairs.images[:5], strict=True):
        alone = [clip.similarities([image], [text]).item() for text in texts]
        assert row.tolist() == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("loss", list(contrastive.LOSSES))
def test_a_few_pairs_are_learned_by_heart(loss):
    """8 pairs of different things, seen 40 times: the loss falls, and each image finds its own caption."""
    few = contrastive.draw_pairs(8, 0, SEEN_PAIRS[::5])
    model = contrastive.train(few, loss, steps=40, batch_size=8, watch=few)
    before, after = (moment.similarities for moment in (model.history[0], model.history[-1]))
    lost = model.loss(model.logits(after)).item()
    assert lost < 0.5 * model.loss(model.logits(before)).item()
    right = torch.tensor([few.captions.index(text) for text in few.captions])  # the first of equal captions
    assert (after.argmax(dim=1) == right).float().mean() >= 0.75


def test_classify_ranks_the_labels(pairs, clip):
    ranked = clip.classify(pairs.images[:3], SEEN_KINDS)
    found = clip.similarities(pairs.images[:3], [f"a {kind}" for kind in SEEN_KINDS])
    for row, values in zip(ranked, found, strict=True):
        assert row[0].answer == SEEN_KINDS[values.argmax()]
        assert sum(match.probability for match in row) == pytest.approx(1, abs=1e-5)
        wanted = clip.logits(values).softmax(0).sort(descending=True).values
        assert [match.probability for match in row] == pytest.approx(wanted.tolist(), abs=1e-5)


def test_search_begins_with_the_most_similar(pairs, clip):
    found = clip.search(pairs.images, "a red bus", 5)
    values = clip.similarities(pairs.images, ["a red bus"])[:, 0]
    assert len(set(found)) == 5
    assert values[found].tolist() == sorted(values.tolist(), reverse=True)[:5]


def test_the_tower_sees_the_whole_square():
    """One changed pixel in any corner changes what the image tower gives."""
    torch.manual_seed(0)
    tower = contrastive.ImageTower().eval()
    plain = torch.zeros(1, 3, SIDE, SIDE)
    for row, column in ((0, 0), (0, SIDE - 1), (SIDE - 1, 0), (SIDE - 1, SIDE - 1)):
        changed = plain.clone()
        changed[..., row, column] = 50
        assert not torch.equal(tower(changed), tower(plain))


@pytest.mark.slow
@pytest.mark.parametrize("loss", list(contrastive.LOSSES))
def test_held_out_drawings_are_recognized(loss):
    """A third of the notebook's training already finds kind and color far more often than chance (1 / 11)."""
    model = contrastive.train(contrastive.draw_pairs(1500, 1), loss, steps=200)
    held_out = contrastive.draw_pairs(200, 2)
    for labels, truths, template in ((SEEN_KINDS, held_out.kinds, "a {}"), (COLORS, held_out.colors, "a {}")):
        ranked = model.classify(held_out.images, labels, template)
        right = sum(row[0].answer == true for row, true in zip(ranked, truths, strict=True))
        assert wilson(right, len(truths)).low > 2 / 11


# Bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss": "hinge"}, "no loss 'hinge'; choose from 'softmax', 'sigmoid'"),
        ({"size": "huge"}, "no size 'huge'; choose from 'lesson', 'smoke'"),
        ({"steps": 0}, "0 steps are no training"),
        ({"batch_size": 1}, "batch of 1 cannot be taken from 110 pairs"),
        ({"batch_size": 111}, "batch of 111 cannot be taken from 110 pairs"),
        ({"learning_rate": 1e30, "batch_size": 8}, "give a learning_rate below 1e+30"),
    ],
)
def test_a_training_that_cannot_be(pairs, settings, said):
    with pytest.raises(SettingError) as error:
        contrastive.train(pairs, **{"steps": 4, **settings})
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([], "There are no labels"),
        (["bus", " "], "is empty"),
        (["bus", "bus"], "'bus' is given twice"),
        ("bus", "give a list"),
        (["bus", "zebra"], "never saw 'zebra'; it knows these words: a, an, at,"),
        (["a " * 12 + "bus"], "has 14 words; give 1 to 12"),
    ],
)
def test_labels_that_cannot_be(pairs, clip, labels, said):
    with pytest.raises(PromptError) as error:
        clip.classify(pairs.images[:1], labels)
    assert said in str(error.value)


def test_other_input_that_cannot_be(clip, pairs):
    with pytest.raises(ImageError, match="There are no images"):
        clip.classify([], ["bus"])
    with pytest.raises(PromptError, match="one {} where the label goes"):
        clip.classify(pairs.images[:1], ["bus"], "a bus")
    with pytest.raises(SettingError, match="0 drawings cannot be drawn"):
        contrastive.draw_pairs(0)
    with pytest.raises(SettingError, match="2 images and 1 true labels"):
        contrastive.score("", [[], []], ["bus"])


# Published models ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny CLIP of transformers' own class with random weights, as a folder that its classes wrote."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(str({word: i for i, word in enumerate(vocabulary)}).replace("'", '"'))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": len(vocabulary) - 2, "eos_token_id": len(vocabulary) - 1}
    text = {**small, **ends, "vocab_size": len(vocabulary), "max_position_embeddings": 77}
    vision = {**small, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    images = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)(**sizes)
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_a_published_model_gives_what_its_class_gives(folder, pairs):
    import transformers

    model = contrastive.published(folder)
    texts = ["a red bus", "a cat"]
    found = model.similarities(pairs.images[:3], texts)
    assert found.shape == (3, 2)
    real = transformers.CLIPModel.from_pretrained(folder).eval()
    inputs = model.processor(text=texts, images=list(pairs.images[:3]), padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = real(**inputs).logits_per_image
    torch.testing.assert_close(model.logits(found), wanted)
    best = [row[0].answer for row in model.classify(pairs.images[:3], ["red bus", "cat"], "{}")]
    assert best == [["red bus", "cat"][i] for i in model.similarities(pairs.images[:3], ["red bus", "cat"]).argmax(1)]


def test_a_published_model_that_is_not_there_or_no_clip(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot be loaded .*; give a folder that holds it, or download=True"):
        contrastive.published(tmp_path / "none")
    with pytest.raises(CheckpointError, match="no-such/model cannot be loaded"):
        contrastive.published("no-such/model")
    with pytest.raises(CheckpointError, match="is an address; give a name on the hub or a folder"):
        contrastive.published("http://127.0.0.1:9/model")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="of the kind 'bert'; give a CLIP or SigLIP model"):
        contrastive.published(tmp_path)


# Results and pictures --------------------------------------------------------------------------------------


def test_a_score_counts_the_first_label_of_each_image():
    rows = [[Candidate("bus", 0.9, 0, 1), Candidate("cat", 0.1, 0, 1)]] * 3
    row = contrastive.score("kinds", [*rows, ImageError("damaged")], ["bus", "cat", "bus", "bus"])
    assert row == {"": "kinds", "images": 4, "labels": 2, "by chance": "50.0%", "right": str(wilson(2, 4))}
    table = contrastive.table([row])
    assert list(table.index) == ["kinds"]


def test_a_score_of_images_that_could_not_be_read_is_an_error():
    for ranked, said in (([ImageError("damaged")], "damaged"), ([], "None")):
        with pytest.raises(SettingError, match=f"No image was ranked.*{said}"):
            contrastive.score("kinds", ranked, ["bus"] * len(ranked))


def test_batch_sizes_see_the_same_number_of_pairs(pairs):
    table = contrastive.batch_sizes(pairs, pairs[:10], (16, 32), size="smoke")
    assert list(table.steps) == [8, 4]
    assert list(table.columns) == ["steps", "softmax", "sigmoid"]


def test_a_strip_shows_each_moment():
    """A matrix for each moment, on one scale."""
    history = [contrastive.Moment(step, torch.eye(3) * step) for step in (0, 1)]
    first, last, _ = contrastive.strip(history).axes
    assert np.array_equal(last.images[0].get_array(), np.eye(3))
    assert not first.images[0].get_array().any()
    assert (first.images[0].norm.vmin, first.images[0].norm.vmax) == (-1, 1)


def test_a_matrix_shows_its_images_and_similarities():
    """Squares of the images' own colors at the left, and of each similarity's color: dark red is 1, white 0."""
    images = [Image.new("RGB", (20, 20), color) for color in ("lime", "cyan")]
    picture = np.array(contrastive.matrix(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), images, ["a red bus", "a cat"]))
    for color in ((0, 255, 0), (0, 255, 255)):
        rows, columns = np.nonzero((picture == color).all(-1))
        assert len(rows) > 500
        assert columns.max() < picture.shape[1] / 2
    rows, columns = np.nonzero((picture == (103, 0, 31)).all(-1))  # the colormap's last color
    upper = rows < (rows.min() + rows.max()) / 2
    assert len(rows) > 2000
    assert columns[upper].max() <= columns[~upper].min()


def test_a_sheet_shows_each_image():
    images = [Image.new("RGB", (30, 30), color) for color in ("red", "lime", "blue")]
    paper = np.array(contrastive.sheet(images, ["one", "two", "three"], columns=2, side=20))
    for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255)):
        assert (paper == color).all(-1).sum() == 400
    assert (paper < 100).all(-1).any()  # the titles


# Exercises -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_solution_is_right_and_an_empty_cell_is_not_yet(number, capsys):
    task = CELLS[f"exercise-{number}"]
    solution = CELLS[f"solution-{number}"].partition("```python\n")[2].partition("```")[0]
    exec(task, {})
    assert capsys.readouterr().out.startswith("Not yet: ")
    exec(f"from imp_kit.exercises import contrastive as check\n{solution}\n{task.splitlines()[-1]}", {})
    assert capsys.readouterr().out.startswith("Right: ")


def test_top1_may_be_written_with_tensors(capsys):
    check.top1(lambda similarities, truth: (similarities.argmax(1) == truth).float().mean())
    assert capsys.readouterr().out.startswith("Right: ")


def by_rows(logits):
    return F.cross_entropy(logits, torch.arange(len(logits)))


@pytest.mark.parametrize(
    ("exercise", "answer", "hint"),
    [
        (check.softmax_loss, by_rows, "one direction alone"),
        (check.softmax_loss, lambda logits: by_rows(logits.T), "one direction alone"),
        (check.softmax_loss, lambda logits: -contrastive.softmax_loss(logits), "is negative"),
        (check.softmax_loss, lambda logits: by_rows(logits) + by_rows(logits.T), "twice that"),
        (check.softmax_loss, lambda logits: len(logits) * contrastive.softmax_loss(logits), "take means, not sums"),
        (check.softmax_loss, lambda logits: logits, "Give a number alone"),
        (check.sigmoid_loss, lambda logits: contrastive.sigmoid_loss(logits) / len(logits), "not of pairs"),
        (check.sigmoid_loss, lambda logits: contrastive.sigmoid_loss(logits) * len(logits), "the whole sum"),
        (check.sigmoid_loss, lambda logits: -F.logsigmoid(logits.diagonal()).mean(), "the diagonal alone"),
        (check.sigmoid_loss, lambda logits: -contrastive.sigmoid_loss(logits), "is negative"),
        (check.sigmoid_loss, contrastive.softmax_loss, "yours is"),
        (check.top1, lambda values, truth: sum(values.argmax(1) == truth), "give their share"),
        (check.top1, lambda values, truth: 1.0, "it is 0.75; yours is 1"),
        (check.top1, lambda values, truth: ..., "still returns `...`"),
    ],
)
def test_a_wrong_answer_gets_a_hint(exercise, answer, hint, capsys):
    exercise(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("Not yet: ")
    assert hint in printed
