"""Parts of a result: each fails on its own, and what would fail again is told apart."""

import pytest

from curate.errors import DataError, NonFiniteError, OutputError, RunError
from curate.runtime.parts import FAILED, MISSING, Parts, error_of


def raising(error: BaseException) -> object:
    raise error


def test_what_fails_is_noted_by_its_name_and_the_rest_is_made() -> None:
    parts = Parts()
    assert parts.attempt("good", lambda: 3) == 3
    assert error_of(parts.outcome(), "out") is None
    first = OSError(28, "No space left on device", "a.html")
    for name, error in (
        ("disk", first),
        ("memory", MemoryError()),
        ("nan", NonFiniteError("a loss\nof nan.")),
        ("data", DataError("row 3 is bad.")),
    ):
        assert parts.attempt(name, lambda error=error: raising(error)) is None
    assert parts.cause is first
    assert parts.outcome() == {
        MISSING: {
            "disk": "OSError: [Errno 28] No space left on device: 'a.html'",
            "memory": "MemoryError:",
        },
        FAILED: {"nan": "a loss of nan", "data": "row 3 is bad"},
    }
    told = str(error_of(parts.outcome(), "out"))
    assert told.startswith("out has what was kept and every score, but this failed: disk: OSError")
    assert told.endswith("; nan: a loss of nan; data: row 3 is bad.")


def test_a_full_disk_may_have_room_again_whatever_it_is_called() -> None:
    parts = Parts()

    def full() -> None:
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise OutputError("out: cannot be written.") from error

    parts.attempt("report", full)
    assert [*parts.outcome()] == [MISSING]


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (OverflowError("date value out of range"), FAILED),
        (AttributeError("casefold"), FAILED),
        (RuntimeError("shapes do not go together"), FAILED),
        (RuntimeError("CUDA error: unspecified launch failure"), MISSING),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), MISSING),
        (RunError("a worker is gone."), MISSING),
    ],
)
def test_what_comes_back_the_same_has_failed(error: BaseException, where: str) -> None:
    parts = Parts()
    parts.attempt("report", lambda: raising(error))
    assert [*parts.outcome()] == [MISSING]
    again = Parts(before=parts.missing)
    again.attempt("report", lambda: raising(error))
    assert [*again.outcome()] == [where]


def test_an_interrupt_is_not_a_failure() -> None:
    with pytest.raises(KeyboardInterrupt):
        Parts().attempt("part", lambda: raising(KeyboardInterrupt()))
