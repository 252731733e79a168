"""Trains imp-nano on images that the kit draws; a run can be stopped and resumed at any time.

python -m imp_kit.nano train --out runs/nano --samples 200000
"""

import csv
import json
import math
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from imp_kit.checkpoints.config import parse_config
from imp_kit.checkpoints.key_maps import NEW_PHI
from imp_kit.checkpoints.load import load_weights
from imp_kit.checkpoints.plan import slots
from imp_kit.checkpoints.tokenizer import TextTokenizer
from imp_kit.device import bf16_is_faster, choose_device
from imp_kit.errors import SettingError
from imp_kit.experiments.drawings import Scene, draw, sample_scene
from imp_kit.images import to_pixels
from imp_kit.model.decoder import rotate
from imp_kit.model.imp import ImpModel
from imp_kit.nano.training.labels import (
    ACROSS,
    CHARACTERS,
    IGNORED,
    ORDINALS,
    THING,
    THING_LABELS,
    Labels,
    attention_targets,
    patch_labels,
)
from imp_kit.nano.training.lessons import SKILLS, Turn, conversation, outside_conversation, page_conversation
from imp_kit.nano.training.outside import sample_outside
from imp_kit.nano.training.text import LONGEST, Page, Style, sample_page
from imp_kit.prompts import PHI2, SYSTEM

