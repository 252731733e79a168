"""Experiments: images that are drawn, answers that are kept, figures with intervals, reports."""
