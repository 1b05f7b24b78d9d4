"""What does a run leave, and how is it looked at?

Every part is imported from its own file: what looks at a finished run in the terminal loads no
torch.
"""

__all__: list[str] = []
