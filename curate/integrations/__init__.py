"""Selection inside other people's training loops."""

from curate.integrations.chooser import Decision, WindowChooser, WindowReport
from curate.integrations.loader import LookAheadLoader

__all__ = ["Decision", "LookAheadLoader", "WindowChooser", "WindowReport"]
