"""Selection inside other people's training loops."""

from curate.integrations.loader import LookAheadLoader, WindowReport

__all__ = ["LookAheadLoader", "WindowReport"]
