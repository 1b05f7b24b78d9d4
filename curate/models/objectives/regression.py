"""The objective `regression`: one number or several per example."""

from torch import Tensor

from curate.errors import ModelError
from curate.models.objectives.base import Batch, Model, Objective, describe


class Regression(Objective):
    """Squared error of `model(batch["features"])` with batch["label"], summed over outputs.

    Prediction and label have shape (n, k), or (n,), which stands for (n, 1).
    """

    def losses(self, model: Model, batch: Batch) -> Tensor:
        label = batch["label"].reshape(len(batch["label"]), -1)
        output = model(batch["features"])
        if not isinstance(output, Tensor) or output.numel() != label.numel():
            raise ModelError(
                f"objective regression needs model(features) to be a tensor of shape "
                f"{tuple(label.shape)} but got {describe(output)}."
            )
        losses: Tensor = (output.reshape(label.shape) - label).square().sum(dim=1)
        return losses
