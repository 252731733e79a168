"""timm's SigLIP tower beside the kit's, filled with the same weights: where the two differ, layer by layer."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imp_kit.checkpoints.files import follow, read_tensor
from imp_kit.checkpoints.plan import plan_folder
from imp_kit.model.config import VisionConfig
from imp_kit.model.vision import SiglipTower
from imp_kit.system.extras import require

if TYPE_CHECKING:
    from pandas import DataFrame

    from imp_kit.imp import Imp

OURS, TIMM, TIMM_TANH = "ours, exact GELU", "timm, exact GELU", "timm, tanh GELU"


def plain_tower(imp: "Imp") -> SiglipTower:
    """The tower of a loaded checkpoint once more, from its files: fp32 on the same device, with plain linear layers.

    In the loaded model a CPU's weights are packed, and a GPU's rounded to 16 bits. Raises CheckpointError.
    """
    plan = plan_folder(imp.snapshot.folder)
    state = {}
    for key, slot in plan.slots.items():
        if slot.parameter.startswith("vision."):
            file = plan.found[key].file
            state[slot.parameter.removeprefix("vision.")] = read_tensor(file, follow(file), key).float()
    tower = SiglipTower(plan.model.config.vision)
    tower.load_state_dict(state)
    return tower.to(imp.model.device).eval().requires_grad_(False)


@torch.inference_mode()
def layer_outputs(tower: SiglipTower, pixels: Tensor, gelu: str) -> list[Tensor]:
    """What enters the first layer of a plain tower and what leaves each, (1, patches, hidden_size).

    `gelu` is "tanh", the form that the checkpoints were trained with, or "none", the exact one.
    """
    outputs = [tower.embeddings(pixels)]
    layer: Any  # which a list of modules does not know
    for layer in tower.encoder.layers:
        x = outputs[-1] + layer.self_attn(layer.layer_norm1(outputs[-1]))
        inner = F.linear(layer.layer_norm2(x), layer.mlp.fc1.weight, layer.mlp.fc1.bias)
        outputs.append(x + layer.mlp.fc2(F.gelu(inner, approximate=gelu)))
    return outputs


def timm_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a SiglipTower under the names of timm's VisionTransformer."""
    names = {
        "embeddings.patch_embedding": "patch_embed.proj",
        "encoder.layers": "blocks",
        "layer_norm1": "norm1",
        "layer_norm2": "norm2",
        "self_attn.out_proj": "attn.proj",
    }
    renamed = {"pos_embed": state["embeddings.position_embedding.weight"][None]}
    for name, tensor in state.items():
        if "position_embedding" in name or "k_proj" in name or "v_proj" in name:
            continue
        if "q_proj" in name:  # one product for all three there
            tensor = torch.cat([state[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
            name = name.replace("self_attn.q_proj", "attn.qkv")
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


def timm_tower(config: VisionConfig, state: Mapping[str, Tensor], gelu: str) -> nn.Module:
    """timm's VisionTransformer in the geometry of a checkpoint, filled with the tensors of a SiglipTower.

    `gelu` is timm's name of the activation: "gelu", the exact one, which timm gives SigLIP's towers with patches of 14,
    or "gelu_tanh". Raises what importing timm raises.
    """
    from timm.models.vision_transformer import VisionTransformer

    tower = VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.hidden_size,
        depth=config.used_layers,
        num_heads=config.num_heads,
        mlp_ratio=(config.intermediate_size + 0.5) / config.hidden_size,  # it is rounded down
        class_token=False,
        global_pool="",
        num_classes=0,
        norm_layer=partial(nn.LayerNorm, eps=config.eps),
        act_layer=gelu,
    )
    tower.norm = nn.Identity()  # after the last layer, which Imp does not use
    tower.load_state_dict(timm_state(state))
    return tower.eval().requires_grad_(False)


@torch.inference_mode()
def timm_outputs(tower: Any, pixels: Tensor) -> list[Tensor]:
    """As `layer_outputs`, of timm's tower."""
    outputs: list[Tensor] = []
    tower.norm_pre.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    for block in tower.blocks:
        block.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    tower(pixels)
    return outputs


def why_no_timm() -> str | None:
    """A sentence that says why timm cannot be used here, or None."""
    try:
        import timm.models.vision_transformer  # noqa: F401 - only to see whether it can be
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        return f"{missing} is not installed, so timm's tower is missing here; pip install timm adds it."
    except Exception as error:  # a torchvision that does not fit to torch raises a RuntimeError, for example
        return f"timm cannot be imported here ({type(error).__name__}), so its tower is missing."
    return None


def compare(config: VisionConfig, tower: SiglipTower, pixels: Tensor) -> "DataFrame":
    """How far towers with other activations are from a plain `tower`, after each layer, for an image (3, size, size).

    A number is the size of the difference as a part of the size of the features: |a - b| / |b|, both over all patches.
    The columns of timm are empty where it cannot be imported.
    """
    require("notebooks", "pandas", what="A table")
    from pandas import DataFrame

    device = tower.embeddings.patch_embedding.weight.device
    images = pixels[None].to(device, torch.float32)
    truth = layer_outputs(tower, images, "tanh")
    columns = {OURS: layer_outputs(tower, images, "none")}
    if why_no_timm() is None:
        for column, gelu in ((TIMM, "gelu"), (TIMM_TANH, "gelu_tanh")):
            columns[column] = timm_outputs(timm_tower(config, tower.state_dict(), gelu).to(device), images)
    differences = {name: list(map(_relative, found, truth)) for name, found in columns.items()}
    return DataFrame(differences, columns=[OURS, TIMM, TIMM_TANH]).rename_axis("layers")


def _relative(found: Tensor, truth: Tensor) -> float:
    return ((found - truth).norm() / truth.norm()).item()
