"""What is typed, and what is printed?"""

__all__: list[str] = []
