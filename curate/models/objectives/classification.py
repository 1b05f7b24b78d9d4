"""The objective `classification`: one class per example."""

from torch import Tensor
from torch.nn import functional as F

from curate.errors import ModelError
from curate.models.objectives.base import Batch, Model, Objective, describe


class Classification(Objective):
    """Cross-entropy of `model(batch["features"])`, shape (n, classes), with batch["label"]."""

    def losses(self, model: Model, batch: Batch) -> Tensor:
        return F.cross_entropy(*self.outputs(model, batch), reduction="none")

    def losses_and_metrics(self, model: Model, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Both, from one forward pass."""
        logits, labels = self.outputs(model, batch)
        return F.cross_entropy(logits, labels, reduction="none"), _metrics(logits, labels)

    def outputs(self, model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits, shape (n, classes), and classes, shape (n,)."""
        return _logits(model, batch), batch["label"]

    def metrics(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        return _metrics(*self.outputs(model, batch))

    def class_losses(self, model: Model, batch: Batch, classes: int) -> Tensor:
        return -_logits(model, batch)[:, :classes].log_softmax(dim=1)


def _metrics(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    return {"accuracy": (logits.argmax(dim=1) == labels).double()}


def _logits(model: Model, batch: Batch) -> Tensor:
    logits, count = model(batch["features"]), len(batch["label"])
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count:
        raise ModelError(
            f"objective classification needs model(features) to be a tensor of shape "
            f"({count}, classes) but got {describe(logits)}."
        )
    return logits
