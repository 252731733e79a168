"""Trains imp-nano on images that the kit draws; a run can be stopped and resumed at any time.

python -m imp_kit.nano train --out runs/nano --samples 200000
"""

import csv
import json
import math
import multiprocessing
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import chain, combinations
from pathlib import Path
from pickle import UnpicklingError
from shutil import copyfile
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from imp_kit.checkpoints.config import parse_config
from imp_kit.checkpoints.hub import digest, loaded_files
from imp_kit.checkpoints.key_maps import NEW_PHI
from imp_kit.checkpoints.load import load_weights
from imp_kit.checkpoints.plan import slots
from imp_kit.checkpoints.tokenizer import TextTokenizer
from imp_kit.device import bf16_is_faster, choose_device
from imp_kit.errors import RunError, SettingError
from imp_kit.experiments.drawings import Scene, Thing, draw, sample_scene
from imp_kit.images import to_pixels
from imp_kit.model.decoder import rope_at, rotate
from imp_kit.model.imp import ImpModel
from imp_kit.nano.training.kernels import LearningKernels
from imp_kit.nano.training.labels import (
    ACROSS,
    CHARACTERS,
    IGNORED,
    LOOKS,
    MOST_COUNTED,
    NUMBERS,
    ORDINALS,
    THING,
    Labels,
    attention_targets,
    named_things,
    patch_labels,
    thing_numbers,
)
from imp_kit.nano.training.lessons import LESSONS, READING, SKILLS, Turn, branches, outside_branches, page_branches
from imp_kit.nano.training.outside import sample_outside
from imp_kit.nano.training.text import LONGEST, Page, Style, sample_page
from imp_kit.nano.training.variety import sample_varied
from imp_kit.prompts import PHI2, SYSTEM

