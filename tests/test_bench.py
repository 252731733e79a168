"""The benchmark: what it measures is there and adds up; how fast the machine is, is no test."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracle import make_oracle, write_checkpoint
from quick import quick

import imp_kit
from imp_kit.checkpoints.published import published_config, random_model
from imp_kit.checkpoints.registry import PUBLISHED
from imp_kit.errors import SettingError
from imp_kit.model.generate import generate
from imp_kit.model.packed_linear import pack_model
from imp_kit.model.sampling import Sampling
from imp_kit.tools.bench import Costs, Transformers, bench, draw, has_static_cache, table
from imp_kit.tools.cli import main

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    """Limits measured on little, so that the tests are quick."""
    for name, value in {"ENOUGH": 2_000_000, "SQUARE": 128, "PRODUCT": 1e7}.items():
        monkeypatch.setattr(imp_kit.tools.bench, name, value)


@pytest.mark.slow
def test_the_command_prints_writes_and_draws_what_the_function_returns(tmp_path, capsys):
    written, *drawn = (tmp_path / name for name in ("all.json", "roof.png", "growth.png"))
    files = f"--json {written} --plot {drawn[0]} --growth {drawn[1]}"
    main(f"bench --checkpoint imp-nano --device cpu --repeats 1 --against transformers {files}".split())
    result = json.loads(written.read_text("utf-8"))
    printed = capsys.readouterr().out
    assert printed == table(result) + "\n"
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in drawn)
    draw(result, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == drawn[0].read_bytes()
    figures = {"encode", "prefill", "decode 1", "decode 8", "first question", "second question"}
    assert result["figures"].keys() == figures
    assert result["memory"]["load_seconds"] > 0
    assert (result["memory"]["load_peak_bytes"] or 0) > 0 or sys.platform != "linux"
    assert result["growth"]["batch"].keys() == {"1", "2", "4", "8", "16"}
    for entry in result["figures"].values():
        assert 0 < entry["seconds"]["min"] <= entry["seconds"]["median"] <= entry["seconds"]["max"]
        assert entry["share"] == pytest.approx(entry["limit_seconds"] / entry["seconds"]["median"])
    assert result["prompt_tokens"] > result["picture_tokens"] == 144
    assert result["dtype"] == "float32"
    # In fp32 both sides say the same; else their times would not be of the same work.
    assert result["against"]["same_tokens"]
    assert len(set(result["against"]["tokens"]["kit"])) > 3
    assert "| the same tokens | kit | transformers | ratio |" in printed


@pytest.mark.parametrize(("name", "quantize"), [("imp-v1.5-2b-qwen1.5", None), ("imp-v1.5-4b-phi3", "int8")])
def test_random_weights_go_through_template_encoding_and_question(name, quantize, monkeypatch):
    whole = published_config(name)
    sizes = replace(
        whole.decoder, vocab_size=300, hidden_size=64, intermediate_size=160, num_layers=2, num_heads=4, num_kv_heads=4
    )
    seen = replace(whole.vision, hidden_size=48, intermediate_size=96, num_heads=3, used_layers=2, image_size=140)
    small = replace(whole, decoder=replace(sizes, rotary_dim=16), vision=seen)
    monkeypatch.setattr(imp_kit.tools.bench, "published_config", lambda name: small)
    settings = {"dtype": "bf16", "quantize": quantize, "repeats": 1, "progress": False}
    result = bench(random=name, device="cpu", **settings)
    assert result["checkpoint"] == f"{name} with random weights"
    assert result["memory"] == {}
    assert result["picture_tokens"] == 100
    assert 35 < result["prompt_tokens"] - 100 < 65
    assert result["weight_bytes"] == (2 * (4 * 64 * 64 + 3 * 64 * 160) + 300 * 64) * (1 if quantize else 2)
    assert f"weights, {quantize or 'bfloat16'}, " in table(result)


@pytest.mark.parametrize("name", quick(1, PUBLISHED))
def test_costs_of_the_published_sizes(name):
    """Known numbers: Phi-2 has 2.78 billion parameters, and its keys and values take 328 kB a token in 16 bit."""
    with torch.device("meta"):
        model = imp_kit.tools.bench.ImpModel(published_config(name)).to(torch.bfloat16)
    costs = Costs.of(model)
    sizes = model.config.decoder
    weights = sum(p.numel() for p in model.decoder.parameters() if p.ndim > 1) - sizes.vocab_size * sizes.hidden_size
    assert costs.weight_bytes == 2 * weights
    pack_model(model, "int8")
    assert Costs.of(model).weight_bytes == weights
    flops, size = costs.read(1, 0)
    assert flops == pytest.approx(2 * weights, rel=1e-3)
    assert size - costs.weight_bytes == 2 * 2 * sizes.num_layers * sizes.hidden_size
    # The second of two tokens also looks at the first one.
    assert costs.read(2, 0)[0] - 2 * flops == 4 * sizes.num_layers * sizes.hidden_size - 2 * costs.head
    eight = costs.read(1, 700, batch=8)
    assert eight[0] == 8 * costs.read(1, 700)[0]
    assert costs.weight_bytes < eight[1] < 8 * costs.read(1, 700)[1]
    patches = model.config.vision.num_patches
    assert patches == (196 if name.endswith("196") else 729)
    assert 2 * 400e6 * patches < costs.encode()[0] < 2 * 500e6 * patches
    if "3b" in name:
        assert weights + sizes.vocab_size * sizes.hidden_size == pytest.approx(2.78e9, rel=0.01)
        assert size - costs.weight_bytes == 327_680


def test_random_weights_are_noise_and_repeat():
    config = imp_kit.load("imp-nano").model.config
    first, second = (dict(random_model(config, CPU, torch.bfloat16).named_parameters()) for _ in range(2))
    for name, values in first.items():
        assert torch.equal(values, second[name])
        if values.ndim > 1:
            assert values.float().std() == pytest.approx(0.02, rel=0.1)
        else:
            assert (values == float(not name.endswith("bias"))).all()


def test_transformers_has_views_and_the_kit_keeps_its_answers():
    """Nothing is copied for the comparison, and packing the kit's weights leaves the views whole."""
    imp = imp_kit.load("imp-nano", device="cpu", dtype="fp32")
    model = random_model(imp.model.config, CPU, torch.float32)
    theirs = Transformers(model)
    fused = model.decoder.layers[1].attention.qkv.weight
    rows = len(fused) // 3
    assert theirs.language.model.layers[1].self_attn.k_proj.weight.data_ptr() == fused[rows : 2 * rows].data_ptr()
    pixels = torch.rand(1, 3, 192, 192) * 2 - 1
    before = model.encode(pixels)
    pack_model(model)
    prompt = model.splice([[5, 6, 7], before[0], [8, 9]])
    steps = generate(model, prompt, model.new_cache(200), Sampling(6), stop_ids=())
    torch.testing.assert_close(theirs.encode(pixels), before, atol=1e-4, rtol=1e-4)
    assert theirs.answer(prompt, 6) == [row[0] for row in steps]


