"""Who else an experiment can ask: models of transformers, and endpoints that speak OpenAI's protocol."""
