"""A server that answers as OpenAI's chat completions do."""
