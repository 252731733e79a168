"""Who else an experiment can ask: models of transformers, and endpoints that speak OpenAI's protocol."""

from imp_kit.subjects.openai_endpoint import OpenAIEndpoint
from imp_kit.subjects.transformers_model import Transformers

__all__ = ["OpenAIEndpoint", "Transformers"]
