"""Texts as token ids: padded on the right, never packed, divided without loss."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from curate.datasets import Encoded, TokenExamples, tensors, tokens
from curate.datasets.tokens import CHUNK_TOKENS, IGNORED
from curate.runtime import large

CPU = torch.device("cpu")


def examples(lengths: list[int], labels: torch.Tensor | None = None) -> TokenExamples:
    """Text i has tokens 100 i + 1, 100 i + 2, ...; the first half is not learned."""
    texts = [
        Encoded([100 * i + k + 1 for k in range(n)], [k >= n // 2 for k in range(n)], n > 5)
        for i, n in enumerate(lengths)
    ]
    return TokenExamples.gather(iter(texts), labels, pad=7)


def test_a_batch_is_padded_on_the_right_and_learns_no_padding() -> None:
    batch = examples([2, 9, 4]).batch(torch.tensor([2, 0]), CPU)
    assert batch["input_ids"].tolist() == [[201, 202, 203, 204], [1, 2, 7, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [
        [IGNORED, IGNORED, 203, 204],
        [IGNORED, 2, IGNORED, IGNORED],
    ]


def test_classes_take_the_place_of_tokens_as_labels() -> None:
    classified = examples([2, 3], torch.tensor([1, 0]))
    assert classified.batch(torch.tensor([1]), CPU)["labels"].tolist() == [0]
    labels = classified.with_labels(torch.tensor([1, 1])).take(torch.tensor([1])).labels
    assert labels is not None
    assert labels.tolist() == [1]


def test_parts_are_the_same_texts() -> None:
    rng = random.Random(0)
    whole = examples([rng.randrange(1, 12) for _ in range(40)])
    positions = torch.tensor(rng.sample(range(40), 17))
    part = whole.take(positions)
    assert len(part) == 17
    assert torch.equal(part.rows, positions)
    assert torch.equal(part.cut, whole.cut[positions])
    assert part.source_row(3) == positions[3]
    everything = torch.arange(17)
    for name, tensor in part.batch(everything, CPU).items():
        assert torch.equal(tensor, whole.batch(positions, CPU)[name]), name


def test_terms_are_the_learned_tokens_that_are_predicted() -> None:
    texts = examples([1, 2, 5, 8])
    labels = texts.batch(torch.arange(4), CPU)["labels"]
    assert torch.equal(texts.terms(), (labels[:, 1:] != IGNORED).sum(dim=1))
    assert texts.terms().tolist() == [0, 1, 3, 4]


def test_chunks_hold_so_many_texts_and_so_many_tokens() -> None:
    rng = random.Random(1)
    lengths = [rng.randrange(1, 900) for _ in range(300)] + [2 * CHUNK_TOKENS, 3]
    texts = examples(lengths)
    for size in (1, 7, 1000):
        chunks = list(texts.chunks(size))
        assert torch.equal(torch.cat(chunks), torch.arange(302))
        for chunk in chunks:
            padded = len(chunk) * max(lengths[i] for i in chunk.tolist())
            assert len(chunk) <= size
            assert padded <= CHUNK_TOKENS or len(chunk) == 1


def test_memory_is_that_of_the_tokens() -> None:
    texts = examples([3] * 50 + [5000])
    assert texts.tokens.nbytes + texts.learned.nbytes == 5 * (150 + 5000)


def test_joined_texts_come_one_after_the_other_with_their_rows() -> None:
    whole = examples([3, 1, 8, 2])
    joined = whole.take(torch.tensor([2, 0])).joined(whole.take(torch.tensor([1])))
    assert joined.rows.tolist() == [2, 0, 1]
    assert joined.cut.tolist() == [True, False, False]
    expected = list(whole.contents())
    assert list(joined.contents()) == [expected[2], expected[0], expected[1]]


def test_a_text_without_tokens_has_nothing_to_learn() -> None:
    texts = examples([0, 3, 0])
    assert texts.lengths().tolist() == [0, 3, 0]
    assert texts.terms().tolist() == [0, 2, 0]
    assert [len(content) for content in texts.contents()] == [0, 12, 0]


def test_in_pieces_and_in_files_all_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(2)
    lengths = [rng.randrange(9) for _ in range(60)]
    labels, positions = torch.arange(60), torch.tensor(rng.sample(range(60), 25))

    def all_of_it() -> Iterator[torch.Tensor]:
        for one in (examples(lengths), examples(lengths, labels)):
            for part in (one, one.take(positions), one.joined(one.take(positions))):
                yield from (part.tokens, part.learned, part.starts, part.rows, part.cut)
                yield from (
                    part.terms(),
                    part.lengths(),
                    torch.tensor([*map(hash, part.contents())]),
                )
                yield from part.chunks(7)
                yield from part.batch(torch.arange(0, 25, 3), CPU).values()

    whole = [*all_of_it()]
    monkeypatch.setattr(tokens, "TOGETHER", 5)
    monkeypatch.setattr(tokens, "ROWS", 3)
    monkeypatch.setattr(tensors, "PIECE", 8)
    monkeypatch.setattr(large, "SMALL", 16)
    assert all(map(torch.equal, whole, all_of_it()))


def test_texts_that_are_kept_are_not_asked_for_again(tmp_path: Path) -> None:
    file, first = tmp_path / "tokens.safetensors", examples([3, 0, 4])
    texts = [Encoded(i.tolist(), [True] * len(i), False) for i in first.tokens.split([3, 4])]
    made = TokenExamples.gather(iter(texts), None, 7, file)

    def never() -> Iterator[Encoded]:
        raise AssertionError
        yield

    again = TokenExamples.gather(never(), None, 7, file)
    for name in ("tokens", "learned", "starts", "rows", "cut"):
        assert torch.equal(getattr(made, name), getattr(again, name)), name
