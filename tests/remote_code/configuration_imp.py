"""What a checkpoint's config.json holds, for modeling_imp.py beside it."""

from transformers import PhiConfig


class ImpConfig(PhiConfig):
    model_type = "imp"

    def __init__(self, vision_config=None, mm_vision_select_layer=-2, image_token_index=None, **settings):
        self.vision_config = vision_config or {}
        self.mm_vision_select_layer = mm_vision_select_layer
        self.image_token_index = image_token_index
        super().__init__(**settings)
