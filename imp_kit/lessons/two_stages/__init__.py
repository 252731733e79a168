"""Lesson 07: a tiny Imp that learns from nothing in two stages, and a new shape that imp-nano learns by LoRA."""
