"""Selection inside other people's training loops."""

from curate.integrations.hf_trainer import LookAheadMixin
from curate.integrations.lightning import LightningLookAhead
from curate.integrations.loader import LookAheadLoader
from curate.integrations.loop import LiveLoop
from curate.integrations.window import Decision, WindowReport

__all__ = [
    "Decision",
    "LightningLookAhead",
    "LiveLoop",
    "LookAheadLoader",
    "LookAheadMixin",
    "WindowReport",
]
