"""The objectives of Hugging Face models: from `labels` in the batch and `logits` in the output."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from curate.datasets import IGNORED
from curate.errors import ModelError
from curate.models.objectives.base import Batch, Model, Objective


class LabelsObjective(Objective):
    """The loss that a `transformers` model computes itself, example by example.

    It compares `model(**inputs).logits` with the labels: cross-entropy for a class per
    example, labels of shape (n,); squared error for a number per example; cross-entropy summed
    over tokens for labels of shape (n, tokens), those of -100 left out, an
    example counting for as many terms as it has labels.

    shifts: whether token t is predicted at position t - 1, as causal language models do.
    counts_first: whether a first token, which then has no prediction, counts all the
        same in the mean, as in Trainers that divide by the number of labels.
    unknown_to_model: keys of the batch that the model is not called with, beside the labels.
    """

    def __init__(
        self, *, shifts: bool, counts_first: bool = False, unknown_to_model: Collection[str] = ()
    ) -> None:
        self._shifts, self._counts_first = shifts, counts_first
        self._left_out = {"labels", *unknown_to_model}

    def losses(self, model: Model, batch: Batch) -> Tensor:
        logits, labels = self._logits(model, batch), self._labels(batch)
        if labels.is_floating_point():
            return (logits.reshape(labels.shape) - labels).square()
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        if labels.ndim == 1:
            return F.cross_entropy(logits, labels, reduction="none")
        per_token = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return per_token.view(labels.shape).sum(dim=1)

    def sizes(self, batch: Batch) -> Tensor:
        labels = batch["labels"] if self._counts_first else self._labels(batch)
        if labels.ndim == 1:
            return torch.ones(len(labels), device=labels.device)
        terms: Tensor = (labels != IGNORED).sum(dim=1)
        return terms

    def metrics(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        labels = self._labels(batch)
        if labels.is_floating_point():
            return {}
        right = self._logits(model, batch).argmax(dim=-1) == labels
        if labels.ndim == 1:
            return {"accuracy": right.double()}
        counted = labels != IGNORED
        share = (right & counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
        return {"token_accuracy": share.double()}

    def _labels(self, batch: Batch) -> Tensor:
        if not isinstance(batch, Mapping) or not isinstance(batch.get("labels"), Tensor):
            raise ModelError(
                "the default objective reads a tensor `labels` in each batch; "
                "give an objective of your own, (model, batch) -> one loss per example."
            )
        labels: Tensor = batch["labels"]
        if self._shifts and labels.ndim == 2:
            return F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        return labels

    def _logits(self, model: Model, batch: Batch) -> Tensor:
        inputs = {key: value for key, value in batch.items() if key not in self._left_out}
        logits: Tensor = model(**inputs).logits
        return logits


class CausalLM(LabelsObjective):
    """Cross-entropy of every token after the first, summed over a text."""

    def __init__(self) -> None:
        super().__init__(shifts=True)


class SequenceClassification(LabelsObjective):
    """Cross-entropy of the class of a text."""

    def __init__(self) -> None:
        super().__init__(shifts=False)


@torch.no_grad()
def find_shift(model: Model, batch: Batch, unknown_to_model: Collection[str] = ()) -> bool:
    """Whether the loss that a model computes itself shifts the labels by one.

    Raises:
        ModelError: it computes none, or neither that of shifted labels nor of those as they are.
    """
    inputs = {key: value for key, value in batch.items() if key not in unknown_to_model}
    loss = getattr(model(**inputs), "loss", None)
    if loss is None:
        raise ModelError("the model gives no loss for its labels; give an objective of your own.")
    means = []
    for shifts in (False, True):
        objective = LabelsObjective(shifts=shifts, unknown_to_model=unknown_to_model)
        mean = objective.losses(model, batch).sum() / objective.sizes(batch).sum()
        if torch.isclose(mean.double(), loss.double(), rtol=1e-3):
            return shifts
        means.append(f"{float(mean):.6g}")
    raise ModelError(
        f"the model's own loss is {float(loss):.6g}, and the default objective makes it "
        f"{means[0]}, or {means[1]} with labels shifted by one; give an objective of your own."
    )
