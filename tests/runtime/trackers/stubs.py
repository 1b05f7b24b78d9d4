"""Stand-ins for trackers' packages, and a tracker that takes notes."""

from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

Calls = list[tuple[str, Any]]


class Recorder:
    """A tracker of one's own: a method is all it takes."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []
        self.asked = 0
        self._fail_at = fail_at

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.asked += 1
        if self.asked == self._fail_at:
            raise ConnectionError("the server\nis away")
        self.told.append((step, dict(metrics)))

    def of(self, kind: str) -> list[tuple[int, dict[str, float]]]:
        """What was told of windows, say: names without `window/`."""
        start = f"{kind}/"
        return [
            (step, {name.removeprefix(start): value for name, value in metrics.items()})
            for step, metrics in self.told
            if all(name.startswith(start) for name in metrics)
        ]


class Talkative(Calls):
    """Prints when it is opened and closed."""

    def append(self, call: tuple[str, Any]) -> None:
        if call[0] in ("open", "close"):
            print(call)

    def extend(self, calls: Any) -> None:
        for call in calls:
            self.append(call)


def stub_tensorboard(calls: Calls) -> ModuleType:
    class SummaryWriter:
        def __init__(self, where: str) -> None:
            calls.append(("open", where))

        def add_text(self, name: str, text: str) -> None:
            calls.append(("config", f"{name}: {text}"))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append(("log", ({name: value}, step)))

        def flush(self) -> None:
            calls.append(("flush", None))

        def close(self) -> None:
            calls.append(("close", None))

    module: Any = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    return module  # type: ignore[no-any-return]


def stub_wandb(calls: Calls) -> ModuleType:
    def init(*, project: str, entity: str | None, config: dict[str, Any]) -> Any:
        calls.extend([("open", f"{entity}/{project}"), ("config", str(config))])
        return SimpleNamespace(
            log=lambda metrics, step: calls.append(("log", (metrics, step))),
            finish=lambda exit_code: calls.append(("close", exit_code)),
        )

    module: Any = ModuleType("wandb")
    module.init = init
    return module  # type: ignore[no-any-return]


def stub_mlflow(calls: Calls) -> ModuleType:
    module: Any = ModuleType("mlflow")
    module.set_experiment = lambda where: calls.append(("open", where))
    module.start_run = lambda: calls.append(("start", None))
    module.log_dict = lambda config, name: calls.append(("config", str(config)))
    module.log_metrics = lambda metrics, step: calls.append(("log", (metrics, step)))
    module.end_run = lambda status: calls.append(("close", status))
    return module  # type: ignore[no-any-return]


STUBS = {
    "tensorboard": ("torch.utils.tensorboard", stub_tensorboard, "runs/x", "runs/x"),
    "wandb": ("wandb", stub_wandb, "lab/project", "lab/project"),
    "mlflow": ("mlflow", stub_mlflow, "experiment", "experiment"),
}