VOCABULARY = 896  # rows: just enough to leave common words whole; the memory saved goes to the tower and the decoder
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
        "num_hidden_layers": 7,  # six are used and stored, see mm_vision_select_layer
        "num_attention_heads": 4,
        "patch_size": 16,
        "image_size": 192,  # the caption of the reading probe is then about 5 pixels a character
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu_pytorch_tanh",
    },
}
LOGGED = (*SKILLS, *(f"read_{length}" for length in range(1, LONGEST + 1)))  # "read" itself: two lines at once
LABEL_SIZES = (len(THING_LABELS), 4, ACROSS * (len(CHARACTERS) + 1), ACROSS * ORDINALS)
GUIDED_LAYER = 2  # of the decoder; its first head is trained to attend to the text that an answer spells, its second
# one to the thing that an answer is about
ATTENTION_WEIGHT = 0.3  # of the loss that trains these heads
THING_WEIGHT = 4.0  # of a loss whose mean is over many labels that are mostly 0
TRAINING, VOCABULARY_TEXT = 1, 2  # streams of random numbers; evaluate.py has its own
PEOPLE_SHARE = 0.12
TURNS = 6  # questions about one drawing, as one conversation
PAGE_TURNS = 4
LONGEST_CONVERSATION = 144  # tokens; the mean is 106, and one longer row would slow down a whole batch
FULL_SHARE = 0.9  # of pages, while only the tower learns: the more letters, the more it learns from an image
KINDS_OF_SAMPLES = ("scene", "page", "outside")


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast imp-nano learns.

    A run is a function of these values, the versions of its libraries, and whether the device learns in bf16.
    """

    samples: int = 148_000
    # The names of these fields are keys of state.pt, so that an older run can go on.
    seeing: int = 40_000  # the first samples: only the tower learns, from what each patch shows
    plain: int = 5_000  # up to here all texts are black on white in two faces; then more and more differ,
    varied: int = 25_000  # and from here all do
    shares: tuple[float, float, float] = (0.5, 0.43, 0.07)  # of drawings, pages with text, and neither;
    seeing_shares: tuple[float, float, float] = (0.37, 0.6, 0.03)  # in batches from which only the tower learns
    talk_every: int = 2  # then every second batch has conversations; one without them takes a third of the time
    lengthening: int = 1_000  # when conversations begin, texts have one character; one more each time after so many
    seed: int = 0  # of drawings and weights; evaluation draws from other streams
    batch: int = 16
    learning_rate: float = 1.2e-3
    warm_up: int = 1_000  # samples
    decay: float = 0.52  # share of the run, at its end
    weight_decay: float = 0.05

    def __post_init__(self):
        if self.samples < 1 or self.batch < 1 or self.seed < 0:
            raise SettingError(f"{self}: give at least one sample, a batch of at least one, and a seed from 0.")

    def has_conversations(self, done: int) -> bool:
        """Whether the batch after `done` samples has conversations."""
        return done >= self.seeing and done // self.batch % self.talk_every == 0

    def style(self, index: int) -> Style:
        """Which texts sample `index` may show: while only the tower learns, of any length, but at first all plain."""
        longest = LONGEST if index < self.seeing else min(LONGEST, 1 + (index - self.seeing) // self.lengthening)
        variety = (index - self.plain) / (self.varied - self.plain)
        return Style(longest, variety=min(1.0, max(0.0, variety)))

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
        samples=150_000,
        seeing=0,
        plain=-1,
        varied=0,
        shares=(0.46, 0.45, 0.09),
        lengthening=1,
        seed=2,
        learning_rate=1e-3,
        warm_up=2_000,
        decay=0.74,
    ),
}


def lesson(config: TrainConfig, index: int) -> tuple[Page, Image.Image, list[Turn]]:
    """Sample `index` of a training stream: what it shows, its image, and a conversation about it.

    A drawing without text is a page without lines; an image that is no drawing is a page without lines and things.
    """
    rng = np.random.default_rng([TRAINING, config.seed, index])
    kind = rng.choice(KINDS_OF_SAMPLES, p=config.shares if config.has_conversations(index) else config.seeing_shares)
    if kind == "outside":
        return Page((), Scene((), (1, 1))), sample_outside(rng), outside_conversation(rng, 2)
    if kind == "page" and not config.has_conversations(index) and rng.random() < FULL_SHARE:
        return *sample_page(rng, config.style(index), "full"), []
    if kind == "page":
        page, image = sample_page(rng, config.style(index))
        return page, image, page_conversation(page, rng, PAGE_TURNS)
    # One thing in twelve is a person: too few for the questions about what people hold.
    person = rng.random() < PEOPLE_SHARE
    scene = sample_scene(rng)
    while person and not any(thing.kind == "person" for thing in scene.things):
        scene = sample_scene(rng)
    image, scene = draw(scene, rng)
    return Page((), scene), image, conversation(scene, rng, TURNS)


def encode_turns(tokenizer: TextTokenizer, turns: list[Turn], page: Page) -> tuple[list[int], list[int], list[int]]:
    """A conversation after the image: token ids, and for each the turn that it answers and its attention target.

    The last two are IGNORED for what is no answer, and for what has no target. Turns that no longer fit into
    LONGEST_CONVERSATION are left out, but never the first.
    """
    ids: list[int] = []
    owners: list[int] = []
    targets: list[int] = []
    for number, turn in enumerate(turns):
        asked = tokenizer.encode_pieces(PHI2.ask(turn.question, first=number == 0))
        answer = tokenizer.encode(" " + turn.answer)
        if number and len(ids) + len(asked) + len(answer) > LONGEST_CONVERSATION:
            break
        # The stop mark that opens a later turn ends the answer before it, and is learned with it.
        ids += asked
        owners += [IGNORED] * len(asked)
        if number:
            owners[-len(asked)] = number - 1
        ids += answer
        owners += [number] * len(answer)
        targets += [IGNORED] * (len(ids) - len(answer) - len(targets)) + attention_targets(
            tokenizer, answer, turn, page
        )
    return [*ids, tokenizer.control[PHI2.stop]], [*owners, max(owners, default=IGNORED)], [*targets, IGNORED]


def _log_name(page: Page, turn: Turn) -> str:
    """The column of the log that counts a turn: its skill, reading by length where there is one code or word."""
    one = turn.skill == "read" and len(page.lines) == 1
    return f"read_{len(page.lines[0].text)}" if one else turn.skill


class Lessons(Dataset):
    """Samples `start` to `stop` of a training stream, drawn when asked for."""

    def __init__(self, config: TrainConfig, tokenizer_folder: Path, start: int):
        self.config, self.start = config, start
        self.tokenizer = TextTokenizer(tokenizer_folder)

    def __len__(self) -> int:
        return self.config.samples - self.start

    def __getitem__(self, index: int):
        vision = CONFIG["vision_config"]
        page, image, turns = lesson(self.config, self.start + index)
        pixels = to_pixels(image, vision["image_size"])
        labels = patch_labels(page, vision["image_size"] // vision["patch_size"])
        ids, owners, targets = encode_turns(self.tokenizer, turns, page)
        names = [_log_name(page, turn) for turn in turns[: max(0, owners[-1] + 1)]]
        return pixels, labels, ids, owners, targets, names


def collate(samples: list) -> tuple[Tensor, Labels, Tensor, Tensor, Tensor, list[list[str]]]:
    """Stack samples, padded at the right: a causal model never attends to what follows."""
    pixels, labels, ids, owners, targets, skills = zip(*samples, strict=True)
    width = max(map(len, ids))

    def padded(rows, filling: int) -> Tensor:
        return torch.tensor([row + [filling] * (width - len(row)) for row in rows])

    stacked = Labels(*(torch.stack(kind) for kind in zip(*labels, strict=True)))
    tokens = (padded(ids, 0), padded(owners, IGNORED), padded(targets, IGNORED))
    return torch.stack(pixels), stacked, *tokens, list(skills)


def make_tokenizer(folder: Path, seed: int) -> TextTokenizer:
    """Learn a byte-level BPE from conversations of the training stream and write it as tokenizer.json.

    Capitals and digits of codes and boxes are a token each: what is read is spelled, and no code is cut by chance.
    """
    tokenizer = Tokenizer(models.BPE())
    apart = pre_tokenizers.Split(Regex(r" ?USER:| ?ASSISTANT:| ?0\.|[A-Z0-9](?![a-z])"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([apart, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    rng = np.random.default_rng([VOCABULARY_TEXT, seed])
    turns: list[Turn] = []
    for _ in range(8_000):
        turns += conversation(sample_scene(rng), rng, TURNS)
        turns += page_conversation(sample_page(rng)[0], rng, PAGE_TURNS)
        turns += outside_conversation(rng, 1)
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
    directly: which thing and character, which index in the code, and the thing's box.
    """

    def __init__(self, model: ImpModel):
        super().__init__()
        self.model = model
        self.head = nn.Linear(model.config.vision.hidden_size, sum(LABEL_SIZES))

    def encode(self, pixels: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        """The tower's features (batch, patches, width), and the summed losses of the patches' labels."""
        features = self.model.vision(pixels)
        things, boxes, characters, ordinals = self.head(features).float().split(LABEL_SIZES, dim=-1)
        loss = THING_WEIGHT * F.binary_cross_entropy_with_logits(things, labels.things)
        has_thing = labels.things.any(dim=-1)
        if has_thing.any():
            loss = loss + F.l1_loss(boxes.sigmoid()[has_thing], labels.boxes[has_thing])
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
        self,
        features: Tensor,
        labels: Labels,
        opening: Tensor,
        ids: Tensor,
        owners: Tensor,
        targets: Tensor,
        skills: list[list[str]],
    ):
        """The answers' loss, and each turn's skill with whether its answer is right.

        The loss is the mean cross-entropy over the answers' tokens, plus how little each guided head attends to the
        patches that show the target of the next token: without it the model needs longer to find that letters are read
        one after the other than to recognize them. Greedy decoding gives an answer exactly if each of its tokens is the
        likeliest after the true ones before it.
        """
        model, embed = self.model, self.model.decoder.embed_tokens
        x = torch.cat((embed(opening).expand(len(ids), -1, -1), model.projector(features), embed(ids[:, :-1])), dim=1)
        attention = model.decoder.layers[GUIDED_LAYER].attention
        attention_inputs: list[tuple] = []
        hook = attention.register_forward_pre_hook(lambda _, inputs: attention_inputs.append(inputs))
        hidden = model.decoder(x)[:, -(ids.shape[1] - 1) :]
        hook.remove()
        taught = owners[:, 1:] != IGNORED
        logits = model.decoder.logits(hidden[taught])
        loss = F.cross_entropy(logits, ids[:, 1:][taught])
        for head, spells in enumerate((True, False)):
            wanted = torch.where((targets < THING) == spells, targets, IGNORED)[:, 1:]
            layer_input, rope = attention_inputs[0][:2]
            guided = self._attention_loss(attention, head, layer_input, rope, len(opening), labels.content_ids, wanted)
            loss = loss + ATTENTION_WEIGHT * guided
        right = torch.ones_like(taught)
        right[taught] = logits.argmax(dim=-1) == ids[:, 1:][taught]
        results = [
            (skill, bool(right[row][owners[row, 1:] == turn].all()))
            for row, turns in enumerate(skills)
            for turn, skill in enumerate(turns)
        ]
        return loss, results

    @staticmethod
    def _attention_loss(
        attention,
        index: int,
        hidden: Tensor,
        rope: tuple[Tensor, Tensor],
        start: int,
        content_ids: Tensor,
        wanted: Tensor,
    ) -> Tensor:
        """Mean of -log of the attention that head `index` gives to the patches whose content each token wants."""
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
        future = torch.ones_like(scores, dtype=torch.bool).triu(scores.shape[2] - count + 1)
        shares = scores.masked_fill(future, -math.inf).softmax(dim=-1)[..., start : start + patches]
        return -(shares * target).sum(dim=-1)[found].clamp(min=1e-6).log().mean()


