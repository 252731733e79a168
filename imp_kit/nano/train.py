"""Trains imp-nano from nothing on the kit's own drawings; stops and resumes at any time.

python -m imp_kit.nano train --out runs/nano --samples 200000
"""

import csv
import json
import math
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from imp_kit.errors import SettingError
from imp_kit.images import to_pixels
from imp_kit.layouts import NEW_PHI
from imp_kit.machine import choose_device
from imp_kit.model.config import parse_config
from imp_kit.model.imp import ImpModel
from imp_kit.model.weights import slots
from imp_kit.nano.draw import COLORS, KINDS, Scene, draw, sample_scene
from imp_kit.nano.lessons import SKILLS, Turn, conversation
from imp_kit.prompts import PHI2, SYSTEM
from imp_kit.tokens import TextTokenizer

VOCABULARY = 1024  # rows; as in Phi-2, the tokenizer fills fewer of them
CONTROL = ("<|endoftext|>", "</s>", "<image>")  # behind the learned vocabulary, as in Phi-2's tokenizer
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
        "num_hidden_layers": 7,  # six are used and stored, see mm_vision_select_layer
        "num_attention_heads": 4,
        "patch_size": 14,
        "image_size": 140,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu_pytorch_tanh",
    },
}
IGNORED = -100
PATCH_LABELS = (*KINDS, *COLORS, *(f"{line} {third}" for line in ("column", "row") for third in range(3)))
COVERED = 0.3
PATCH_WEIGHT = 4.0  # of the patches' loss, whose mean is over many labels that are mostly 0
TRAINING, VOCABULARY_TEXT = 1, 2  # streams of random numbers; evaluate.py has its own
PEOPLE_SHARE = 0.12
ALONE, MIXED = 14_000, 24_000  # samples; see `lesson`
TURNS = 6  # questions about one picture, as one conversation


@dataclass(frozen=True)
class Plan:
    """How long and how fast imp-nano learns. A run is a function of these values and the versions of its libraries."""

    samples: int = 88_000
    seeing: int = 10_000  # the first of them: only the tower learns, from the patches' labels
    together: int = 28_000  # up to here every batch has its conversations, then one of `talk_every`:
    talk_every: int = 4  # shapes are what is learned last, and a batch that is only seen takes a quarter of the time
    closing: int = 14_000  # the last samples: every batch again
    seed: int = 0  # of drawings and weights; evaluation draws from other streams
    batch: int = 16
    learning_rate: float = 6e-4
    warm_up: int = 4_000  # samples
    decay: float = 0.25  # share of the run, at its end
    weight_decay: float = 0.05

    def __post_init__(self):
        if self.samples < 1 or self.batch < 1 or self.seed < 0:
            raise SettingError(f"{self}: give at least one sample, a batch of at least one, and a seed from 0.")

    def talks(self, done: int) -> bool:
        """Whether the batch after `done` samples comes with its conversations."""
        if done < self.together or done >= self.samples - self.closing:
            return done >= self.seeing
        return done // self.batch % self.talk_every == 0

    def rate(self, done: int) -> float:
        """Learning rate after `done` samples: warm-up, then constant, then linearly down to nearly nothing.

        Until the decay begins a run does not depend on `samples`, so a run can be made longer while it goes.
        """
        left = (self.samples - done) / (self.decay * self.samples)
        return self.learning_rate * min((done + self.batch) / self.warm_up, 1.0, max(left, 0.01))


def lesson(plan: Plan, index: int) -> tuple[Scene, Image.Image, list[Turn]]:
    """Sample `index` of a training stream: a scene, its drawing, and a conversation about it.

    The first ALONE samples show one thing, so that a question needs no search for the thing it is about; by MIXED all
    kinds of scenes come as they are drawn.
    """
    rng = np.random.default_rng([TRAINING, plan.seed, index])
    alone = rng.random() < (MIXED - index) / (MIXED - ALONE)
    # People come once in twelve things, too rarely for all that is asked about what they hold.
    person = rng.random() < PEOPLE_SHARE
    while True:
        scene = sample_scene(rng)
        fits = not person or any(thing.kind == "person" for thing in scene.things)
        if fits and (len(scene.things) == 1 or not alone):
            break
    return scene, draw(scene, rng), conversation(scene, rng, TURNS)