def test_a_static_cache_gives_the_same_tokens_and_is_used_again():
    """In a transformers that compiles its steps, on a GPU; here it is the cache alone."""
    if not has_static_cache():
        with pytest.raises(SettingError, match=r"transformers 4\.\d+\.\d+ does not compile steps on a static cache"):
            bench("imp-nano", device="cpu", against="transformers-static")
        return
    model = random_model(imp_kit.load("imp-nano").model.config, CPU, torch.float32)
    plain, static = Transformers(model), Transformers(model, static=True)
    prompt = model.splice([[5, 6, 7, 8]])
    expected = plain.answer(prompt, 12)
    assert [static.answer(prompt, count) for count in (1, 12, 5, 12)] == [expected[:count] for count in (1, 12, 5, 12)]
    assert static._cache.layers[0].keys.shape[2] == 4 + 12


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows the peak of a process' memory")
@pytest.mark.slow
def test_a_load_of_full_size_is_measured_and_drawn(tmp_path):
    """The tool for the README's figures; of imp-nano, since the others take gigabytes."""
    file = tmp_path / "load.png"
    command = [
        sys.executable,
        Path(__file__).parent / "tools" / "full_size.py",
        "--folder",
        tmp_path,
        "--plot",
        file,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loads = json.loads(done.stdout)["imp-nano"]
    assert len(loads) == 3
    for load in loads:
        assert min(load["read_seconds"], load["load_seconds"]) > 0
        assert load["parameter_bytes"] < load["peak_bytes"] < 4 * load["file_bytes"]
        assert load["finite"]
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"random": "imp-v9"}, "imp-v1.5-2b-qwen1.5"),
        ({"random": "imp-v1-3b", "checkpoint": "imp-nano"}, "not both"),
        ({"random": "imp-v1.5-4b-phi3", "against": "transformers"}, "Phi-2"),
        ({"checkpoint": "imp-nano", "against": "llama.cpp"}, "transformers"),
        ({"checkpoint": "imp-nano", "repeats": 0}, "repeats"),
        ({"checkpoint": "imp-nano", "quantize": "int3"}, "int3"),
    ],
)
def test_a_wrong_setting_is_reported_before_anything_is_loaded(options, message, monkeypatch):
    for name in ("load_weights", "random_model", "run_alone"):
        monkeypatch.setattr(imp_kit.tools.bench, name, None)
    with pytest.raises(SettingError, match=message):
        bench(device="cpu", **options)


def test_only_phi_2_is_compared(tmp_path):
    folder = write_checkpoint(make_oracle(family="imp_qwen2"), tmp_path / "qwen", "qwen")
    with pytest.raises(SettingError, match="imp_qwen2"):
        bench(folder, device="cpu", against="transformers")


def test_transformers_may_be_absent(monkeypatch):
    monkeypatch.setattr("imp_kit.system.extras.has", lambda module: False)
    with pytest.raises(SettingError, match="needs transformers and accelerate: pip install transformers accelerate"):
        bench("imp-nano", device="cpu", against="transformers")
    with pytest.raises(SettingError, match="matplotlib"):
        imp_kit.tools.bench.check_files(None, "roof.png")


@pytest.mark.parametrize("option", ["--json", "--plot", "--picture", "--growth"])
@pytest.mark.parametrize("file", ["nowhere/result.png", "."])
def test_a_file_that_cannot_be_written_is_reported_first(option, file, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--checkpoint", "imp-nano", option, file])
    assert ended.value.code == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_plot_has_a_format_that_can_be_drawn(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--checkpoint", "imp-nano", "--plot", "roof.txt"])
    assert ".png" in capsys.readouterr().err
