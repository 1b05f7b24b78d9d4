"""Which candidates are kept?"""

__all__: list[str] = []