def patch_labels(scene: Scene, side: int) -> Tensor:
    """What each of side x side patches shows: 0 or 1, float (side * side, labels), all 0 where it is background.

    The labels are the thing's kind, its colors, and the column and row of the picture's thirds that hold its centre.
    A patch shows a thing if the thing's box covers at least COVERED of it.
    """
    labels = torch.zeros(side, side, len(PATCH_LABELS))
    edges = np.arange(side + 1) / side
    for thing in scene.things:
        x0, y0, x1, y1 = thing.box
        across = np.clip(np.minimum(edges[1:], x1) - np.maximum(edges[:-1], x0), 0, None) * side
        down = np.clip(np.minimum(edges[1:], y1) - np.maximum(edges[:-1], y0), 0, None) * side
        shown = torch.from_numpy(np.outer(down, across) >= COVERED)
        labels[shown] = 0.0
        names = [thing.kind, *thing.colors, f"column {thing.column}", f"row {thing.row}"]
        for name in names:
            labels[..., PATCH_LABELS.index(name)][shown] = 1.0
    return labels.flatten(0, 1)


def encode_turns(tokenizer: TextTokenizer, turns: list[Turn]) -> tuple[list[int], list[int]]:
    """A conversation behind the picture as token ids and, for each id, the turn that it answers (or IGNORED)."""
    ids: list[int] = []
    owners: list[int] = []
    for number, turn in enumerate(turns):
        asked = tokenizer.encode_pieces(PHI2.ask(turn.question, first=number == 0))
        # The stop mark that opens a later turn ends the answer before it, and is learned with it.
        ids += asked
        owners += [IGNORED] * len(asked)
        if number:
            owners[-len(asked)] = number - 1
        answer = tokenizer.encode(" " + turn.answer)
        ids += answer
        owners += [number] * len(answer)
    return [*ids, tokenizer.control[PHI2.stop]], [*owners, len(turns) - 1]


