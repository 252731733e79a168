"""The network: SigLIP tower, projector, decoder, and how it generates. Imports nothing of the kit but errors."""
