"""Which versions of transformers load Imp: the calls (calls.py), and what each does in each version (measure.py)."""