def init_from(folder: Path, model: ImpModel, tokenizer: TextTokenizer) -> None:
    """Copy an earlier imp-nano's weights into a new model: another image size, patch size and vocabulary are allowed.

    Patch and position embeddings are interpolated; a token that the earlier tokenizer lacks begins as the mean of its
    pieces.
    """
    before, _ = load_weights(folder, torch.device("cpu"), torch.float32)
    old_tokenizer = TextTokenizer(folder)
    old, new = dict(before.named_parameters()), dict(model.named_parameters())
    for name, parameter in new.items():
        value = old.get(name)
        if value is None or value.ndim != parameter.ndim:
            raise SettingError(f"{folder} is no imp-nano to begin from: it has no {name}.")
        if name.endswith("patch_embedding.weight"):
            ratio = value.shape[-1] / parameter.shape[-1]
            value = F.interpolate(value, parameter.shape[-2:], mode="bicubic") * ratio**2
        elif name.endswith("position_embedding.weight"):
            sides = [math.isqrt(len(rows)) for rows in (value, parameter)]
            grid = value.T.reshape(1, -1, sides[0], sides[0])
            value = F.interpolate(grid, (sides[1],) * 2, mode="bicubic").flatten(2)[0].T
        elif len(value) == before.config.decoder.vocab_size:
            rows = []
            for id in range(tokenizer.size):
                same = old_tokenizer.backend.token_to_id(tokenizer.backend.id_to_token(id))
                rows.append(old_tokenizer.encode(tokenizer.decode([id])) if same is None else [same])
            value = torch.stack([value[ids].mean(dim=0) for ids in rows])
            parameter = parameter[: len(value)]
        if value.shape != parameter.shape:
            raise SettingError(
                f"{folder} is no imp-nano to begin from: its {name} has the shape {tuple(value.shape)} instead of "
                f"{tuple(parameter.shape)}."
            )
        with torch.no_grad():
            parameter.copy_(value)


