"""A stand-in for the code beside Imp's weights on the hub: its interface, made of transformers' own classes.

It is what transformers runs when a checkpoint is loaded with `trust_remote_code=True`, so nothing here uses the kit.
The relative import has to stay: it is what breaks where a repository's name has a dot.
"""

import torch
from torch import nn
from transformers import PhiForCausalLM, PhiModel, SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from .configuration_imp import ImpConfig


class VisionTower(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.vision_tower = SiglipVisionModel(SiglipVisionConfig(**config.vision_config))


class ImpModel(PhiModel):
    config_class = ImpConfig

    def __init__(self, config):
        super().__init__(config)
        width = config.hidden_size
        self.vision_tower = VisionTower(config)
        self.mm_projector = nn.Sequential(
            nn.Linear(config.vision_config["hidden_size"], width), nn.GELU(), nn.Linear(width, width)
        )


class ImpForCausalLM(PhiForCausalLM):
    config_class = ImpConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = ImpModel(config)
        self.post_init()

    def image_preprocess(self, image):
        size = self.config.vision_config["image_size"]
        processor = SiglipImageProcessor(size={"height": size, "width": size})
        return processor(image, return_tensors="pt").pixel_values

    @torch.no_grad()
    def generate(self, input_ids, images, **settings):
        """Prompt and answer, as ids; the picture's features stand where the prompt has the picture's token."""
        tower = self.model.vision_tower.vision_tower(images, output_hidden_states=True)
        picture = self.model.mm_projector(tower.hidden_states[self.config.mm_vision_select_layer])
        place = input_ids[0].tolist().index(self.config.image_token_index)
        before, after = (self.model.embed_tokens(ids) for ids in (input_ids[:, :place], input_ids[:, place + 1 :]))
        embeddings = torch.cat((before, picture, after), dim=1)
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
        return super().generate(input_ids, inputs_embeds=embeddings, attention_mask=mask, **settings)
