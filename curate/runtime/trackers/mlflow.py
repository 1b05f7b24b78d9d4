"""MLflow."""

from collections.abc import Mapping
from typing import Any

import mlflow


class MLflow:
    """A run of an experiment, at the tracking server that MLFLOW_TRACKING_URI names."""

    def __init__(self, where: str, config: Mapping[str, Any]) -> None:
        mlflow.set_experiment(where)
        mlflow.start_run()
        mlflow.log_dict(dict(config), "config.json")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """All of them at one step."""
        mlflow.log_metrics(dict(metrics), step=step)

    def close(self, *, failed: bool = False) -> None:
        """End the run, and say how it did."""
        mlflow.end_run("FAILED" if failed else "FINISHED")
