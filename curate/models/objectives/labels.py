"""The objectives of Hugging Face models: from `labels` in the batch and `logits` in the output."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curate.datasets import IGNORED, Sequences, as_collated
from curate.errors import ModelError
from curate.models.objectives.base import Batch, Model, Objective


class LabelsObjective(Objective):
    """The loss that a `transformers` model computes itself, example by example.

    It compares `model(**inputs).logits` with the labels: cross-entropy for a class per
    example, labels of shape (n,); squared error for a number per example; cross-entropy summed
    over tokens for labels of shape (n, tokens). Labels of -100 are left out, and an example
    counts for as many terms as it has labels. The model gets `Sequences` as one flattened row.

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
        return self._losses(*self.outputs(model, batch), batch)

    def losses_and_metrics(self, model: Model, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Both, from one forward pass."""
        logits, labels = self.outputs(model, batch)
        return self._losses(logits, labels, batch), self._metrics(logits, labels)

    def _losses(self, logits: Tensor, labels: Tensor, batch: Batch) -> Tensor:
        if labels.is_floating_point():
            return (logits.reshape(labels.shape) - labels).square()
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        if isinstance(batch, Sequences):
            per_token = F.cross_entropy(logits[0], labels[batch.inside], reduction="none")
            return batch.sums(per_token)
        if labels.ndim == 1:
            return F.cross_entropy(logits, labels, reduction="none")
        per_token = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return per_token.view(labels.shape).sum(dim=1)

    def outputs(self, model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits and labels."""
        return self._logits(model, batch), self._labels(batch)

    def sizes(self, batch: Batch) -> Tensor:
        labels = batch["labels"] if self._counts_first else self._labels(batch)
        if labels.is_floating_point():
            return torch.ones(len(labels), device=labels.device)
        terms: Tensor = (labels != IGNORED).view(len(labels), -1).sum(dim=1)
        return terms

    def metrics(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        return self._metrics(*self.outputs(model, batch))

    def _metrics(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if labels.is_floating_point():
            return {}
        right = logits.argmax(dim=-1) == labels
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
        given = as_collated(batch)
        inputs = {key: value for key, value in given.items() if key not in self._left_out}
        shifted = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if shifted is not None and not {"decoder_input_ids", "decoder_inputs_embeds"} & {*inputs}:
            inputs["decoder_input_ids"] = shifted(labels=batch["labels"])
        output = model(**inputs)
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor):
            raise ModelError(
                f"the default objective reads `logits` of what the model returns, a "
                f"{type(output).__name__} without; give an objective of your own."
            )
        return logits


class CausalLM(LabelsObjective):
    """Cross-entropy of every token after the first, summed over a text."""

    def __init__(self) -> None:
        super().__init__(shifts=True)


class SequenceClassification(LabelsObjective):
    """Cross-entropy of the class of a text."""

    def __init__(self) -> None:
        super().__init__(shifts=False)

    def class_losses(self, model: Model, batch: Batch, classes: int) -> Tensor:
        return -self._logits(model, batch)[:, :classes].float().log_softmax(dim=1)


@torch.no_grad()
def find_shift(model: Model, batch: Batch, unknown_to_model: Collection[str] = ()) -> bool:
    """Whether the loss that a model computes itself shifts the labels by one.

    Where the weights do not tell, as those of a head that is 0, it is asked with noise on them.

    Raises:
        ModelError: it computes none, or neither that of shifted labels nor of those as they are.
    """
    given = as_collated(batch)
    inputs = {key: value for key, value in given.items() if key not in unknown_to_model}
    for shake in (False, True):
        with _shaken(model) if shake else nullcontext():
            loss = getattr(model(**inputs), "loss", None)
            if loss is None:
                raise ModelError(
                    "the model gives no loss for its labels; give an objective of your own."
                )
            means = []
            for shifts in (False, True):
                objective = LabelsObjective(shifts=shifts, unknown_to_model=unknown_to_model)
                means.append(objective.losses(model, batch).sum() / objective.sizes(batch).sum())
        fits = [torch.isclose(mean.double(), loss.double(), rtol=1e-3) for mean in means]
        if not any(fits):
            raise ModelError(
                f"the model's own loss is {float(loss):.6g}, and the default objective makes it "
                f"{float(means[0]):.6g}, or {float(means[1]):.6g} with labels shifted by one; give "
                "an objective of your own."
            )
        if not all(fits):
            break
    return not fits[0]


@contextmanager
def _shaken(model: Model) -> Iterator[None]:
    """The model with noise on its weights, as large as they are; they are put back."""
    parameters = [*model.parameters()] if isinstance(model, nn.Module) else []
    parameters = [p for p in parameters if p.is_floating_point()]
    before = [p.detach().clone() for p in parameters]
    noise = torch.Generator().manual_seed(0)
    try:
        for p in parameters:
            scale = float(p.std(correction=0)) or 0.1
            p.add_(scale * torch.randn(p.shape, generator=noise).to(p))
        yield
    finally:
        for p, kept in zip(parameters, before, strict=True):
            p.copy_(kept)
