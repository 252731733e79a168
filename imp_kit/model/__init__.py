"""The network: SigLIP tower, projector, decoder, and how its weights are read."""
