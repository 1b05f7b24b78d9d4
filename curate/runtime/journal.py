"""Measurements, on disk as soon as they are made: a run that dies loses none."""

import json
from pathlib import Path
from typing import Any

from curate.errors import OutputError, RunError
from curate.runtime.files import digest_of, write_whole_text


class Journal:
    """Values by key, of one undertaking; a line of JSON each after a line that names it.

    What another undertaking left is dropped, and so is a line with a wrong checksum: it was
    damaged, or its writer died while writing it.
    """

    def __init__(self, path: Path, undertaking: str, *, read_only: bool = False) -> None:
        """Read what is at `path`, whose folder is made if need be.

        read_only: for processes that read what another one enters.

        Raises:
            OutputError: the folder cannot be written.
        """
        self._path, self._read_only = path, read_only
        self._values: dict[str, Any] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_bytes().decode(errors="replace").splitlines() if path.exists() else []
            if lines and lines[0] == json.dumps(undertaking):
                self._values = dict(entry for line in lines[1:] if (entry := _entry(line)))
            if not read_only:
                kept = [_line(json.loads(key), value) for key, value in self._values.items()]
                write_whole_text(path, "".join([json.dumps(undertaking) + "\n", *kept]))
        except OSError as error:
            raise OutputError(f"{path.parent}: cannot be written: {error.strerror}.") from error

    def __len__(self) -> int:
        return len(self._values)

    def find(self, *key: int | str) -> Any | None:
        """The measurement of that key; None if there is none."""
        return self._values.get(json.dumps(key))

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
    """The key and the value of a line; None if it is damaged."""
    try:
        digest, key, value = json.loads(line)
    except (ValueError, TypeError):
        return None
    return (json.dumps(key), value) if digest == digest_of([key, value]) else None
