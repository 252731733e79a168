"""Notebook 05: what its lesson computes, against transformers' own classes and timm's; its figures and exercises."""

import io
import math
import sys
from functools import cache
from typing import NamedTuple

import nbformat
import numpy as np
import pytest
import torch
import transformers
from first_cell import NOTEBOOKS
from oracle import DECODER, TOWER
from packaging import version
from parity import KEY_MAPS, load, oracle, write
from PIL import Image
from scipy.stats import spearmanr
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

import imp_kit
from imp_kit.checkpoints.published import published_config
from imp_kit.errors import PromptError, SettingError
from imp_kit.exercises import inside as check
from imp_kit.images import to_pixels
from imp_kit.lessons.inside import plots, projectors, steps, towers

CELLS = {cell.id: cell.source for cell in nbformat.read(NOTEBOOKS / "05_inside.ipynb", as_version=4).cells}
MAX_BYTES = 60_000  # of a figure
TORCHVISION = ("nms", "qnms")  # operators that timm's tower does not call


class Prompt(NamedTuple):
    """Token ids around pixels (3, size, size)."""

    before: list[int]
    pixels: torch.Tensor
    after: list[int]


@cache
def prompts():
    generator = torch.Generator().manual_seed(1)
    made = []
    for before, after in ((5, 9), (1, 30), (12, 2)):
        ids = torch.randint(DECODER["vocab_size"], (before + after,), generator=generator).tolist()
        pixels = torch.rand(3, TOWER["image_size"], TOWER["image_size"], generator=generator) * 2 - 1
        made.append(Prompt(ids[:before], pixels, ids[before:]))
    return made


# What the decoder holds -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def loaded(tmp_path_factory):
    """Of each family and variant, a tiny checkpoint as a user loads it: with packed layers."""
    root = tmp_path_factory.mktemp("inside")
    folders = {name: write(name, root / str(number)) for number, name in enumerate(KEY_MAPS)}
    return cache(lambda name: imp_kit.load(folders[name], device="cpu", dtype="fp32"))


@pytest.fixture(scope="session")
def nano():
    return imp_kit.load("imp-nano", device="cpu", dtype="fp32")


def spliced(model, prompt):
    with torch.inference_mode():
        return model.splice([prompt.before, model.encode(prompt.pixels[None])[0], prompt.after])


@torch.no_grad()
def truth_of(name, prompt):
    """What transformers' own class gives: hidden states, attention weights and scores."""
    asked = oracle(KEY_MAPS[name])
    embeddings = asked.embed(prompt.before, prompt.pixels, prompt.after)
    return asked.language(inputs_embeds=embeddings, output_attentions=True, output_hidden_states=True, use_cache=False)


