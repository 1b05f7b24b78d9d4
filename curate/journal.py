"""What was measured, on disk as soon as it is known: a run that dies loses nothing."""

import json
from pathlib import Path

from curate.errors import OutputError
from curate.output import write_whole_text

JOURNAL = "verify.partial.jsonl"


class Journal:
    """Values by (window, row), of one undertaking; a line of JSON each after a line that names it.

    What another undertaking left is dropped, and so is a line that its writer died in.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._known: dict[tuple[int, int], float] = {}
        text = path.read_bytes() if path.exists() else b""
        lines = text.decode(errors="replace").splitlines()
        if lines and lines[0] == json.dumps(key):
            for line in lines[1:]:
                try:
                    first, row, actual = json.loads(line)
                except ValueError:  # what was being written when it died
                    break
                self._known[first, row] = actual
        entries = [[first, row, value] for (first, row), value in self._known.items()]
        again = "".join(json.dumps(line) + "\n" for line in [key, *entries])
        write_whole_text(path, again)

    @classmethod
    def within(cls, folder: Path, key: str) -> "Journal":
        """The journal of `folder`, which is made if need be.

        Raises:
            OutputError: the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return cls(folder / JOURNAL, key)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written: {error.strerror}.") from error

    def find(self, first: int, row: int) -> float | None:
        """What was measured, if it was."""
        return self._known.get((first, row))

    def enter(self, first: int, row: int, value: float) -> float:
        """Put a measurement on disk; returns it."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([first, row, value]) + "\n")
        return value
