"""Who an experiment can ask besides a checkpoint of the kit: models of transformers, and endpoints."""
