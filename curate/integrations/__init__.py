"""Selection inside other people's training loops."""

from curate.integrations.decisions import Decision, WindowReport
from curate.integrations.hf_trainer import LookAheadMixin
from curate.integrations.lightning import LightningLookAhead
from curate.integrations.loader import LookAheadLoader
from curate.integrations.loop import WindowChooser

__all__ = [
    "Decision",
    "LightningLookAhead",
    "LookAheadLoader",
    "LookAheadMixin",
    "WindowChooser",
    "WindowReport",
]
