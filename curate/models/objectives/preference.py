"""The objective `preference`: that one completion is preferred to another."""

import torch
from torch import Tensor
from torch.nn import functional as F

from curate.datasets import IGNORED, REFERENCE
from curate.errors import ModelError
from curate.models.objectives.base import Batch, Model, Objective, describe

BETA = 0.1


class Preference(Objective):
    """Direct preference optimization (Rafailov et al., 2023, equation 7), a pair an example:

        -log sigmoid(beta ((log p(chosen) - log q(chosen)) - (log p(rejected) - log q(rejected))))

    p is the model's probability of a completion, q the reference's. A batch has `input_ids`,
    `attention_mask` and `completion_mask`, shape (n, 2, tokens), the chosen text first, and log q
    as `ref_chosen_logps` and `ref_rejected_logps`, shape (n,).
    """

    def __init__(self, beta: float = BETA) -> None:
        self.beta = beta

    def losses(self, model: Model, batch: Batch) -> Tensor:
        return self._losses(_margins(model, batch))

    def metrics(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        return _metrics(_margins(model, batch))

    def losses_and_metrics(self, model: Model, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Both, from one forward pass."""
        margins = _margins(model, batch)
        return self._losses(margins), _metrics(margins)

    def _losses(self, margins: Tensor) -> Tensor:
        return -F.logsigmoid(self.beta * margins)


def _metrics(margins: Tensor) -> dict[str, Tensor]:
    return {"preferred": (margins > 0).double()}


def log_probabilities(model: Model, batch: Batch) -> Tensor:
    """Log-probabilities of the completions, summed over their tokens, shape (n, 2)."""
    ids, mask, learned = (
        batch[key].flatten(0, 1) for key in ("input_ids", "attention_mask", "completion_mask")
    )
    logits = getattr(model(input_ids=ids, attention_mask=mask), "logits", None)
    if not isinstance(logits, Tensor) or logits.shape[:2] != ids.shape:
        raise ModelError(
            "objective preference reads logits of shape (texts, tokens, vocabulary), but the model "
            f"gives {describe(logits)}."
        )
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    labels = ids.masked_fill(learned == 0, IGNORED)[:, 1:]
    lost = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), reduction="none")
    return -lost.view(labels.shape).sum(dim=1).view(-1, 2)


def _margins(model: Model, batch: Batch) -> Tensor:
    reference = torch.stack([batch[key] for key in REFERENCE], dim=1)
    chosen, rejected = (log_probabilities(model, batch) - reference).unbind(dim=1)
    return chosen - rejected
