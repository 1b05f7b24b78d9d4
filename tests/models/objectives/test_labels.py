"""Losses from labels and logits are those that transformers computes itself."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from curate.errors import ModelError
from curate.models import LabelsObjective, find_shift
from tests import words

LENGTHS = (7, 3, 5)


@pytest.fixture(scope="module")
def texts() -> dict[str, Tensor]:
    """Three padded texts, the padding and the first label of each left out of the loss."""
    ids = torch.randint(1, words.VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(7) < torch.tensor(LENGTHS)[:, None]
    labels = ids.masked_fill(~mask, -100)
    labels[1, 1] = -100
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


@pytest.mark.parametrize("counts_first", [False, True])
def test_shifted_token_losses_are_those_of_the_model(
    texts: dict[str, Tensor], counts_first: bool
) -> None:
    model = words.gpt2().eval()
    objective = LabelsObjective(shifts=True, counts_first=counts_first)
    losses, sizes = objective.losses(model, texts), objective.sizes(texts)
    assert sizes.tolist() == ([7, 2, 5] if counts_first else [6, 1, 4])
    if not counts_first:
        torch.testing.assert_close(losses.sum() / sizes.sum(), model(**texts).loss)
    for i, length in enumerate(LENGTHS):
        alone = {key: value[i : i + 1, :length] for key, value in texts.items()}
        torch.testing.assert_close(objective.losses(model, alone)[0], losses[i])


def test_accuracies_are_per_example(texts: dict[str, Tensor]) -> None:
    logits = torch.zeros(3, 7, words.VOCABULARY)
    logits.scatter_(2, texts["labels"].clamp(min=0).roll(-1, 1)[..., None], 1)
    logits[0, :3] = 0  # three of the six predictions of the first text are wrong

    def model(**_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=logits)

    metrics = LabelsObjective(shifts=True).metrics(model, texts)
    assert metrics["token_accuracy"].tolist() == [0.5, 1, 1]
    classes = {"labels": torch.tensor([1, 2, 0])}

    def classifier(**_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.eye(3))

    metrics = LabelsObjective(shifts=False).metrics(classifier, classes)
    assert metrics["accuracy"].tolist() == [0, 0, 0]


def echo(x: Tensor) -> SimpleNamespace:
    return SimpleNamespace(logits=x)


def test_labels_that_are_numbers_are_regressed() -> None:
    objective = LabelsObjective(shifts=False, unknown_to_model=["row"])
    batch = {"x": torch.randn(4, 1), "labels": torch.randn(4), "row": torch.arange(4)}
    assert torch.equal(objective.losses(echo, batch), (batch["x"][:, 0] - batch["labels"]) ** 2)
    assert objective.sizes(batch).tolist() == [1] * 4
    assert objective.metrics(echo, batch) == {}
    for wrong in ({"x": torch.ones(3)}, torch.ones(3)):
        with pytest.raises(ModelError, match="reads a tensor `labels`"):
            objective.sizes(wrong)


def test_logits_in_half_precision_are_summed_in_float32() -> None:
    batch = {"x": torch.randn(4, 5).bfloat16(), "labels": torch.tensor([0, 1, 2, 3])}
    losses = LabelsObjective(shifts=False).losses(echo, batch)
    single = LabelsObjective(shifts=False).losses(echo, batch | {"x": batch["x"].float()})
    assert torch.equal(losses, single)


def test_the_models_own_loss_says_whether_labels_are_shifted(texts: dict[str, Tensor]) -> None:
    assert find_shift(words.gpt2().eval(), texts | {"row": torch.arange(3)}, ["row"])
    classes = {"input_ids": texts["input_ids"], "labels": torch.tensor([0, 1, 1])}
    assert not find_shift(words.bert().eval(), classes)

    def other(labels: Tensor | None = None) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.zeros(2, 2), loss=torch.tensor(9.0))

    with pytest.raises(
        ModelError, match=r"own loss is 9, and the default objective makes it 0.693147, or 0.69"
    ):
        find_shift(other, {"labels": torch.tensor([0, 1])})
    with pytest.raises(ModelError, match="gives no loss"):
        find_shift(lambda labels: SimpleNamespace(logits=labels), {"labels": torch.ones(2)})


def test_classes_that_are_ignored_count_for_nothing() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, -100, 0, 1, -100])
    objective = LabelsObjective(shifts=False)
    losses = objective.losses(lambda **_: SimpleNamespace(logits=logits), {"labels": labels})
    assert losses[[1, 4]].tolist() == [0, 0]
    mean = losses.sum() / objective.sizes({"labels": labels}).sum()
    torch.testing.assert_close(mean, F.cross_entropy(logits, labels))


def test_of_a_head_that_is_0_the_shift_is_found_and_the_weights_stay() -> None:
    """Shifted or not, the loss is the log of the vocabulary."""
    model = words.llama().eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    ids = torch.randint(1, words.VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, 0] = -100  # so that both ways count alike
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert find_shift(model, {"input_ids": ids, "labels": labels})
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_decoder_is_given_its_inputs_as_the_model_makes_them() -> None:
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=words.VOCABULARY,
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
            pad_token_id=0,
        )
    ).eval()
    ids = torch.randint(1, words.VOCABULARY, (3, 6), generator=torch.Generator().manual_seed(1))
    labels = ids.flip(1)
    labels[0, 4:] = -100
    batch = {"input_ids": ids, "labels": labels}
    assert not find_shift(model, batch)
    objective = LabelsObjective(shifts=False)
    mean = objective.losses(model, batch).sum() / objective.sizes(batch).sum()
    torch.testing.assert_close(mean, model(**batch).loss)
