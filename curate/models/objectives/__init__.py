"""Losses: a file for each; the recipe names them in `curate/recipe/names.py`."""
