"""Parts of a result, each made on its own: one that fails takes nothing else with it."""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from curate.errors import CurateError, NonFiniteError, RunError, UserError
from curate.runtime.ranks import ALONE, Ranks

MISSING, FAILED = "missing", "failed"
"""The keys of provenance.json: parts that can still be made, and those that would fail again."""
OF_DEVICES = re.compile("memory|CUDA|HIP|MPS|NCCL|start new thread")
"""What is said where a device, or the machine, has not enough, or fails."""
T = TypeVar("T")


class Parts:
    """What became of the parts of a result.

    missing: those that can be tried again, and why they failed. failed: those that would fail in
    the same way again, and why; an error of code counts as such when it comes a second time.
    cause: the first of the errors.
    """

    def __init__(self, ranks: Ranks = ALONE, before: Mapping[str, str] | None = None) -> None:
        """before: parts that were missing already, and why."""
        self.missing: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.cause: BaseException | None = None
        self._ranks, self._before = ranks, before or {}

    def attempt(self, part: str, make: Callable[[], T]) -> T | None:
        """What `make` returns; None if it fails, which is noted under the name of the part.

        Of several ranks that make it together, one alone may fail: then all have to end.
        """
        try:
            return make()
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # the panics of Polars are no Exceptions
            words = str(error) if isinstance(error, CurateError) else _named(error)
            alike = isinstance(error, UserError | NonFiniteError)  # on all ranks
            again = not _may_pass(error) and (alike or self._before.get(part) == _line(words))
            if self._ranks.size > 1 and not (alike and again):
                raise
            self.note(part, words, error, again=again)
            return None

    def note(self, part: str, why: str, cause: BaseException | None = None, *, again: bool) -> None:
        """Note why a part could not be made; `again`: whether it would fail again."""
        (self.failed if again else self.missing)[part] = _line(why)
        self.cause = self.cause or cause

    def outcome(self) -> dict[str, Any]:
        """Plain values, for provenance and `--json`; nothing if all went well."""
        return {
            name: parts for name, parts in ((MISSING, self.missing), (FAILED, self.failed)) if parts
        }


def error_of(outcome: dict[str, Any], out: object) -> RunError | None:
    """What to raise where parts of the result in `out` could not be made; None if all were."""
    parts = outcome.get(MISSING, {}) | outcome.get(FAILED, {})
    if not parts:
        return None
    told = "; ".join(f"{part}: {why}" for part, why in parts.items())
    return RunError(f"{out} has what was kept and every score, but this failed: {told}.")


def _line(words: str) -> str:
    return " ".join(words.split()).rstrip(".")


def _may_pass(error: BaseException) -> bool:
    """Whether the machine is at fault, or the file system, as for an OutputError."""
    if isinstance(error, UserError | NonFiniteError):
        return isinstance(error.__cause__, OSError | MemoryError)
    if isinstance(error, RuntimeError):  # as devices raise it
        return OF_DEVICES.search(str(error)) is not None
    return isinstance(error, OSError | MemoryError | RunError)


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