@pytest.mark.parametrize("name", KEY_MAPS)
def test_a_run_holds_what_transformers_gives(loaded, name):
    model, prompt = loaded(name).model, prompts()[0]
    seen, truth = steps.run(model, spliced(model, prompt)), truth_of(name, prompt)
    weights = torch.stack([layer[0, :, -1] for layer in truth.attentions])
    torch.testing.assert_close(seen.attention, weights, rtol=0, atol=1e-5)
    assert len(seen.hidden) == len(truth.hidden_states)
    for ours, theirs in zip(seen.hidden[:-1], truth.hidden_states[:-1], strict=True):  # their last one is normed
        torch.testing.assert_close(ours, theirs[0], rtol=0, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(model.decoder.norm(seen.hidden[-1]), truth.hidden_states[-1][0], rtol=0, atol=1e-4)
    torch.testing.assert_close(seen.logits, truth.logits[0, -1], rtol=0, atol=1e-4)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", KEY_MAPS)
def test_the_weights_make_the_layers_own_output(loaded, name):
    """Weights times values, through the layer's last product, is what the layer gives to the next one."""
    model, compared = loaded(name).model, []

    def compare(module, inputs, output):
        x, rope, mask = inputs[:3]
        weights, values = steps.attention_weights(module, x, rope, mask, last=x.shape[1])
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
        mixed = module.out((weights @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(mixed, output, rtol=0, atol=1e-5)
        compared.append(output.std().item())

    handles = [layer.attention.register_forward_hook(compare) for layer in model.decoder.layers]
    try:
        with torch.inference_mode():
            model.decoder(spliced(model, prompts()[1]))
    finally:
        for handle in handles:
            handle.remove()
    assert len(compared) == len(model.decoder.layers)
    assert min(compared) > 0.1


def test_attention_in_fp16(tmp_path):
    """As on a GPU: scores in fp32, and weights near those of fp32."""
    model, prompt = load(write("new", tmp_path), torch.float16), prompts()[0]
    seen = steps.run(model, spliced(model, prompt))
    weights = torch.stack([layer[0, :, -1] for layer in truth_of("new", prompt).attentions])
    assert seen.attention.dtype == torch.float32
    torch.testing.assert_close(seen.attention, weights, rtol=0, atol=0.02)


@pytest.mark.parametrize("name", ["old", "qwen", "phi3"])
@pytest.mark.parametrize("begun", ["", "The picture"])
def test_the_prompt_is_that_of_next_tokens(loaded, name, begun):
    imp = loaded(name)
    image = Image.effect_noise((70, 61), 90).convert("RGB")
    before, after = steps.prompt_ids(imp, "What is it?", begun)
    pixels = to_pixels(image, imp.model.config.vision.image_size, imp.model.config.pad)
    with torch.inference_mode():
        tokens = imp.model.encode(pixels[None])[0]
    found = steps.likeliest(imp, steps.run(imp.model, imp.model.splice([before, tokens, after])).logits, 5)
    wanted = imp.look(image).next_tokens("What is it?", 5, begun)
    assert [text for text, _ in found] == [text for text, _ in wanted]
    assert [share for _, share in found] == pytest.approx([share for _, share in wanted], abs=1e-4)


@pytest.mark.parametrize("name", ["old", "qwen", "phi3"])
def test_the_lens_reads_each_depth_with_the_output_layer(loaded, name):
    imp, prompt, language = loaded(name), prompts()[2], oracle(KEY_MAPS[name]).language
    seen = steps.run(imp.model, spliced(imp.model, prompt))
    inner = language.model
    norm = getattr(inner, "final_layernorm", None) or inner.norm
    for ours, theirs in zip(seen.hidden[:-1], truth_of(name, prompt).hidden_states[:-1], strict=True):
        with torch.no_grad():
            shares = language.lm_head(norm(theirs[0])).softmax(dim=-1)
        top, ids = shares.max(dim=-1)
        found = steps.lens(imp, ours)
        assert [share for _, share in found] == pytest.approx(top.tolist(), abs=1e-4)
        control = {id: token for token, id in imp.tokenizer.control.items()}
        wanted = [control.get(id) or imp.tokenizer.decode([id]) for id in ids.tolist()]
        # Where two tokens are as probable, rounding decides.
        sure = (shares.topk(2).values.diff() < -1e-4).flatten().tolist()
        assert [text for (text, _), is_sure in zip(found, sure, strict=True) if is_sure] == [
            text for text, is_sure in zip(wanted, sure, strict=True) if is_sure
        ]


def test_attention_maps_are_the_image_tokens_part():
    attention = torch.rand(3, 2, 20)
    maps = steps.attention_maps(steps.Run(torch.empty(0), attention, torch.empty(0)), 5, 3)
    assert maps.shape == (3, 3, 3)
    assert maps[1, 2, 0] == attention[1, :, 5 + 6].mean()


# What the word needs ----------------------------------------------------------------------------------------


def squares(pixels, patch):
    """The patches of an image, cut by hand."""
    side = pixels.shape[-1] // patch
    return [
        pixels[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        for row in range(side)
        for column in range(side)
    ]


def test_a_covered_patch_has_the_mean_color_and_the_others_stay():
    pixels = prompts()[0].pixels
    parts = squares(steps.cover(pixels, [0, 6], 14), 14)
    for number, (found, whole) in enumerate(zip(parts, squares(pixels, 14), strict=True)):
        if number in (0, 6):
            assert torch.allclose(found, pixels.mean(dim=(1, 2))[:, None, None].expand_as(found))
        else:
            assert torch.equal(found, whole)


def test_shuffled_patches_are_the_same_in_another_order():
    pixels = prompts()[0].pixels
    shuffled = steps.shuffle(pixels, 14)
    order = steps.permutation(16).tolist()
    assert sorted(order) == list(range(16)) != order
    whole = squares(pixels, 14)
    assert all(torch.equal(found, whole[i]) for found, i in zip(squares(shuffled, 14), order, strict=True))
    edge = 4 * 14
    assert torch.equal(shuffled[:, edge:], pixels[:, edge:])
    assert torch.equal(shuffled[:, :, edge:], pixels[:, :, edge:])
    assert not torch.equal(steps.shuffle(pixels, 14, seed=1), shuffled)


@torch.no_grad()
def true_log_probability(prompt, pixels, token):
    asked = oracle()
    return asked.logits(asked.embed(prompt.before, pixels, prompt.after))[0, -1].log_softmax(-1)[token].item()


@pytest.fixture
def case(loaded):
    """A tiny model, and a prompt with some next word."""
    prompt = prompts()[0]
    return loaded("new").model, prompt, (prompt.pixels, prompt.before, prompt.after, 7)


def test_occlusion_is_what_covering_costs(case):
    model, prompt, asked = case
    found = steps.occlusion(model, *asked, progress=False)
    assert found.shape == (4, 4)
    whole = true_log_probability(prompt, prompt.pixels, asked[-1])
    for row, column in ((0, 0), (2, 1), (3, 3)):
        covered = prompt.pixels.clone()
        top, left = max(0, row - 1) * 14, max(0, column - 1) * 14
        bottom, right = (14 * min(place + 2, 4) for place in (row, column))
        covered[:, top:bottom, left:right] = prompt.pixels.mean(dim=(1, 2))[:, None, None]
        wanted = whole - true_log_probability(prompt, covered, asked[-1])
        assert found[row, column].item() == pytest.approx(wanted, abs=1e-4)


def test_many_patches_are_covered_cell_by_cell(nano, monkeypatch):
    monkeypatch.setattr(steps, "CELLS", 3)  # so that a cell is four patches wide; for Imp's 27 it is three
    model, pixels = nano.model, torch.rand(3, 192, 192, generator=torch.Generator().manual_seed(0))
    found = steps.occlusion(model, pixels, [1, 2], [3, 4], 5, progress=False)
    assert found.shape == (12, 12)
    cells = found[::4, ::4]
    assert cells.unique().numel() > 4
    assert torch.equal(found, cells.repeat_interleave(4, 0).repeat_interleave(4, 1))
    covered = steps.cover(pixels, [12 * row + column for row in range(8) for column in range(4, 12)], 16)
    whole, lower = steps.log_probabilities(model, torch.stack([pixels, covered]), [1, 2], [3, 4], 5)
    assert cells[0, 2].item() == pytest.approx((whole - lower).item(), abs=1e-5)


def test_deletion_covers_the_largest_values(case):
    model, prompt, asked = case
    ramp = torch.arange(16.0).view(4, 4)
    table = steps.deletion(model, *asked, {"low": -ramp, "high": ramp}, shares=(0.125, 0.5))
    assert list(table.columns) == ["0%", "12%", "50%"]
    assert list(table.index) == ["most low", "most high", "at random"]
    wanted = {}
    for name, patches in (("most low", range(2)), ("most high", range(14, 16))):
        covered = steps.cover(prompt.pixels, list(patches), 14)
        wanted[name] = math.exp(true_log_probability(prompt, covered, asked[-1]))
    drawn = [steps.cover(prompt.pixels, steps.permutation(16, seed)[:2].tolist(), 14) for seed in range(5)]
    wanted["at random"] = np.mean([math.exp(true_log_probability(prompt, each, asked[-1])) for each in drawn])
    assert table["12%"].to_dict() == pytest.approx(wanted, abs=6e-4)
    assert table["0%"].tolist() == pytest.approx(
        [math.exp(true_log_probability(prompt, prompt.pixels, asked[-1]))] * 3, abs=6e-4
    )


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan")])
def test_a_share_that_is_no_part_is_refused(case, share):
    model, _, asked = case
    with pytest.raises(SettingError, match=rf"^A share is {share}; give parts"):
        steps.deletion(model, *asked, {}, shares=(0.5, share))


def test_rank_correlation_is_spearmans():
    one, other = torch.rand(5, 5, generator=torch.Generator().manual_seed(0)).round(decimals=1), torch.rand(5, 5)
    wanted = spearmanr(one.flatten(), other.flatten()).statistic
    assert steps.rank_correlation(one, other) == pytest.approx(wanted)
    assert steps.rank_correlation(one, 3 * one + 1) == pytest.approx(1)


def test_variants_change_what_they_say(case):
    model, prompt, _ = case
    found = steps.variants(model, prompt.pixels)
    assert list(found) == ["the picture", "patches shuffled", "image tokens shuffled", "blank"]
    project = oracle().projector
    for name in ("the picture", "patches shuffled", "blank"):
        image, tokens = found[name]
        with torch.no_grad():
            torch.testing.assert_close(tokens, project(oracle().features(image[None]))[0], rtol=0, atol=1e-4)
    order = steps.permutation(16)
    assert torch.equal(found["image tokens shuffled"][1], found["the picture"][1][order])
    assert found["blank"][0].std(dim=(1, 2)).max() < 1e-6


def test_answers_are_those_of_next_tokens(nano):
    image, question = imp_kit.images.open_image(imp_kit.sample("door.png")), "What color is the door?"
    orders = steps.variants(nano.model, to_pixels(image, nano.model.config.vision.image_size))
    found = steps.answers(nano, orders, {question: "The door is"})[question]
    assert list(found) == list(orders)
    shuffled = ((orders["patches shuffled"][0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    for name, shown in (("the picture", image), ("patches shuffled", Image.fromarray(shuffled))):
        wanted = nano.look(shown).next_tokens(question, 3, "The door is")
        assert [text for text, _ in found[name]] == [text for text, _ in wanted]
        assert [share for _, share in found[name]] == pytest.approx([share for _, share in wanted], abs=1e-3)


def test_what_cannot_be_asked_is_refused(nano):
    with pytest.raises(PromptError, match="^The question is empty"):
        steps.prompt_ids(nano, " ")
    with pytest.raises(PromptError, match=r"^The prompt is \d+ tokens long, and imp-nano reads 1024. Ask a shorter"):
        steps.prompt_ids(nano, "What is it? " * 400)
    with pytest.raises(SettingError, match="^begun is 3; give the text"):
        steps.prompt_ids(nano, "What is it?", 3)
    with pytest.raises(PromptError, match="^The begun answer .* holds bytes that are no text"):
        steps.prompt_ids(nano, "What is it?", "\ud800")


# Towers -----------------------------------------------------------------------------------------------------


@cache
def exact_oracle():
    """transformers' tower with the same weights and the exact GELU."""
    made = SiglipVisionModel(
        SiglipVisionConfig(**oracle().tower, hidden_act="gelu", attn_implementation="eager")
    ).eval()
    inner = getattr(made, "vision_model", made)
    inner.load_state_dict(oracle().siglip.state_dict())
    return inner


@torch.no_grad()
def hidden_states(siglip, pixels):
    return siglip(pixels[None], output_hidden_states=True).hidden_states


@pytest.mark.parametrize("gelu", ["tanh", "none"])
def test_a_plain_towers_layers_are_those_of_transformers(loaded, gelu):
    tower, pixels = towers.plain_tower(loaded("old")), prompts()[0].pixels
    found = towers.layer_outputs(tower, pixels[None], gelu)
    truth = hidden_states(oracle().siglip if gelu == "tanh" else exact_oracle(), pixels)
    assert len(found) == 4  # the last of four layers is not used, and there are the embeddings
    for ours, theirs in zip(found, truth, strict=False):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.fixture(scope="session")
def timm():
    """timm's transformers, also beside a torchvision without its compiled part, from which they need nothing."""
    try:
        import torchvision  # noqa: F401 - only to see whether it can be
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in TORCHVISION:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        yield pytest.importorskip("timm.models.vision_transformer")
    except ImportError:
        pytest.skip("torchvision, which timm needs, is not installed")
    else:
        yield pytest.importorskip("timm.models.vision_transformer")


def test_timms_tower_with_the_same_weights(loaded, timm):
    """With tanh it is the oracle's network; as timm has it, with the exact GELU, it is the exact one."""
    imp, pixels = loaded("old"), prompts()[0].pixels
    config, state = imp.model.config.vision, towers.plain_tower(imp).state_dict()
    for gelu, siglip in (("gelu_tanh", oracle().siglip), ("gelu", exact_oracle())):
        found = towers.timm_outputs(towers.timm_tower(config, state, gelu), pixels[None])
        assert len(found) == 4
        for ours, theirs in zip(found, hidden_states(siglip, pixels), strict=False):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_timm_gives_siglip_towers_with_patches_of_14_the_exact_gelu(timm):
    with torch.device("meta"):
        made = timm.vit_so400m_patch14_siglip_384(pretrained=False)
    assert {block.mlp.act.approximate for block in made.blocks} == {"none"}


def test_the_comparison_by_layer(loaded, timm):
    imp, pixels = loaded("old"), prompts()[0].pixels
    table = towers.compare(imp.model.config.vision, towers.plain_tower(imp), pixels)
    tanh, exact = hidden_states(oracle().siglip, pixels), hidden_states(exact_oracle(), pixels)
    wanted = [((a - b).norm() / b.norm()).item() for a, b in zip(exact[:4], tanh[:4], strict=True)]
    assert wanted[0] == 0
    assert wanted[-1] > 1e-5
    for column in (towers.OURS, towers.TIMM):
        assert table[column].tolist() == pytest.approx(wanted, abs=1e-6)
    assert table[towers.TIMM_TANH].max() < 1e-6
    assert towers.why_no_timm() is None


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (None, "timm is not installed, so timm's tower is missing here; pip install timm adds it."),
        ("raise RuntimeError('no operator')", "timm cannot be imported here (RuntimeError), so its tower is missing."),
        ("import no_such_part", "no_such_part is not installed, so timm's tower is missing here; pip install"),
    ],
)
def test_without_timm_one_sentence_says_so_and_the_comparison_goes_on(loaded, monkeypatch, tmp_path, source, sentence):
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    if source is None:
        monkeypatch.setitem(sys.modules, "timm", None)
    else:
        (tmp_path / "timm.py").write_text(source, "utf-8")
        monkeypatch.syspath_prepend(tmp_path)
    assert towers.why_no_timm().startswith(sentence)
    imp = loaded("old")
    table = towers.compare(imp.model.config.vision, towers.plain_tower(imp), prompts()[0].pixels)
    assert table[towers.TIMM].isna().all()
    assert table[towers.OURS].iloc[-1] > 1e-5
    texts = [text.get_text() for text in plots.towers(table, sentence).axes[0].get_legend().get_texts()]
    assert texts == [towers.OURS]


# Projectors -------------------------------------------------------------------------------------------------


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_of_linear_and_mlp(nano):
    config = nano.model.config
    sizes = {kind.name: kind for kind in projectors.kinds(config)}
    widths = config.vision.hidden_size, config.decoder.hidden_size
    assert sizes["linear"].parameters == count(nn.Linear(*widths))
    assert sizes["MLP"].parameters == count(nn.Sequential(nn.Linear(*widths), nn.Linear(widths[1], widths[1])))
    assert sizes["MLP"].tokens == sizes["linear"].tokens == config.vision.num_patches


def test_parameters_of_a_q_former():
    """Those of transformers' class, but for its part for text, which some versions have."""
    config = transformers.Blip2QFormerConfig(encoder_hidden_size=1152)
    with torch.device("meta"):
        made = transformers.Blip2QFormerModel(config)
        text = [getattr(layer, part, None) for layer in made.encoder.layer for part in ("intermediate", "output")]
    wanted = (
        count(made) - sum(count(part) for part in text if part) + 32 * 768 + count(nn.Linear(768, 2560, device="meta"))
    )
    assert projectors.q_former(1152, 2560) == wanted


def test_parameters_of_a_perceiver_resampler():
    from transformers.models.idefics.configuration_idefics import IdeficsConfig
    from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

    config = IdeficsConfig(vision_config={"embed_dim": 1152}, use_resampler=True)
    with torch.device("meta"):
        made = IdeficsPerceiverResampler(config, 1152, depth=6, n_heads=16, head_dim=128, n_latents=64)
    assert projectors.perceiver(1152, 2560) == count(made) + count(nn.Linear(1152, 2560, device="meta"))
    alone = projectors.perceiver(1536, 1) - projectors.linear(1536, 1)
    assert alone == pytest.approx(194e6, rel=0.03)  # as the paper counts


def test_what_projectors_cost(loaded):
    config = loaded("qwen, shared keys").model.config
    table = projectors.costs(config)
    assert table["image tokens"].tolist() == [16, 16, 32, 64]
    assert table["part of the context"].tolist() == ["6%", "6%", "12%", "25%"]
    big = projectors.costs(published_config("imp-v1-3b"))
    # Keys and values of 32 layers, 2560 wide, 2 bytes each.
    assert big["keys and values"].tolist()[0] == f"{729 * 2 * 32 * 2560 * 2 / 1e6:.0f} MB"


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((300, 300), (1, 2)),  # every grid keeps all of a small image: the first of the smallest wins
        ((800, 800), (2, 2)),
        ((384, 768), (1, 2)),
        ((768, 384), (2, 1)),
        ((4000, 1000), (3, 1)),
        ((500, 5000), (1, 3)),
    ],
)
def test_the_grid_that_keeps_most_pixels(size, grid):
    assert projectors.choose_grid(size, 384) == grid
    assert projectors.any_resolution_tokens(size, 384, 729) == (grid[0] * grid[1] + 1) * 729


@pytest.mark.skipif(version.parse(transformers.__version__) < version.parse("4.39"), reason="it has no LLaVA-NeXT")
def test_grids_are_those_of_transformers():
    from transformers.image_processing_utils import select_best_resolution

    rng = np.random.default_rng(0)
    pinpoints = [(384 * rows, 384 * columns) for columns, rows in projectors.GRIDS]
    for width, height in rng.integers(50, 3000, (500, 2)).tolist():
        rows, columns = (length // 384 for length in select_best_resolution((height, width), pinpoints))
        assert projectors.choose_grid((width, height), 384) == (columns, rows)


@pytest.mark.parametrize("size", [(0, 5), (5, -1)])
def test_an_image_without_pixels_has_no_grid(size):
    with pytest.raises(SettingError, match=f"^An image of {size[0]} x {size[1]} and tiles of 384 pixels"):
        projectors.choose_grid(size, 384)


# Figures ----------------------------------------------------------------------------------------------------


def png_bytes(figure):
    content, small = io.BytesIO(), io.BytesIO()
    figure.savefig(content, format="png")
    Image.open(content).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return len(small.getvalue())


def test_colors_tell_two_kinds_of_features_apart():
    """Whichever sign the mathematics gives, and in the same way on each machine."""
    noise = 0.01 * torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    kinds = torch.tensor([0, 0, 0, 1, 1, 1, 0, 0, 1])
    values = 5 * kinds[:, None] * torch.ones(6) + noise
    found = plots.colors(values, 3)[..., 0].flatten()
    assert abs(found[kinds == 1].mean() - found[kinds == 0].mean()) > 0.9
    # Features on the other side of their mean have the same colors: the largest component counts as positive.
    np.testing.assert_allclose(plots.colors(-values, 3), plots.colors(values, 3), atol=1e-4)


def test_figures_show_their_values():
    pixels, values = torch.zeros(3, 61, 61), torch.linspace(-0.5, 2, 16).view(4, 4)
    (dots,) = plots.dots(pixels, {"a": values}).axes[0].collections
    np.testing.assert_allclose(dots.get_sizes() / dots.get_sizes().max(), values.flatten().clamp(min=0) / values.max())
    np.testing.assert_allclose(dots.get_offsets()[6], (15 * 2.5 - 0.5, 15 * 1.5 - 0.5))
    strip, bars = plots.splice(5, 16, 9, [(" red", 0.75), ("$", 0.25), ("\x01", 0.0)]).axes
    assert [text.get_text() for text in strip.texts] == ["text\n5", "image\n16", "text\n9"]
    assert [bar.get_width() for bar in bars.patches] == [0.75, 0.25, 0]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["red", r"\$", r"'\x01'"]
    says = [(f"w{number}", number / 16) for number in range(16)]
    (axis,) = plots.words(pixels, {"x": says}).axes
    assert [text.get_text() for text in axis.texts] == [text for text, _ in says]
    assert axis.texts[6].get_position() == (15 * 2.5, 15 * 1.5)


def test_words_of_many_patches_leave_some_out():
    (axis,) = plots.words(torch.zeros(3, 384, 384), {"x": [(str(number), 1.0) for number in range(729)]}).axes
    assert len(axis.texts) == 13 * 13
    assert axis.texts[1].get_text() == str(27 + 3)


@pytest.mark.slow
def test_figures_are_small_also_for_imps_patches():
    generator = torch.Generator().manual_seed(0)
    pixels, maps = torch.rand(3, 384, 384, generator=generator) * 2 - 1, torch.rand(27, 27, generator=generator)
    kinds = projectors.kinds(published_config("imp-v1-3b"))
    smooth = pixels.mul(0).add(0.3)
    for figure in (
        plots.patches(smooth, 14),
        plots.features({name: torch.randn(729, 8, generator=generator) for name in "abcd"}),
        plots.dots(smooth, dict.fromkeys("abcd", maps)),
        plots.words(smooth, {name: [("word", 0.5)] * 729 for name in "ab"}),
        plots.depths([("word", 0.5)] * 33, "a $ title"),
        plots.projectors(kinds, 729),
        plots.orders(dict.fromkeys("abcd", (smooth, smooth)), {"What?": dict.fromkeys("abcd", [("word", 0.5)] * 3)}),
    ):
        assert png_bytes(figure) <= MAX_BYTES


# Exercises --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_solution_is_right_and_an_empty_cell_is_not_yet(number, capsys):
    task = CELLS[f"exercise-{number}"]
    solution = CELLS[f"solution-{number}"].partition("```python\n")[2].partition("```")[0]
    last = task.splitlines()[-1]
    exec(task, {})
    assert capsys.readouterr().out.startswith("Not yet: ")
    exec(f"from imp_kit.exercises import inside as check\n{solution}\n{last}", {})
    assert capsys.readouterr().out.startswith("Right: ")


def rows(embed_tokens, *pieces):
    return torch.cat([p if isinstance(p, torch.Tensor) else embed_tokens(torch.tensor(p)) for p in pieces])


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda embed, before, image, after: rows(embed, image, before, after), "In which order"),
        (lambda embed, before, image, after: rows(embed, before, image.flip(0), after), "In which order"),
        (lambda embed, before, image, after: rows(embed, before, after), "yours has 14 rows"),
        (lambda embed, before, image, after: rows(embed, before, image[:, :8], after), "RuntimeError"),
        (lambda embed, before, image, after: before + after, "Return a tensor, not list"),
        (lambda embed, before, image, after: rows(embed, before, image, after).T, "Return one row of 256 numbers"),
        (lambda embed, before: before, "TypeError"),
        (3, "a function"),
    ],
)
def test_a_wrong_splice(answer, hint, capsys):
    check.splice(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("Not yet: ")
    assert hint in printed


def test_a_splice_of_a_batch_of_one_is_right(capsys):
    check.splice(lambda *pieces: rows(*pieces)[None])
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(("answer", "begin"), [(0, "Right"), ("0", "Right"), (7, "Not yet"), ("all", "Not yet")])
def test_tokens_of_the_question_that_an_image_token_sees(answer, begin, capsys):
    check.tokens_seen(answer)
    assert capsys.readouterr().out.startswith(begin)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda width, height: projectors.any_resolution_tokens((width, height), 384, 729) - 729, "the overview"),
        (lambda width, height: 5 * 729, "For 1200 x 500 it is 3 tiles"),
        (lambda width, height: 3 * 729, "For 400 x 700 it is 4 tiles and an overview, 3645 tokens; yours says 2187"),
        (lambda width, height: "many", "Give a number alone"),
        (lambda width: 729, "TypeError"),
    ],
)
def test_wrong_tiles(answer, hint, capsys):
    check.any_resolution(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("Not yet: ")
    assert hint in printed
