"""Notebook 05: one image followed to one word."""
