"""What was measured, on disk as soon as it is known: a run that dies loses nothing."""

import json
from pathlib import Path
from typing import Any

from curate.errors import OutputError, RunError
from curate.runtime.files import digest_of, write_whole_text


class Journal:
    """Values by key, of one undertaking; a line of JSON each after a line that names it.

    What another undertaking left is dropped, and so is a line whose checksum is not its own:
    damaged, or its writer died in it.
    """

    def __init__(self, path: Path, undertaking: str, *, read_only: bool = False) -> None:
        """`read_only`: for processes that know what another enters."""
        self._path, self._read_only = path, read_only
        self._known: dict[str, Any] = {}
        lines = path.read_bytes().decode(errors="replace").splitlines() if path.exists() else []
        if lines and lines[0] == json.dumps(undertaking):
            self._known = dict(found for line in lines[1:] if (found := _entry(line)))
        again = [_line(json.loads(key), value) for key, value in self._known.items()]
        if not read_only:
            write_whole_text(path, "".join([json.dumps(undertaking) + "\n", *again]))

    @classmethod
    def within(
        cls, folder: Path, name: str, undertaking: str, *, read_only: bool = False
    ) -> "Journal":
        """The journal of that name in `folder`, which is made if need be.

        Raises:
            OutputError: the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return cls(folder / name, undertaking, read_only=read_only)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written: {error.strerror}.") from error

    def __len__(self) -> int:
        return len(self._known)

    def find(self, *key: int | str) -> Any | None:
        """What was measured, if it was."""
        return self._known.get(json.dumps(key))

    def enter(self, *key: int | str, value: Any) -> Any:
        """Put a measurement, in plain values, on disk unless it is `read_only`; returns it.

        Raises:
            RunError: it cannot be written.
        """
        if self._read_only:
            return value
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(key, value))
        except OSError as error:
            raise RunError(f"{self._path}: cannot be written: {error.strerror}.") from error
        return value


def _line(key: Any, value: Any) -> str:
    return json.dumps([digest_of([key, value]), key, value]) + "\n"


def _entry(line: str) -> tuple[str, Any] | None:
    """The key and the value of a line, if it is what was written."""
    try:
        digest, key, value = json.loads(line)
    except (ValueError, TypeError):
        return None
    return (json.dumps(key), value) if digest == digest_of([key, value]) else None
