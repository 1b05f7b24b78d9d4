"""From a recipe to a directory: what is done, in which order?"""

__all__: list[str] = []
