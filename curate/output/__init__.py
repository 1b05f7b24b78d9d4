"""What people look at: words, pictures and pages of results.

Each is imported from its own file: what looks at a finished run in the terminal loads no torch.
"""

__all__ = ["page", "terminal", "tuning", "verification"]