def train(
    out: Path, config: TrainConfig, device: str = "cpu", start: Path | None = None, report_every: int = 2_000
) -> None:
    """Train into the folder `out`: state.pt to resume from, log.csv, and a checkpoint as `imp_kit.load` reads it.

    A new run begins from nothing, or from the checkpoint in the folder `start`. A run in `out` goes on where it
    stopped; one of another plan is refused (SettingError).
    """
    device = choose_device(device)
    out.mkdir(parents=True, exist_ok=True)
    state_file, log_file = out / "state.pt", out / "log.csv"
    training_model = TrainingModel(new_model(config.seed)).to(device)
    groups = [
        {"params": [p for p in training_model.parameters() if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in training_model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
    done = 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        before = TrainConfig(**state["plan"])
        decaying = state["done"] > (1 - config.decay) * min(before.samples, config.samples)
        if before != config and (decaying or before != replace(config, samples=before.samples)):
            raise SettingError(f"{out} holds a run of another plan, {before}; choose another folder.")
        training_model.load_state_dict(state["pupil"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["done"]
        tokenizer = TextTokenizer(out)
        _forget(log_file, done)
    else:
        tokenizer = make_tokenizer(out, config.seed)
        log_file.unlink(missing_ok=True)
        if start:
            init_from(start, training_model.model, tokenizer)
    opening = torch.tensor(tokenizer.encode_pieces(PHI2.open()), device=device)
    loader = DataLoader(
        Lessons(config, out, done),
        config.batch,
        collate_fn=collate,
        num_workers=1,  # draws while the model learns; spawned, since tokenizers must not be forked
        prefetch_factor=8,
        multiprocessing_context="spawn",
    )
    losses: list[tuple[float, float]] = []
    results: dict[str, list[bool]] = defaultdict(list)
    next_report = (done // report_every + 1) * report_every
    # A CPU without instructions for bf16 takes twenty times as long in it as in fp32.
    bf16 = device.type == "cuda" or bf16_is_faster()
    # On a CPU two plain products in bf16 beat the fused kernel for such short rows, most of all backwards.
    plain_products = bf16 and device.type == "cpu"
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(plain_products)
    kernels = sdpa_kernel(SDPBackend.MATH) if plain_products else nullcontext()
    with kernels, tqdm(total=config.samples, initial=done, unit="sample", mininterval=10) as bar:
        for *tensors, skills in loader:
            for group in optimizer.param_groups:
                group["lr"] = config.rate(done)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                pixels, labels, ids, owners, targets = (
                    Labels(*(part.to(device) for part in tensor)) if isinstance(tensor, Labels) else tensor.to(device)
                    for tensor in tensors
                )
                features, patch_loss = training_model.encode(pixels, labels)
                answer_loss, answered = torch.zeros(()), []
                if config.has_conversations(done):
                    answer_loss, answered = training_model.answer_loss(
                        features, labels, opening, ids, owners, targets, skills
                    )
            optimizer.zero_grad(set_to_none=True)
            (answer_loss + patch_loss).backward()
            nn.utils.clip_grad_norm_(training_model.parameters(), 1.0)
            optimizer.step()
            done += len(skills)
            bar.update(len(skills))
            losses.append((answer_loss.item() if answered else math.nan, patch_loss.item()))
            for skill, right in answered:
                results[skill].append(right)
            if done >= next_report or done >= config.samples:
                next_report += report_every
                _report(log_file, done, losses, results)
                bar.set_postfix(patch_loss=f"{np.mean(losses, axis=0)[1]:.3f}")
                losses.clear()
                results.clear()
                save_checkpoint(training_model.model, tokenizer, out)
                # Written to another file, then renamed: a run that is killed while it saves keeps its last state.
                new_file = state_file.with_suffix(".new")
                torch.save(
                    {
                        "plan": asdict(config),
                        "pupil": training_model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "done": done,
                    },
                    new_file,
                )
                new_file.replace(state_file)


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
            writer.writerow(["samples", "loss", "patch_loss", *LOGGED])
        # A batch without conversations has no loss of answers.
        means = (
            f"{np.mean(kind):.4f}" if len(kind) else ""
            for kind in ([a for a, _ in losses if a == a], [b for _, b in losses])
        )
        scores = (f"{np.mean(results[skill]):.4f}" if results[skill] else "" for skill in LOGGED)
        writer.writerow([done, *means, *scores])
