"""TensorBoard."""

import json
from collections.abc import Mapping
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Writes event files to a directory; `tensorboard --logdir DIRECTORY` shows them."""

    def __init__(self, where: str, config: Mapping[str, Any]) -> None:
        self._writer = SummaryWriter(where)
        text = json.dumps(config, indent=2).replace("\n", "\n    ")
        self._writer.add_text("config", f"    {text}")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Each number as a scalar, on disk when the call returns."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, *, failed: bool = False) -> None:
        """Event files do not say how a run ended."""
        del failed
        self._writer.close()
