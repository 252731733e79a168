"""LoRA (arXiv 2106.09685) for a checkpoint's decoder, on images with questions and answers, merged back into files."""
