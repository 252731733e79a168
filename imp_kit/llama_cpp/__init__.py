"""Imp for llama.cpp: a checkpoint as GGUF files, and the texts that other programs need beside them."""
