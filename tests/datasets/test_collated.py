"""Batches of another layout: there and back, and cut by examples on the way."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DataCollatorWithFlattening
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from curate.datasets import Pairs, Sequences, batch_length, is_flattened, take

TEXTS = [[5, 6, 7], [8, 9], [3, 4, 5, 6], [7]]
ROWS = [{"input_ids": ids, "labels": ids} for ids in TEXTS]
PACKS = [
    {"input_ids": TEXTS[0] + TEXTS[1], "labels": [-100, 6, 7, -100, 9], "seq_lengths": [3, 2]},
    {"input_ids": TEXTS[2] + TEXTS[3], "labels": [-100, 4, 5, 6, -100], "seq_lengths": [4, 1]},
]
FLATTENING: dict[str, Any] = {
    "trl": DataCollatorForLanguageModeling(0, padding_free=True),
    "transformers": DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True),
    "positions only": DataCollatorWithFlattening(),
}
PAIRS = [
    {"prompt_ids": [2, 3], "chosen_ids": [4, 5], "rejected_ids": [6]},
    {"prompt_ids": [7], "chosen_ids": [8], "rejected_ids": [9, 10, 11]},
    {"prompt_ids": [4, 4, 4], "chosen_ids": [1], "rejected_ids": [2]},
]


def require_equal(one: Any, other: Any) -> None:
    assert one.keys() == other.keys()
    for key, part in other.items():
        if isinstance(part, Tensor):
            assert torch.equal(one[key], part), key
            assert one[key].dtype == part.dtype, key
        else:
            assert one[key] == part, key


@pytest.mark.parametrize("kind", FLATTENING)
def test_a_flattened_batch_is_cut_as_if_only_those_texts_had_been_collated(kind: str) -> None:
    collate = FLATTENING[kind]
    batch = collate(ROWS)
    assert is_flattened(batch)
    sequences = Sequences.split(batch)
    assert batch_length(sequences) == 4
    assert sequences["input_ids"].tolist()[1] == [8, 9, 0, 0]
    assert sequences["labels"].tolist()[1] == [-100, 9, -100, -100]
    require_equal(sequences.collated(), batch)
    cut = take(sequences, torch.tensor([1, 2]))
    require_equal(cut.collated(), collate(ROWS[1:3]))
    assert not is_flattened(cut)


def test_packed_texts_are_cut_one_by_one() -> None:
    batch = FLATTENING["trl"](PACKS)
    sequences = Sequences.split(batch)
    assert [
        row[:n].tolist() for row, n in zip(sequences["input_ids"], (3, 2, 4, 1), strict=True)
    ] == TEXTS
    require_equal(sequences.collated(), batch)


def test_what_there_is_one_of_for_each_text_is_cut_with_them() -> None:
    batch = FLATTENING["trl"](ROWS) | {"row": torch.arange(4)}
    cut = take(Sequences.split(batch), torch.tensor([0, 3]))
    assert cut["row"].tolist() == cut.collated()["row"].tolist() == [0, 3]


def test_sums_are_those_of_each_text() -> None:
    sequences = Sequences.split(FLATTENING["trl"](ROWS))
    assert sequences.sums(torch.arange(10.0)).tolist() == [3.0, 7.0, 26.0, 9.0]


def test_a_padded_batch_is_not_flattened() -> None:
    padded = DataCollatorForLanguageModeling(0, return_position_ids=True)(ROWS[:1])
    assert not is_flattened(padded)
    assert not is_flattened(torch.ones(1, 3))
    assert not is_flattened({"position_ids": torch.tensor([[2, 3]])})


@pytest.mark.parametrize("has_reference", [False, True])
def test_a_paired_batch_is_cut_by_pairs(has_reference: bool) -> None:
    known = {"ref_chosen_logps": [-1.0, -2.0, -3.0], "ref_rejected_logps": [-4.0, -5.0, -6.0]}
    rows = [
        row | ({key: part[i] for key, part in known.items()} if has_reference else {})
        for i, row in enumerate(PAIRS)
    ]
    collate = DataCollatorForPreference(0, pad_to_multiple_of=8)
    lent = {} if has_reference else {key: torch.tensor(part) for key, part in known.items()}
    pairs = Pairs.split(collate(rows), lent)
    assert batch_length(pairs) == 3
    assert pairs["input_ids"][1, 0, :2].tolist() == [7, 8]
    assert pairs["input_ids"][1, 1, :4].tolist() == [7, 9, 10, 11]
    require_equal(pairs.collated(), collate(rows))
    cut = take(pairs, torch.tensor([0, 2]))
    assert cut["ref_rejected_logps"].tolist() == [-4.0, -6.0]
    require_equal(cut.collated(), collate([rows[0], rows[2]]))
