"""Pairs as examples: padded together, and taken, joined and told apart as one."""

from itertools import pairwise

import pytest
import torch

from curate.datasets import REFERENCE, Encoded, PairExamples, TokenExamples

CPU = torch.device("cpu")
PROMPTS, CHOSEN, REJECTED = [[2, 3], [4], [5]], [[6, 7], [8], [9]], [[6], [9, 10, 11], [7, 7]]


def side(completions: list[list[int]]) -> TokenExamples:
    encoded = [
        Encoded(before + learned, [False] * len(before) + [True] * len(learned), cut=k == 1)
        for k, (before, learned) in enumerate(zip(PROMPTS, completions, strict=True))
    ]
    return TokenExamples.gather(encoded, None, pad=0)


def pairs() -> PairExamples:
    known = torch.tensor([[-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0]])
    return PairExamples.of(side(CHOSEN), side(REJECTED)).knowing(known)


def test_both_texts_of_a_row_are_padded_together() -> None:
    batch = pairs().batch(torch.tensor([0, 1]), CPU)
    assert batch["input_ids"].tolist() == [
        [[2, 3, 6, 7], [2, 3, 6, 0]],
        [[4, 8, 0, 0], [4, 9, 10, 11]],
    ]
    assert batch["attention_mask"].sum(dim=2).tolist() == [[4, 3], [2, 4]]
    assert batch["completion_mask"].tolist() == [
        [[0, 0, 1, 1], [0, 0, 1, 0]],
        [[0, 1, 0, 0], [0, 1, 1, 1]],
    ]
    assert [batch[key].tolist() for key in REFERENCE] == [[-1.0, -3.0], [-2.0, -4.0]]


def test_what_is_taken_and_joined_stays_together() -> None:
    some = pairs().take(torch.tensor([2, 0]))
    both = some.joined(pairs())
    assert len(both) == 5
    assert both.rows.tolist() == [2, 0, 0, 1, 2]
    assert both.reference[:2].tolist() == [[-5.0, -6.0], [-1.0, -2.0]]
    for key, part in pairs().batch(torch.tensor([2]), CPU).items():
        assert torch.equal(both.batch(torch.tensor([0]), CPU)[key], part)


def test_a_pair_has_the_terms_of_its_shorter_completion() -> None:
    assert pairs().terms().tolist() == [1, 1, 1]
    assert pairs().cut.tolist() == [False, True, False]


def test_contents_differ_where_either_text_does() -> None:
    own, swapped = pairs(), PairExamples.of(side(REJECTED), side(CHOSEN))
    assert len({*own.contents(), *swapped.contents()}) == 6
    assert [*own.contents()] == [*pairs().contents()]


def test_chunks_are_all_positions() -> None:
    chunks = [chunk.tolist() for chunk in pairs().chunks(2)]
    assert [row for chunk in chunks for row in chunk] == [0, 1, 2]
    assert all(one[-1] < other[0] for one, other in pairwise(chunks))


def test_pairs_have_no_labels() -> None:
    assert pairs().labels is None
    with pytest.raises(NotImplementedError):
        pairs().with_labels(torch.zeros(3))