VOCABULARY = 896  # rows: just enough to leave common words whole; the memory saved goes to the tower and the decoder
VOCABULARY_SCENES = 8_000  # whose questions it is learned from
CONTROL = ("<|endoftext|>", "</s>", "<image>")  # after the learned vocabulary, as in Phi-2's tokenizer
CONFIG = {
    "architectures": ["ImpForCausalLM"],
    "model_type": "imp",
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
    "partial_rotary_factor": 0.5,
    "rope_theta": 10000.0,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu_new",
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "mm_vision_tower": "imp-nano",
    "mm_vision_select_layer": -2,
    "mm_projector_type": "mlp2x_gelu",
    "image_aspect_ratio": "square",
    "vision_config": {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 9,  # eight are used and stored, see mm_vision_select_layer
        "num_attention_heads": 4,
        "patch_size": 16,
        "image_size": 192,  # the caption of the reading probe is then about 5 pixels a character
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu_pytorch_tanh",
    },
}
LOGGED = (*SKILLS, *(f"read_{length}" for length in range(1, LONGEST + 1)))  # "read" itself: two lines or more
LOG = ("samples", "seconds", "skipped", "loss", "patch_loss", *LOGGED)
LABEL_SIZES = (*LOOKS.values(), 4, NUMBERS * MOST_COUNTED, ACROSS * (len(CHARACTERS) + 1), ACROSS * ORDINALS)
TOWER_LAYER = re.compile(r"(vision\.encoder\.layers\.)(\d+)(.*)")  # a weight's name, its layer's number in the middle
GUIDED_LAYER = 2  # of the decoder; its first head is trained to attend to the text that an answer spells, its second
# one to the thing that an answer is about, or that a question has just named
ATTENTION_WEIGHT = 0.3  # of the loss that trains these heads
NUMBERS_WEIGHT = 0.5  # of the loss of the labels that count and order the things
LOOKS_WEIGHT = 0.25  # of each loss of what is known of the things
BOXES_WEIGHT = 4.0  # of the mean error of a corner, as a fraction of the image
HEAD_RATE = 4.0  # times the learning rate, for the head of the labels, which is new in each run
TRAINING, VOCABULARY_TEXT = 1, 2  # streams of random numbers; evaluate.py has its own
RARE: tuple[tuple[float, Callable[[Scene], bool]], ...] = (  # shares of drawings, and what they must show: few would
    (0.25, lambda scene: any(thing.holding for thing in scene.things)),
    (0.15, lambda scene: any(thing.kind == "person" for thing in scene.things)),
    (0.2, lambda scene: any(len(thing.colors) == 2 for thing in scene.things)),
    (0.05, lambda scene: any(alike > 1 for _, _, alike, _ in thing_numbers(scene))),
    (0.15, lambda scene: any(_nearly_alike(one, other) for one, other in combinations(scene.things, 2))),
)
BRANCHES = 9  # questions about one image, more than fit into a row: what does not fit is left out
PAGE_BRANCHES = 7
ROW = 160  # tokens after the image
FULL_SHARE = 0.9  # of pages, while only the tower learns: the more letters, the more it learns from an image
FULL_SHARE_ASKED = 0.3  # the same share in batches with conversations: one line alone gives little to spell
KINDS_OF_SAMPLES = ("scene", "page", "outside")
LEAST, MOST = 0.5, 2.0  # how much less, and more often than the mean a skill is asked about
STATE = {"plan", "start", "learner", "mean", "optimizers", "done", "seconds", "skipped", "weights", "bf16"}
OTHER_STATE = "{}/state.pt is damaged, or of another version of the kit; choose another folder."
BAD_STEPS = 3  # without numbers, one after the other, that stop a run


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast imp-nano learns.

    A run is a function of these values, the versions of its libraries, and whether the device learns in bf16; a steered
    one also of how often `train` reports.
    """

    samples: int = 148_000
    seeing: int = 40_000  # the first samples: only the tower learns, from what each patch shows
    plain: int = 5_000  # up to here all texts are black on white in two faces; then more and more differ,
    varied: int = 25_000  # and from here all do
    shares: tuple[float, float, float] = (0.5, 0.43, 0.07)  # of drawings, pages with text, and neither;
    seeing_shares: tuple[float, float, float] = (0.37, 0.6, 0.03)  # in batches from which only the tower learns
    talk_every: int = 2  # then every second batch has conversations; one without them takes a third of the time
    head_alone: int = 0  # samples at the start from whose patch labels only the head learns: a new head's first errors
    # would spoil a tower that was trained before
    varied_share: float = 0.0  # of drawings, those of variety.py
    hard: bool = False  # of texts, see `Style`
    steered: bool = False  # whether skills that are behind are asked about more, see `steer`
    lengthening: int = 1_000  # when conversations begin, texts have one character; one more each time after so many
    seed: int = 0  # of drawings and weights; evaluation draws from other streams
    batch: int = 16
    learning_rate: float = 1.2e-3
    warm_up: int = 1_000  # samples
    decay: float = 0.52  # share of the run, at its end
    weight_decay: float = 0.05
    averaging: float = 0.998  # the checkpoint is the mean of the last steps' weights, each counting so much of the next

    def __post_init__(self):
        if self.samples < 1 or self.batch < 1 or not 0 <= self.seed < 2**63:
            given = f"samples is {self.samples}, batch {self.batch} and seed {self.seed}"
            raise SettingError(
                f"{given}; give at least one sample, a batch of at least one, and a seed from 0 to {2**63 - 1}."
            )

    def has_conversations(self, done: int) -> bool:
        """Whether the batch after `done` samples has conversations."""
        return done >= self.seeing and done // self.batch % self.talk_every == 0

    def style(self, index: int) -> Style:
        """Which texts sample `index` may show: while only the tower learns, of any length, but at first all plain."""
        longest = LONGEST if index < self.seeing else min(LONGEST, 1 + (index - self.seeing) // self.lengthening)
        variety = (index - self.plain) / (self.varied - self.plain)
        return Style(longest, variety=min(1.0, max(0.0, variety)), hard=self.hard)

    def rate(self, done: int) -> float:
        """Learning rate after `done` samples: warm-up, then constant, then linearly down to nearly nothing.

        Until the decay begins a run does not depend on `samples`, so a run can be made longer while it is running.
        """
        left = (self.samples - done) / (self.decay * self.samples)
        return self.learning_rate * min((done + self.batch) / self.warm_up, 1.0, max(left, 0.01))


# The second goes on from a checkpoint that already reads: everything from the start, at a rate that falls for long.
CONFIGS = {
    "first": TrainConfig(),
    "further": TrainConfig(
        samples=32_000,
        seeing=0,
        plain=-1,
        varied=0,
        shares=(0.52, 0.4, 0.08),
        hard=True,
        talk_every=1,
        varied_share=0.45,
        steered=True,
        lengthening=1,
        seed=6,
        head_alone=2_000,
        batch=32,
        learning_rate=5e-4,
        warm_up=2_000,
        decay=0.8,
        averaging=0.996,
    ),
}


def _nearly_alike(one: Thing, other: Thing) -> bool:
    """Whether two things share their kind or a color, and are not alike: an answer may mix them up."""
    differ = (one.kind, one.colors, one.holding) != (other.kind, other.colors, other.holding)
    return differ and (one.kind == other.kind or bool({*one.colors} & {*other.colors}))


def lesson(
    config: TrainConfig, index: int, weights: Mapping[str, float] | None = None
) -> tuple[Page, Image.Image, list[list[Turn]]]:
    """Sample `index` of a training stream: what it shows, its image, and conversations about it, each from its start.

    A drawing without text is a page without lines; an image that is no drawing is a page without lines and things.
    `weights` says by skill how often it is asked about, compared with 1.
    """
    rng = np.random.default_rng([TRAINING, config.seed, index])
    kind = rng.choice(KINDS_OF_SAMPLES, p=config.shares if config.has_conversations(index) else config.seeing_shares)
    if kind == "outside":
        return Page((), Scene((), (1, 1))), sample_outside(rng), outside_branches(rng, PAGE_BRANCHES)
    if kind == "page":
        full = rng.random() < (FULL_SHARE_ASKED if config.has_conversations(index) else FULL_SHARE)
        page, image = sample_page(rng, config.style(index), "full" if full else None)
        while full and config.has_conversations(index) and not READING["read"](page, rng):
            page, image = sample_page(rng, config.style(index), "full")  # the one before had too much to read
        return page, image, page_branches(page, rng, PAGE_BRANCHES, weights=weights)
    if rng.random() < config.varied_share:
        image, scene = sample_varied(rng)
        return Page((), scene), image, branches(scene, rng, BRANCHES, weights=weights)
    chance, scene = rng.random(), sample_scene(rng)
    for share, shows in RARE:
        while 0 <= chance < share and not shows(scene):
            scene = sample_scene(rng)
        chance -= share
    image, scene = draw(scene, rng)
    return Page((), scene), image, branches(scene, rng, BRANCHES, weights=weights)


@dataclass
class Row:
    """The tokens that follow one image: several conversations, of which none sees another.

    They share the image, which costs the most, and each is asked as if it were the only one. All lists have one entry
    for each token.
    """

    ids: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)  # which conversation it belongs to
    owners: list[int] = field(default_factory=list)  # the index in `names` of the turn that it answers, or IGNORED
    targets: list[int] = field(default_factory=list)  # what it spells or is about, see `attention_targets`, or, in a
    # question, what the token before it names, see `named_things`; or IGNORED
    names: list[str] = field(default_factory=list)  # for each turn the column of the log that counts it

    def add(self, tokenizer: TextTokenizer, turns: list[Turn], page: Page) -> None:
        """Put a conversation at the end, if it fits into ROW."""
        ids: list[int] = []
        owners: list[int] = []
        targets: list[int] = []
        for number, turn in enumerate(turns):
            asked = tokenizer.encode_pieces(PHI2.ask(turn.question, first=number == 0))
            answer = spelled(tokenizer, turn)
            ids += asked + answer
            owners += [IGNORED] * len(asked) + [len(self.names) + number] * len(answer)
            # What a token attends to stands with the token that follows it: the one that it predicts.
            named = [IGNORED, *named_things(tokenizer, asked, turn, page)[:-1]]
            targets += named + attention_targets(tokenizer, answer, turn, page)
            if number:  # the stop mark that opens a later turn ends the answer before it, and is learned with it
                owners[-len(asked) - len(answer)] = len(self.names) + number - 1
        ids.append(tokenizer.control[PHI2.stop])
        if len(self.ids) + len(ids) > ROW:
            return
        self.branches += [self.branches[-1] + 1 if self.branches else 0] * len(ids)
        self.ids += ids
        self.owners += [*owners, len(self.names) + len(turns) - 1]
        self.targets += [*targets, IGNORED]
        self.names += [_log_name(page, turn) for turn in turns]


def spelled(tokenizer: TextTokenizer, turn: Turn) -> list[int]:
    """An answer's tokens: a code or word that is read letter by letter, all else as the tokenizer cuts it.

    A piece of a word would be learned apart from its letters, and there are few words to learn it from.
    """
    text = " " + turn.answer
    if turn.skill not in READING:
        return tokenizer.encode(text)
    if '"' not in text and " " not in turn.answer:
        pieces = [text[:2], *text[2:]]
    else:
        parts = re.split(r'(?<=")([^" ]+)(?=")', text)  # what is read stands at the odd places
        pieces = [piece for index, part in enumerate(parts) for piece in (part if index % 2 else [part])]
    return [id for piece in pieces for id in tokenizer.encode(piece)]


def _log_name(page: Page, turn: Turn) -> str:
    """The column of the log that counts a turn: its skill, reading by length where there is one code or word."""
    one = turn.skill == "read" and len(page.lines) == 1
    return f"read_{len(page.lines[0].text)}" if one else turn.skill


class Tokens(NamedTuple):
    """The rows of a batch, each int (batch, tokens), filled up at the right."""

    ids: Tensor
    branches: Tensor  # -1 where nothing follows
    owners: Tensor
    targets: Tensor


Batch = tuple[Tensor, Labels, Tokens, list[list[str]]]


class Lessons(Dataset):
    """Samples of a training stream, drawn when asked for."""

    def __init__(self, config: TrainConfig, tokenizer_folder: Path, indices: range, weights: dict[str, float]):
        self.config, self.indices, self.weights = config, indices, weights
        self.tokenizer = TextTokenizer(tokenizer_folder)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Labels, Row]:
        vision = CONFIG["vision_config"]
        page, image, conversations = lesson(self.config, self.indices[index], self.weights)
        row = Row()
        for turns in conversations:
            row.add(self.tokenizer, turns, page)
        labels = patch_labels(page, vision["image_size"] // vision["patch_size"])
        return to_pixels(image, vision["image_size"]), labels, row


def collate(samples: list[tuple[Tensor, Labels, Row]]) -> Batch:
    """Stack samples: pixels, labels, tokens, and the names of the rows' turns."""
    pixels, labels, rows = zip(*samples, strict=True)

    width = max(len(row.ids) for row in rows)

    def padded(lists: Iterable[list[int]], filling: int) -> Tensor:
        return torch.tensor([[*each, *[filling] * (width - len(each))] for each in lists], dtype=torch.long)

    tokens = Tokens(
        padded((row.ids for row in rows), 0),
        padded((row.branches for row in rows), -1),
        padded((row.owners for row in rows), IGNORED),
        padded((row.targets for row in rows), IGNORED),
    )
    stacked = Labels(*(torch.stack(kind) for kind in zip(*labels, strict=True)))
    return torch.stack(pixels), stacked, tokens, [row.names for row in rows]