class Lessons(Dataset):
    """Samples `start` to `stop` of a training stream, drawn when asked for."""

    def __init__(self, plan: Plan, tokenizer_folder: Path, start: int):
        self.plan, self.start = plan, start
        self.tokenizer = TextTokenizer(tokenizer_folder)

    def __len__(self) -> int:
        return self.plan.samples - self.start

    def __getitem__(self, index: int):
        vision = CONFIG["vision_config"]
        scene, picture, turns = lesson(self.plan, self.start + index)
        pixels = to_pixels(picture, vision["image_size"])
        labels = patch_labels(scene, vision["image_size"] // vision["patch_size"])
        return pixels, labels, *encode_turns(self.tokenizer, turns), [turn.skill for turn in turns]


def collate(samples: list) -> tuple[Tensor, Tensor, Tensor, Tensor, list[list[str]]]:
    """Stack samples, padded at the right where nothing looks: a causal model never sees what follows."""
    pixels, labels, ids, owners, skills = zip(*samples, strict=True)
    width = max(map(len, ids))
    padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    marks = torch.tensor([row + [IGNORED] * (width - len(row)) for row in owners])
    return torch.stack(pixels), torch.stack(labels), padded, marks, list(skills)


def make_tokenizer(folder: Path, seed: int) -> TextTokenizer:
    """Learn a byte-level BPE from conversations of the training stream and write it as tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    rng = np.random.default_rng([VOCABULARY_TEXT, seed])
    turns = chain.from_iterable(conversation(sample_scene(rng), rng, TURNS) for _ in range(20_000))
    text = chain.from_iterable((PHI2.first.strip().replace("{}", turn.question), " " + turn.answer) for turn in turns)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain(text, [SYSTEM + " USER: "] * 1000), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    tokenizer.save(str(folder / "tokenizer.json"))
    return TextTokenizer(folder)


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
                # So that a patch's place counts as much as its colors from the start.
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


class Pupil(nn.Module):
    """The model, and a head that names what each patch shows; the head is for learning only and is not kept.

    Answers alone teach the tower slowly: each says little, and not where it is to be seen. The patches' labels, known
    from the scene, say it at once, and a sample without a conversation costs a quarter of one with it.
    """

    def __init__(self, model: ImpModel):
        super().__init__()
        self.model = model
        self.head = nn.Linear(model.config.vision.hidden_size, len(PATCH_LABELS))

    def see(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The tower's features (batch, patches, width), and the mean cross-entropy of the patches' labels."""
        features = self.model.vision(pixels)
        return features, F.binary_cross_entropy_with_logits(self.head(features).float(), labels)

    def talk(self, features: Tensor, opening: Tensor, ids: Tensor, owners: Tensor, skills: list[list[str]]):
        """Mean cross-entropy over the answers' tokens, and each turn's skill with whether its answer is right.

        Greedy decoding gives an answer exactly if each of its tokens is the likeliest after the true ones before it.
        """
        model, embed = self.model, self.model.decoder.embed_tokens
        x = torch.cat((embed(opening).expand(len(ids), -1, -1), model.projector(features), embed(ids[:, :-1])), dim=1)
        hidden = model.decoder(x)[:, -(ids.shape[1] - 1) :]
        taught = owners[:, 1:] != IGNORED
        logits = model.decoder.logits(hidden[taught])
        said = F.cross_entropy(logits, ids[:, 1:][taught])
        right = torch.ones_like(taught)
        right[taught] = logits.argmax(dim=-1) == ids[:, 1:][taught]
        results = [
            (skill, bool(right[row][owners[row, 1:] == turn].all()))
            for row, turns in enumerate(skills)
            for turn, skill in enumerate(turns)
        ]
        return said, results


def train(out: Path, plan: Plan, device: str = "cpu", report_every: int = 2_000) -> None:
    """Train into the folder `out`: state.pt to resume from, log.csv, and a checkpoint as `imp_kit.load` reads it.

    The folder goes on where it was; a folder of another plan is refused (SettingError).
    """
    device = choose_device(device)
    out.mkdir(parents=True, exist_ok=True)
    state_file, log_file = out / "state.pt", out / "log.csv"
    pupil = Pupil(new_model(plan.seed)).to(device)
    groups = [
        {"params": [p for p in pupil.parameters() if p.ndim >= 2], "weight_decay": plan.weight_decay},
        {"params": [p for p in pupil.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.98))
    done = 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        before = Plan(**state["plan"])
        decaying = state["done"] > (1 - plan.decay) * min(before.samples, plan.samples)
        if before != plan and (decaying or before != replace(plan, samples=before.samples)):
            raise SettingError(f"{out} holds a run of another plan, {before}; choose another folder.")
        pupil.load_state_dict(state["pupil"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["done"]
        tokenizer = TextTokenizer(out)
        _forget(log_file, done)
    else:
        tokenizer = make_tokenizer(out, plan.seed)
        log_file.unlink(missing_ok=True)
    opening = torch.tensor(tokenizer.encode_pieces(PHI2.open()), device=device)
    loader = DataLoader(
        Lessons(plan, out, done),
        plan.batch,
        collate_fn=collate,
        num_workers=1,  # draws while the model learns; spawned, since tokenizers must not be forked
        prefetch_factor=8,
        multiprocessing_context="spawn",
    )
    losses: list[tuple[float, float]] = []
    results: dict[str, list[bool]] = defaultdict(list)
    next_report = (done // report_every + 1) * report_every
    with tqdm(total=plan.samples, initial=done, unit="sample", mininterval=10) as bar:
        for *tensors, skills in loader:
            for group in optimizer.param_groups:
                group["lr"] = plan.rate(done)
            with torch.autocast(device.type, torch.bfloat16):
                pixels, labels, ids, owners = (tensor.to(device) for tensor in tensors)
                features, seen = pupil.see(pixels, labels)
                said, answered = torch.zeros(()), []
                if plan.talks(done):
                    said, answered = pupil.talk(features, opening, ids, owners, skills)
            optimizer.zero_grad(set_to_none=True)
            (said + PATCH_WEIGHT * seen).backward()
            nn.utils.clip_grad_norm_(pupil.parameters(), 1.0)
            optimizer.step()
            done += len(skills)
            bar.update(len(skills))
            losses.append((said.item() if answered else math.nan, seen.item()))
            for skill, right in answered:
                results[skill].append(right)
            if done >= next_report or done >= plan.samples:
                next_report += report_every
                _report(log_file, done, losses, results)
                bar.set_postfix(patch_loss=f"{np.mean(losses, axis=0)[1]:.3f}")
                losses.clear()
                results.clear()
                save_checkpoint(pupil.model, tokenizer, out)
                # Written aside, then renamed: a run that is killed while it saves keeps its last state.
                aside = state_file.with_suffix(".new")
                torch.save(
                    {
                        "plan": asdict(plan),
                        "pupil": pupil.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "done": done,
                    },
                    aside,
                )
                aside.replace(state_file)


def _forget(log_file: Path, done: int) -> None:
    """Take out lines of the log that were written after the last state was."""
    with log_file.open(newline="") as file:
        head, *rows = csv.reader(file)
    with log_file.open("w", newline="") as file:
        csv.writer(file).writerows([head, *(row for row in rows if int(row[0]) <= done)])


def _report(log_file: Path, done: int, losses: list[tuple[float, float]], results: dict[str, list[bool]]) -> None:
    """Add a line to the log: samples, mean losses of answers and patches, share of exactly right answers by skill."""
    new = not log_file.exists()
    with log_file.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["samples", "loss", "patch_loss", *SKILLS])
        # A batch without conversations has no loss of answers.
        means = (
            f"{np.mean(kind):.4f}" if len(kind) else ""
            for kind in ([a for a, _ in losses if a == a], [b for _, b in losses])
        )
        scores = (f"{np.mean(results[skill]):.4f}" if results[skill] else "" for skill in SKILLS)
        writer.writerow([done, *means, *scores])
