"""Weights & Biases."""

from collections.abc import Mapping
from typing import Any

import wandb


class WandB:
    """A run of a project, of the entity that is logged in or of `ENTITY/PROJECT`."""

    def __init__(self, where: str, config: Mapping[str, Any]) -> None:
        entity, _, project = where.rpartition("/")
        self._run = wandb.init(project=project, entity=entity or None, config=dict(config))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """All of them at one step."""
        self._run.log(dict(metrics), step=step)

    def close(self, *, failed: bool = False) -> None:
        """Upload what is left."""
        self._run.finish(exit_code=int(failed))
