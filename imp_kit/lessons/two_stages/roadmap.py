"""What Imp's authors published about rank and epochs, next to which the lesson's own grid is drawn."""

SOURCE = "Shao et al., arXiv 2405.12107"
# The mean of VQAv2, GQA, TextVQA, ScienceQA, POPE and MMBench, as their roadmap has it: Phi-2 with SigLIP.
PUBLISHED = (
    ("LoRA, rank 128, 1 epoch", 71.4),
    ("all weights, 1 epoch", 71.2),
    ("LoRA, rank 256, 1 epoch", 71.6),
    ("LoRA, rank 512, 1 epoch", 71.5),
    ("LoRA, rank 256, 2 epochs", 72.1),
    ("LoRA, rank 256, 3 epochs", 71.7),
)
