"""The kit's network against transformers' own classes with the same random weights, and what it generates."""

import pytest
import torch
import transformers
from oracle import DECODER, FAMILIES, SPECIAL, TOWER, make_oracle, write_checkpoint
from packaging import version
from parity import (
    CASES,
    CAUGHT,
    KEY_MAPS,
    SAME,
    STEPS,
    VARIANTS,
    difference,
    embed,
    equal_tokens,
    load,
    logits,
    mutated_difference,
    oracle,
    pad,
    preprocessing_difference,
    prompts,
    write,
)
from quick import quick

from imp_kit.errors import SettingError
from imp_kit.model.generate import generate
from imp_kit.model.sampling import Sampling

ROWS = {"single": slice(0, 1), "batch": slice(0, 3)}
rows = pytest.mark.parametrize("chosen", ROWS)
cached = pytest.mark.parametrize("cached", [True, False], ids=["cache", "no-cache"])


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return {layout: write(layout, root / layout) for layout in KEY_MAPS}


@pytest.fixture(scope="session")
def models(folders):
    return {layout: load(folder) for layout, folder in folders.items()}


@pytest.fixture
def model(models):
    return models["old"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_oracle_can_tell_networks_apart(family):
    """Scores as far apart as a trained model's, and answers that are no single repeated token."""
    spread = torch.cat([prompt.logits for prompt in prompts(family)]).std().item()
    assert 2 < spread < 5
    assert min(len(set(prompt.answer)) for prompt in prompts(family)) >= 8


@pytest.mark.parametrize("family", FAMILIES)
def test_the_oracle_has_the_values_that_it_was_given(family):
    """transformers renames settings (5.x: rope_parameters), and one that it no longer knows is dropped silently."""
    truth = oracle(family)
    turned = truth.decoder.get("partial_rotary_factor", 1) * truth.decoder["hidden_size"]
    turned = int(turned / truth.decoder["num_attention_heads"])
    frequencies = [value for name, value in truth.language.named_buffers() if name.endswith(".inv_freq")]
    assert frequencies
    for value in frequencies:
        torch.testing.assert_close(value, truth.decoder["rope_theta"] ** (-torch.arange(0, turned, 2) / turned))
    for part, eps in ((truth.language, DECODER["layer_norm_eps"]), (truth.siglip, TOWER["layer_norm_eps"])):
        norms = [module for module in part.modules() if type(module).__name__.endswith("Norm")]
        assert len(norms) > 3
        assert {getattr(norm, "variance_epsilon", None) or norm.eps for norm in norms} == {eps}


def test_phi3_is_compared_with_transformers_own_class():
    phi3 = getattr(transformers, "Phi3ForCausalLM", None)
    assert (phi3 is None) == (version.parse(transformers.__version__) < version.parse("4.41"))
    assert type(oracle("imp_phi3").language) is (phi3 or transformers.MistralForCausalLM)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variants_oracle_is_another_network(name):
    """A window that transformers ignored, or heads that it did not share, would prove nothing."""
    truth, changes = oracle(name), VARIANTS[name][2]
    if "sliding_window" in changes:
        embeddings = torch.randn(1, 40, DECODER["hidden_size"], generator=torch.Generator().manual_seed(0))
        moved = embeddings.clone()
        moved[0, 0] += 1
        layers = DECODER["num_hidden_layers"] - changes.get("max_window_layers", 0)
        # Through each layer with a window the first position reaches window - 1 further.
        reach = layers * (changes["sliding_window"] - 1) if layers == DECODER["num_hidden_layers"] else 39
        gap = (truth.logits(embeddings) - truth.logits(moved)).abs().amax(-1)[0]
        assert (gap[: min(reach, 39) + 1] > 0).any()
        assert (gap[reach + 1 :] == 0).all()
    if "num_key_value_heads" in changes:
        sizes = {tuple(value.shape) for key, value in truth.language.state_dict().items() if "k_proj.weight" in key}
        heads = changes["num_key_value_heads"] * DECODER["hidden_size"] // DECODER["num_attention_heads"]
        assert sizes in ({(heads, DECODER["hidden_size"])}, set())


# The network ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", KEY_MAPS)
@rows
@cached
def test_same_logits(models, layout, chosen, cached):
    assert difference(models[layout], prompts(KEY_MAPS[layout])[ROWS[chosen]], cached) <= SAME


@pytest.mark.parametrize("layout", KEY_MAPS)
@rows
@pytest.mark.parametrize("cached", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["cache", "no-cache"])
def test_same_greedy_tokens(models, layout, chosen, cached):
    assert equal_tokens(models[layout], prompts(KEY_MAPS[layout])[ROWS[chosen]], cached) == STEPS


@pytest.mark.parametrize(("layout", "mutate"), CASES, ids=[f"{layout}-{m.__name__}" for layout, m in CASES])
def test_a_wrong_network_is_caught(folders, layout, mutate):
    assert mutated_difference(folders[layout], layout, mutate) > CAUGHT


@pytest.mark.parametrize("layout", KEY_MAPS)
def test_same_tower_features(models, layout):
    pixels = torch.stack([prompt.pixels for prompt in prompts()])
    with torch.inference_mode():
        ours = models[layout].vision(pixels)
    assert ours.shape == (3, (TOWER["image_size"] // TOWER["patch_size"]) ** 2, TOWER["hidden_size"])
    torch.testing.assert_close(ours, oracle(KEY_MAPS[layout]).features(pixels), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [384, 140])
def test_same_pixels(size):
    assert preprocessing_difference(size) <= 1e-6


def test_another_tower_layer_when_the_config_says_so(tmp_path):
    model = load(write_checkpoint(oracle(), tmp_path, mm_vision_select_layer=-1))
    pixels = prompts()[0].pixels[None]
    with torch.inference_mode():
        torch.testing.assert_close(model.vision(pixels), oracle().features(pixels, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("old", {"names": "new"}),
        ("new", {"names": "old"}),
        ("old", {"shards": 3}),
        ("new", {"shards": 5, "spares": False}),
    ],
)
def test_layout_is_known_by_the_keys_and_not_by_the_config(tmp_path, layout, options):
    model = load(write_checkpoint(oracle(), tmp_path, layout, **options))
    assert difference(model, prompts()[:1], cached=False) <= SAME


def test_other_weights_give_other_logits(tmp_path):
    model = load(write_checkpoint(make_oracle(seed=1), tmp_path))
    assert difference(model, prompts()[:1], cached=False) > 1


# The cache ------------------------------------------------------------------------------------------------


@rows
@pytest.mark.parametrize("sizes", [(1,), (7, 3), (30,)], ids=str)
def test_a_prompt_in_parts_is_the_prompt_at_once(model, chosen, sizes):
    """Several tokens behind a filled cache: where SDPA's own causal mask would be wrong."""
    batch, padding = pad([embed(model, prompt, answer=False) for prompt in prompts()[ROWS[chosen]]])
    with torch.inference_mode():
        whole = model.decoder(batch, None, padding)
        cache = model.new_cache(batch.shape[1], len(batch))
        parts = batch.split([*sizes, batch.shape[1] - sum(sizes)], dim=1)
        pieces = torch.cat([model.decoder(part, cache, padding) for part in parts], dim=1)
    assert cache.length == batch.shape[1] == cache.end
    for ours, theirs, prompt in zip(pieces, whole, prompts(), strict=False):
        torch.testing.assert_close(ours[-prompt.length :], theirs[-prompt.length :], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_a_branch_leaves_the_original_as_it_was(model):
    prompt = prompts()[0]
    cache = model.new_cache(prompt.length + STEPS)
    hidden = model.decoder(embed(model, prompt, answer=False), cache)
    length, kept = cache.length, cache.buffer.tensor[..., : cache.length, :].clone()

    cache.truncate(length)
    branch, other = cache.fork(length + 9), cache.fork(length + 9)
    assert branch.buffer is cache.buffer is not other.buffer  # the first goes on in place, the second on a copy
    assert (branch.length, branch.end) == (other.length, other.end) == (length, length + 9)
    for each in (branch, other):
        model.decoder(model.splice([[3, 1, 4, 1, 5, 9, 2, 6, 5]]), each)
        assert (cache.length, each.length) == (length, length + 9)
    assert torch.equal(branch.buffer.tensor[..., : length + 9, :], other.buffer.tensor)
    assert torch.equal(cache.buffer.tensor[..., :length, :], kept)

    # Both go on by themselves: the original still gives the oracle's answer.
    del branch
    first = int(model.decoder.logits(hidden[0, -1]).argmax())
    going = cache.fork(length + STEPS)
    rest = list(generate(model, model.splice([[first]]), going, Sampling(STEPS - 1), stop_ids=()))
    assert [first] + [row[0] for row in rest] == prompt.answer


# Small floats ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "typical", "worst"), [(torch.bfloat16, 0.1, 1.5), (torch.float16, 0.012, 0.15)], ids=str
)
@cached
def test_logits_in_small_floats(folders, dtype, typical, worst, cached):
    """Measured against the oracle in fp32, whose logits have a standard deviation of 3.2."""
    ours = logits(load(folders["new"], dtype), prompts(), cached)
    errors = torch.cat([(row - prompt.logits).abs() for row, prompt in zip(ours, prompts(), strict=True)])
    assert errors.mean() < typical
    assert errors.max() < worst


@cached
def test_fp16_survives_scores_beyond_its_range(folders, cached):
    """In each head one dimension of every query and key is 640, so q.k is 409600 and fp16 ends at 65504.

    Adding the same number to all scores changes nothing, so the true answer is that of the model without
    this dimension, whose values are small.
    """
    small, huge = load(folders["new"]), load(folders["new"], torch.float16)
    for model, value in ((small, 0.0), (huge, 640.0)):
        config = model.config.decoder
        for layer in model.decoder.layers:
            for values, filling in ((layer.attention.qkv.weight, 0.0), (layer.attention.qkv.bias, value)):
                q_and_k = values[: 2 * config.hidden_size].unflatten(0, (-1, config.head_dim))
                q_and_k[:, -1] = filling  # the last dimension of a head is not turned
    assert 640.0**2 / config.head_dim**0.5 > torch.finfo(torch.float16).max
    for ours, truth in zip(logits(huge, prompts(), cached), logits(small, prompts(), cached), strict=True):
        assert ours.isfinite().all()
        assert (ours - truth).abs().mean() < 0.02
        assert (ours.argmax(-1) == truth.argmax(-1)).float().mean() > 0.96


# Generation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", -1),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", True),
        ("max_new_tokens", None),
        ("temperature", -0.1),
        ("temperature", 101),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", -0.5),
        ("top_p", float("nan")),
        ("top_p", "0.9"),
        ("seed", -1),
        ("seed", 0.5),
        ("seed", 2**63),
        ("seed", "7"),
        ("seed", True),
    ],
)
def test_settings_that_make_no_sense(setting, value):
    with pytest.raises(SettingError, match=f"^{setting} is "):
        Sampling(**{setting: value})


def draw(count, **settings):
    """How often each of five tokens is drawn from logits 0, 1, 2, 3, 4 (the likeliest in the middle)."""
    scores = torch.tensor([0.0, 2.0, 4.0, 3.0, 1.0]).expand(count, -1)
    sampling = Sampling(**settings)
    generators = sampling.generators(scores.device, [0])
    picked = sampling.pick(scores, generators and generators * count)  # one stream of numbers for all rows
    return torch.bincount(picked, minlength=5) / count, picked


@pytest.mark.parametrize("temperature", quick(1, [2.0, 0.5, 1.0, 100.0]))
def test_temperature_gives_the_softmax(temperature):
    count = 40_000
    expected = torch.softmax(torch.tensor([0.0, 2.0, 4.0, 3.0, 1.0]) / temperature, dim=0)
    seen, _ = draw(count, temperature=temperature, seed=0)
    assert ((seen - expected).abs() < 5 * (expected * (1 - expected) / count).sqrt() + 1e-4).all()


@pytest.mark.parametrize(
    ("top_p", "kept"), [(1e-9, [2]), (0.5, [2]), (0.7, [2, 3]), (0.9, [1, 2, 3]), (1.0, [0, 1, 2, 3, 4])]
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, kept):
    """The probabilities are .64, .23, .09, .03, .01; what stays keeps its proportions."""
    seen, _ = draw(20_000, temperature=1.0, top_p=top_p, seed=0)
    assert seen.nonzero().flatten().tolist() == kept
    expected = torch.softmax(torch.tensor([0.0, 2.0, 4.0, 3.0, 1.0])[kept], dim=0)
    torch.testing.assert_close(seen[kept], expected, rtol=0, atol=0.02)


def test_the_smallest_temperatures_are_greedy():
    for temperature in (0.0, 1e-45, 1e-30, 1e-3):
        seen, _ = draw(100, temperature=temperature, seed=0)
        assert seen[2] == 1


def test_a_seed_repeats_and_another_differs(model):
    batch = embed(model, prompts()[0], answer=False)

    def answer(**settings):
        cache = model.new_cache(batch.shape[1] + 20)
        sampling = Sampling(20, temperature=1.5, **settings)
        return [row[0] for row in generate(model, batch, cache, sampling, stop_ids=())]

    assert answer(seed=3) == answer(seed=3)
    assert answer(seed=3) != answer(seed=4)
    assert answer() != answer()  # without a seed each answer is another


def test_top_p_near_zero_is_greedy(model):
    prompt = prompts()[1]
    cache = model.new_cache(prompt.length + STEPS)
    sampling = Sampling(STEPS, temperature=1.0, top_p=1e-6, seed=0)
    steps = generate(model, embed(model, prompt, answer=False), cache, sampling, stop_ids=())
    assert [row[0] for row in steps] == prompt.answer


def test_a_stop_id_ends_its_row_only(model):
    batch, padding = pad([embed(model, prompt, answer=False) for prompt in prompts()])
    alone = [prompt.answer for prompt in prompts()]
    stop = next(
        token
        for place, token in enumerate(alone[0])
        if 0 < place < 20 and any(token not in answer[: place + 2] for answer in alone[1:])
    )
    expected = [
        [*answer[: answer.index(stop) + 1], *[None] * STEPS][:STEPS] if stop in answer else answer for answer in alone
    ]
    assert len({answer.index(None) if None in answer else STEPS for answer in expected}) > 1
    cache = model.new_cache(batch.shape[1] + STEPS, len(batch))
    steps = list(generate(model, batch, cache, Sampling(STEPS), {stop, SPECIAL["</s>"]}, padding))
    for row, answer in enumerate(expected):
        assert [step[row] for step in steps] == answer[: len(steps)]
        assert all(token is None for token in answer[len(steps) :])


def test_generation_ends_when_every_row_has(model):
    prompt = prompts()[0]
    cache = model.new_cache(prompt.length + STEPS)
    stops = set(prompt.answer[:1])
    steps = list(generate(model, embed(model, prompt, answer=False), cache, Sampling(STEPS), stops))
    assert steps == [[prompt.answer[0]]]
    assert cache.length == prompt.length


@pytest.mark.parametrize("room", [0, 1, 5])
def test_a_full_cache_ends_the_answer(model, room):
    """The last token needs no room: nothing is asked after it."""
    prompt = prompts()[0]
    cache = model.new_cache(prompt.length + room)
    steps = list(generate(model, embed(model, prompt, answer=False), cache, Sampling(STEPS), stop_ids=()))
    assert [row[0] for row in steps] == prompt.answer[: room + 1]
    assert cache.length == cache.end


def test_as_many_tokens_as_asked_for(model):
    prompt = prompts()[0]
    cache = model.new_cache(prompt.length + STEPS)
    steps = list(generate(model, embed(model, prompt, answer=False), cache, Sampling(4), stop_ids=()))
    assert [row[0] for row in steps] == prompt.answer[:4]
