"""Sizes and times as text."""

import pytest

from curate.runtime.units import duration, memory_bytes, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (2.94, "2.9 s"),
        (3, "3 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
        (360_000, "100.0 h"),
    ],
)
def test_a_duration_has_the_unit_that_people_use(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0.0 KiB"),
        (512, "0.5 KiB"),
        (1536, "1.5 KiB"),
        (2**20 - 1, "1,024.0 KiB"),
        (2**20, "1.0 MiB"),
        (3 * 2**30, "3.0 GiB"),
        (2**41, "2,048.0 GiB"),
    ],
)
def test_a_size_has_the_largest_unit_that_fits(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize("text", ["1.5 KiB", "256.0 MiB", "2.0 GiB"])
def test_a_size_reads_back(text: str) -> None:
    assert size(memory_bytes(text)) == text
    assert memory_bytes(text.replace(" ", "")) == memory_bytes(text)