def make_tokenizer(folder: Path, seed: int) -> None:
    """Learn a byte-level BPE from conversations of the training stream and write it as tokenizer.json.

    Capitals and digits of codes and boxes are a token each: what is read is spelled, and no code is cut by chance.
    """
    tokenizer = Tokenizer(models.BPE())
    apart = pre_tokenizers.Split(Regex(r" ?USER:| ?ASSISTANT:| ?0\.|[A-Z0-9](?![a-z])"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([apart, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    rng = np.random.default_rng([VOCABULARY_TEXT, seed])
    turns: list[Turn] = []
    for _ in range(VOCABULARY_SCENES):
        turns += chain.from_iterable(branches(sample_scene(rng), rng, BRANCHES))
        turns += chain.from_iterable(page_branches(sample_page(rng)[0], rng, PAGE_BRANCHES))
        turns += chain.from_iterable(outside_branches(rng, 1))
    text = chain.from_iterable((PHI2.first.strip().replace("{}", turn.question), " " + turn.answer) for turn in turns)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain(text, [SYSTEM + " USER: "] * 1000), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    tokenizer.save(str(folder / "tokenizer.json"))


def new_model(seed: int) -> ImpModel:
    """imp-nano with fresh weights: normal, of a deviation that keeps activations of order 1 at any width."""
    vision = CONFIG["vision_config"]
    width, patch = vision["hidden_size"], vision["patch_size"]
    used = vision["num_hidden_layers"] - 1
    shapes = {
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": ((vision["image_size"] // patch) ** 2, width),
        **{f"vision_model.encoder.layers.{i}.mlp.fc1.weight": (vision["intermediate_size"],) for i in range(used)},
    }
    torch.manual_seed(seed)
    model = ImpModel(parse_config(CONFIG, shapes))
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            deviation = parameter[0].numel() ** -0.5
            if "embed" in name and parameter.ndim == 2:
                # So that a patch's position counts as much as its colors from the start.
                deviation = 0.5 if "position" in name else 0.1
            if name.endswith(("attention.out.weight", "mlp.down.weight", "out_proj.weight", "fc2.weight")):
                # What adds to the residual stream is scaled down by depth.
                deviation /= math.sqrt(2 * (CONFIG["num_hidden_layers"] if name.startswith("decoder") else used))
            nn.init.normal_(parameter, std=deviation)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model


def save_checkpoint(model: ImpModel, tokenizer: TextTokenizer, folder: Path) -> None:
    """Write config.json and model.safetensors (fp16, keys as transformers names them) next to the tokenizer."""
    parameters = dict(model.named_parameters())
    tensors = {
        key: parameters[slot.parameter].detach()[slot.start : slot.stop].to("cpu", torch.float16).contiguous()
        for key, slot in slots(model, NEW_PHI).items()
    }
    save_file(tensors, folder / "model.new", metadata={"format": "pt"})
    (folder / "model.new").replace(folder / "model.safetensors")
    ids = {"bos_token_id": tokenizer.control["<|endoftext|>"], "eos_token_id": tokenizer.control[PHI2.stop]}
    (folder / "config.json").write_text(json.dumps({**CONFIG, **ids}, indent=2) + "\n", "utf-8")


class TrainingModel(nn.Module):
    """The model, and a head that predicts what each patch shows; the head is for training only and is not saved.

    Answers alone train the tower slowly: each says little, and not where it is. The labels of the patches say it
    directly: which thing and character, which index in the code, the thing's box, and how many are alike.
    """

    def __init__(self, model: ImpModel):
        super().__init__()
        self.model = model
        self.head = nn.Linear(model.config.vision.hidden_size, sum(LABEL_SIZES))

    def encode(self, pixels: Tensor, labels: Labels, head_alone: bool = False) -> tuple[Tensor, Tensor]:
        """The tower's features (batch, patches, width), and the summed losses of the patches' labels."""
        features = self.model.vision(pixels)
        seen = features.detach() if head_alone else features
        *looks, boxes, numbers, characters, ordinals = self.head(seen).float().split(LABEL_SIZES, dim=-1)
        loss = F.cross_entropy(looks[0].flatten(0, 1), labels.looks[..., 0].flatten())
        has_thing = labels.looks[..., 0] > 0
        if has_thing.any():
            loss = loss + BOXES_WEIGHT * F.l1_loss(boxes.sigmoid()[has_thing], labels.boxes[has_thing])
            for logits, values in zip(looks[1:], labels.looks[has_thing].unbind(-1)[1:], strict=True):
                loss = loss + LOOKS_WEIGHT * F.cross_entropy(logits[has_thing], values)
            numbers = numbers.unflatten(-1, (NUMBERS, -1))[has_thing]
            loss = loss + NUMBERS_WEIGHT * F.cross_entropy(numbers.flatten(0, 1), labels.numbers[has_thing].flatten())
        characters = characters.unflatten(-1, (ACROSS, -1))
        written = labels.characters > 0
        blank = F.cross_entropy(characters[~written], labels.characters[~written])
        loss = loss + 0.5 * blank
        if written.any():
            loss = loss + 0.5 * F.cross_entropy(characters[written], labels.characters[written])
            order = ordinals.unflatten(-1, (ACROSS, -1))[written]
            loss = loss + 0.25 * F.cross_entropy(order, labels.content_ids[written] % ORDINALS)
        return features, loss

    def answer_loss(
        self, features: Tensor, labels: Labels, opening: Tensor, tokens: Tokens, names: list[list[str]]
    ) -> tuple[Tensor, list[tuple[str, bool]]]:
        """The answers' loss, and each turn's column of the log with whether its answer is right.

        The loss is the mean cross-entropy over the answers' tokens, plus how little each guided head attends to the
        patches that show the target of the next token: without it the model needs longer to find that letters are read
        one after the other than to recognize them. Greedy decoding gives an answer exactly if each of its tokens is the
        likeliest after the true ones before it.
        """
        model, embed = self.model, self.model.decoder.embed_tokens
        ids = tokens.ids
        x = torch.cat((embed(opening).expand(len(ids), -1, -1), model.projector(features), embed(ids[:, :-1])), dim=1)
        mask, positions = branch_mask(tokens.branches[:, :-1], x.shape[1])
        rope = rope_at(positions, model.config.decoder, x.device)
        hidden, guided_input = self.blocks(x, rope, mask)
        taught = tokens.owners[:, 1:] != IGNORED
        logits = model.decoder.logits(hidden[:, -taught.shape[1] :][taught])
        loss = F.cross_entropy(logits, ids[:, 1:][taught])
        for head, spells in enumerate((True, False)):
            wanted = torch.where((tokens.targets < THING) == spells, tokens.targets, IGNORED)[:, 1:]
            loss = loss + ATTENTION_WEIGHT * self._attention_loss(
                head, guided_input, rope, mask, len(opening), labels.content_ids, wanted
            )
        right = torch.ones_like(taught)
        right[taught] = logits.argmax(dim=-1) == ids[:, 1:][taught]
        results = [
            (name, bool(right[row][tokens.owners[row, 1:] == turn].all()))
            for row, turns in enumerate(names)
            for turn, name in enumerate(turns)
        ]
        return loss, results

    def blocks(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's last hidden states, and what the guided layer's attention is given."""
        guided = x
        for index, layer in enumerate(self.model.decoder.layers):
            if index == GUIDED_LAYER:
                guided = layer.norm(x)
            x = layer(x, rope, mask, None, index)
        return self.model.decoder.norm(x), guided

    def _attention_loss(
        self,
        index: int,
        hidden: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor,
        start: int,
        content_ids: Tensor,
        wanted: Tensor,
    ) -> Tensor:
        """Mean of -log of the attention that head `index` gives to the patches whose content each token wants."""
        attention = self.model.decoder.layers[GUIDED_LAYER].attention
        width, patches, count = hidden.shape[-1], content_ids.shape[1], wanted.shape[1]
        head = width // attention.num_heads
        target = (content_ids[:, None] == wanted[..., None, None]).any(dim=-1) & (wanted != IGNORED)[..., None]
        found = target.any(dim=-1)
        if not found.any():
            return hidden.new_zeros(())
        weight, bias = attention.qkv.weight, attention.qkv.bias
        q, k = (
            F.linear(hidden, weight[i : i + head], bias[i : i + head]) for i in (index * head, width + index * head)
        )
        for part in (q, k):
            rotate(part[:, :, None], rope)
        q, k = q.float(), k.float()
        scores = q[:, -count:] @ k.transpose(1, 2) / math.sqrt(head)
        shares = scores.masked_fill(~mask[:, 0, -count:], -math.inf).softmax(dim=-1)[..., start : start + patches]
        return -(shares * target).sum(dim=-1)[found].clamp(min=1e-6).log().mean()


def branch_mask(branches: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Which positions each one may see, bool (batch, 1, length, length), and where each stands, int (batch, length).

    `branches`, int (batch, n), are those of the last n positions; the ones before are an opening that all see. Each
    branch sees itself up to its own position, and is counted from the end of the opening.
    """
    batch, count = branches.shape
    order = torch.arange(length, device=branches.device)
    opening = length - count
    whole = F.pad(branches, (opening, 0), value=-2)
    same = (whole[:, None, :] == whole[:, :, None]) | (order < opening)
    mask = same & (order <= order[:, None])
    first = torch.ones_like(branches, dtype=torch.bool)
    first[:, 1:] = branches[:, 1:] != branches[:, :-1]
    begins = torch.where(first, order[:count], 0).cummax(dim=1).values
    positions = torch.cat((order[:opening].expand(batch, -1), opening + order[:count] - begins), dim=1)
    return mask[:, None], positions


def init_from(folder: Path, model: ImpModel) -> None:
    """Copy an earlier imp-nano's weights into a new model. Raises SettingError for other checkpoints.

    The earlier one may have fewer layers in its vision tower. Some of them are then copied more than once, spread
    evenly, and all copies but the first add nothing at first: the model computes what it did before (block expansion,
    C. Wu and others, arXiv:2401.02415).
    """
    TextTokenizer(folder)  # raises for a folder without one
    before, _ = load_weights(folder, torch.device("cpu"), torch.float32)
    had, has = len(before.vision.encoder.layers), len(model.vision.encoder.layers)
    if had > has:
        raise SettingError(f"{folder} is no imp-nano to begin from: its tower has {had} layers instead of {has}.")
    copied = [at * had // has for at in range(has)]
    again = {at for at in range(1, has) if copied[at] == copied[at - 1]}
    old = dict(before.named_parameters())
    for name, parameter in model.named_parameters():
        layer = TOWER_LAYER.match(name)
        source = f"{layer[1]}{copied[int(layer[2])]}{layer[3]}" if layer else name
        if source not in old or old[source].shape != parameter.shape:
            found = tuple(old[source].shape) if source in old else "missing"
            raise SettingError(
                f"{folder} is no imp-nano to begin from: its {source} is {found} instead of {tuple(parameter.shape)}."
            )
        adds_nothing = layer and int(layer[2]) in again and layer[3].startswith((".self_attn.out_proj", ".mlp.fc2"))
        with torch.no_grad():
            parameter.copy_(torch.zeros_like(parameter) if adds_nothing else old[source])


def steer(results: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    """How often each skill is asked about next, by its share of wrong answers: 1 for the mean, LEAST to MOST.

    Only the skills that are asked about drawings are weighed: about a page with text alone all is asked that can be.
    The weight of "locate" is always LEAST: its answer counts as right only if every digit is exact, and a box can be
    good without that.
    """
    weighed = {*LESSONS, "second_turn"} - {"locate"}
    wrong = {name: 1 - sum(right) / len(right) for name, right in results.items() if right and name in weighed}
    mean = sum(wrong.values()) / max(1, len(wrong))
    weights = {skill: min(MOST, max(LEAST, share / mean)) if mean else 1.0 for skill, share in wrong.items()}
    return weights | {"locate": LEAST}


def make_optimizers(learner: TrainingModel, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks and the projector, AdamW for all else. Raises SettingError without Muon.

    Muon (K. Jordan and others, 2024) turns the mean gradient of a matrix into the nearest orthogonal one, so that all
    its directions are learned alike. Its steps are scaled to be as large as AdamW's (J. Liu and others,
    arXiv:2502.16982), so both have one learning rate.
    """
    if not hasattr(torch.optim, "Muon"):
        raise SettingError(f"Training needs torch 2.9 or newer; this is {torch.__version__}. Try: pip install -U torch")
    model = learner.model
    vision, decoder = model.vision.embeddings, model.decoder
    apart = {*vision.parameters(), *decoder.embed_tokens.parameters(), *decoder.lm_head.parameters()}
    matrices = [p for p in model.parameters() if p.ndim == 2 and p not in apart]
    tables = [p for p in model.parameters() if p.ndim >= 2 and p in apart]
    others = [p for p in model.parameters() if p.ndim < 2]
    rate, decay = config.learning_rate, config.weight_decay
    muon = torch.optim.Muon(
        [{"params": matrices, "times": 1.0}], lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
    )
    groups = [
        {"params": tables, "weight_decay": decay, "times": 1.0},
        {"params": others, "weight_decay": 0.0, "times": 1.0},
        {"params": [*learner.head.parameters()], "weight_decay": 0.0, "times": HEAD_RATE},
    ]
    return [muon, torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))]


class Run:
    """A training in a folder: the network, its mean over the last steps, the optimizers, and how far it has come."""

    def __init__(self, out: Path, config: TrainConfig, device: torch.device, start: Path | None):
        self.out, self.config, self.device = out, config, device
        self.learner = TrainingModel(new_model(config.seed)).to(device)
        self.optimizers = make_optimizers(self.learner, config)
        self.done, self.seconds, self.skipped = 0, 0.0, 0
        self.weights: dict[str, float] = {}
        # Without `start` an earlier run goes on, whatever it began from.
        self.start = digest(start, loaded_files(start)) if start else None
        state = self._state()
        # A CPU without instructions for bf16 takes twenty times as long in it as in fp32. Measured once: on a busy
        # machine the same measurement may come out differently, and a resumed run would be another one.
        self.bf16 = state["bf16"] if state else device.type == "cuda" or bf16_is_faster()
        if state is None:
            if (out / "model.safetensors").exists():
                raise SettingError(f"{out} holds a checkpoint, and no state of a run; choose another folder.")
            if start:
                init_from(start, self.learner.model)
                copyfile(start / "tokenizer.json", out / "tokenizer.json")
            else:
                make_tokenizer(out, config.seed)
            (out / "log.csv").unlink(missing_ok=True)
        else:
            self.done, self.seconds, self.skipped = state["done"], state["seconds"], state["skipped"]
            self.weights, self.start = state["weights"], state["start"]
            _forget(out / "log.csv", self.done)
        self.tokenizer = TextTokenizer(out)
        self.opening = torch.tensor(self.tokenizer.encode_pieces(PHI2.open()), device=device)
        self.mean = AveragedModel(self.learner.model, multi_avg_fn=get_ema_multi_avg_fn(config.averaging))
        if state is not None:
            self._load(state)

    def _load(self, state: dict) -> None:
        """Take over the networks and the optimizers of a state. Raises SettingError for others than this version's."""
        try:
            self.learner.load_state_dict(state["learner"])
            self.mean.load_state_dict(state["mean"])
            for optimizer, before in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(before)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SettingError(f"{OTHER_STATE.format(self.out)} ({str(error).splitlines()[0]:.80})") from None

    def _state(self) -> dict | None:
        """What an earlier run in this folder left, if it was of this plan. Raises SettingError if it was not."""
        file = self.out / "state.pt"
        if not file.exists():
            return None
        other = OTHER_STATE.format(self.out)
        try:
            state = torch.load(file, map_location=self.device, weights_only=True)
        except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
            raise SettingError(f"{other} ({str(error).splitlines()[0]:.80})") from None
        before = state.get("plan", {}) if isinstance(state, dict) else {}
        if before.keys() != asdict(self.config).keys() or not state.keys() >= STATE:
            raise SettingError(other)
        now = asdict(self.config)
        decaying = state["done"] > (1 - self.config.decay) * min(before["samples"], self.config.samples)
        # Until its rate falls a run does not depend on its end.
        allowed = set() if decaying else {"samples"}
        differing = [
            f"{name} {before[name]} instead of {now[name]}"
            for name in sorted(now)
            if before[name] != now[name] and name not in allowed
        ]
        if differing:
            raise SettingError(
                f"{self.out} holds a run of another plan ({'; '.join(differing)}); choose another folder, or go on "
                "with the plan that it has."
            )
        if self.start not in (None, state["start"]):
            raise SettingError(f"{self.out} holds a run that began from other weights; choose another folder.")
        return state

    def kernels(self) -> AbstractContextManager:
        """What computes its layers while it learns: on a CPU in bf16 the quicker ways of kernels.py."""
        return LearningKernels() if self.bf16 and self.device.type == "cpu" else nullcontext()

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, list[tuple[str, bool]]]:
        """The losses of a batch's answers and patches; each turn's column of the log, with whether its answer is right.

        Without conversations the first is 0 and the last empty.
        """
        pixels, labels, tokens, names = batch
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            labels = Labels(*(part.to(self.device) for part in labels))
            head_alone = self.done < self.config.head_alone
            features, patch_loss = self.learner.encode(pixels.to(self.device), labels, head_alone)
            if not self.config.has_conversations(self.done) or not any(names):
                return torch.zeros(()), patch_loss, []
            tokens = Tokens(*(part.to(self.device) for part in tokens))
            answer_loss, answered = self.learner.answer_loss(features, labels, self.opening, tokens, names)
        return answer_loss, patch_loss, answered

    def update(self, loss: Tensor, rate: float) -> bool:
        """One step at a learning rate; where the loss or its gradient is no number, none, and False."""
        self.learner.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.learner.parameters(), 1.0)
        if not torch.isfinite(norm + loss.detach()):
            return False
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["times"] * rate
            optimizer.step()
        self.mean.update_parameters(self.learner.model)
        return True

    def save(self) -> None:
        """The state to go on from, and the mean as a checkpoint; each replaces what was there when it is written."""
        state = {
            "plan": asdict(self.config),
            "start": self.start,
            "learner": self.learner.state_dict(),
            "mean": self.mean.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "done": self.done,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "weights": self.weights,
            "bf16": self.bf16,
        }
        with self._room():
            torch.save(state, self.out / "state.new")
            (self.out / "state.new").replace(self.out / "state.pt")
        self.save_checkpoint()

    def save_checkpoint(self) -> None:
        """The mean alone, as a checkpoint."""
        with self._room():
            save_checkpoint(self.mean.module, self.tokenizer, self.out)

    @contextmanager
    def _room(self) -> Iterator[None]:
        """For what is written: raises RunError where the disk is full, and leaves nothing unfinished."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:  # what torch and safetensors make of a full disk
            for unfinished in ("state.new", "model.new"):
                (self.out / unfinished).unlink(missing_ok=True)
            raise RunError(
                f"{self.out} could not be written after {self.done} samples ({str(error).splitlines()[0]}). Its last "
                "state is kept: make room and run the same again."
            ) from None


def train(
    out: Path,
    config: TrainConfig,
    device: str = "cpu",
    start: Path | None = None,
    report_every: int = 4_000,
) -> None:
    """Train into the folder `out`: state.pt to resume from, log.csv, and a checkpoint as `imp_kit.load` reads it.

    A new run begins from nothing, or from the checkpoint in the folder `start`. A run in `out` goes on where it
    stopped.

    A step whose loss or gradient is no number is left out and counted. Raises SettingError for a run of another plan;
    RunError where three steps in a row are no numbers, or the disk is full. The last state is kept.
    """
    chosen = choose_device(device)
    out.mkdir(parents=True, exist_ok=True)
    run = Run(out, config, chosen, start)
    bar = tqdm(total=config.samples, initial=run.done, unit="sample", mininterval=10)
    if run.done:
        run.save_checkpoint()  # a run that was killed in between has a state and no checkpoint of it
    with run.kernels(), bar:
        while run.done < config.samples:
            stop = min((run.done // report_every + 1) * report_every, config.samples)
            losses, results = _learn(run, stop, bar)
            if config.steered and any(results.values()):
                run.weights = steer(results)
            _report(out / "log.csv", run, losses, results)
            run.save()


def _learn(run: Run, stop: int, bar: tqdm) -> tuple[list[tuple[float, float]], dict[str, list[bool]]]:
    """Learn from the samples up to `stop`: the losses of answers and patches, and which answers were right by name."""
    config = run.config
    losses: list[tuple[float, float]] = []
    results: dict[str, list[bool]] = defaultdict(list)
    bad_steps, begun = 0, time.perf_counter() - run.seconds
    loader = DataLoader(
        Lessons(config, run.out, range(run.done, stop), run.weights),
        config.batch,
        collate_fn=collate,
        # They draw while the model learns; spawned, since tokenizers must not be forked.
        num_workers=max(1, (os.cpu_count() or 1) - 1),
        prefetch_factor=8,
        multiprocessing_context="spawn",
        worker_init_fn=_end_with_the_trainer,
    )
    for batch in loader:
        rate = config.rate(run.done)
        answer_loss, patch_loss, answered = run.losses(batch)
        size = len(batch[0])
        run.done += size
        if run.update(answer_loss + patch_loss, rate):
            bad_steps = 0
            losses.append((answer_loss.item() if answered else math.nan, patch_loss.item()))
        else:
            run.skipped += 1
            bad_steps += 1
        if bad_steps == BAD_STEPS:
            raise RunError(
                f"The loss was no number in {BAD_STEPS} steps in a row, after {run.done} samples. The last state in "
                f"{run.out} is kept. Begin from its checkpoint in another folder (--start), with another seed."
            )
        bar.update(size)
        for name, right in answered:
            results[name].append(right)
    run.seconds = time.perf_counter() - begun
    bar.set_postfix(patch_loss=f"{np.mean(losses, axis=0)[1]:.3f}" if losses else "")
    return losses, results


def _end_with_the_trainer(_: int) -> None:
    """End a process that draws once the one that learns has ended, also where that was killed.

    torch looks for that, too, but misses it where the other ended while this one began.
    """

    def wait() -> None:
        trainer = multiprocessing.parent_process()
        assert trainer, "only a process that another one began draws"
        trainer.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _forget(log_file: Path, done: int) -> None:
    """Take out lines of the log that were written after the last state was."""
    if not log_file.exists():
        return
    with log_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [row for row in rows if int(row["samples"]) <= done]
    new = log_file.with_suffix(".new")
    with new.open("w", newline="") as file:
        writer = csv.DictWriter(file, LOG)
        writer.writeheader()
        writer.writerows(kept)
    new.replace(log_file)


def _report(log_file: Path, run: Run, losses: list[tuple[float, float]], results: dict[str, list[bool]]) -> None:
    """Add a line to the log: samples, seconds, skipped steps, mean losses, share of exactly right answers by name."""
    new = not log_file.exists()
    with log_file.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(LOG)
        # A batch without conversations has no loss of answers.
        means = (
            f"{np.mean(kind):.4f}" if len(kind) else ""
            for kind in ([a for a, _ in losses if a == a], [b for _, b in losses])
        )
        scores = (f"{np.mean(results[name]):.4f}" if results[name] else "" for name in LOGGED)
        writer.writerow([run.done, round(run.seconds), run.skipped, *means, *scores])
