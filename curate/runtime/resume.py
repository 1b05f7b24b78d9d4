"""A selection that is not finished: the folder beside OUT from which it resumes if it dies."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from uuid import uuid4

from filelock import FileLock, Timeout

from curate.errors import NonFiniteError, OutputError, UnfinishedError, UserError
from curate.runtime.files import digest_of, write_whole_text
from curate.runtime.journal import Journal
from curate.runtime.parts import MISSING
from curate.runtime.ranks import ALONE, Ranks, agreed, everywhere
from curate.runtime.savepoints import Savepoints

FORMAT = 7
LOCK, RUN, EVALUATION = "lock", "run.json", "evaluation.jsonl"
MARK = "provenance.json"
"""The file by which a directory is known as one that `curate select` wrote."""
LOSSES = "first losses"


OURS = re.compile(
    r"lock|run\.json|evaluation\.jsonl|score-[\w.-]+|part-\d+\.(arrow|parquet|json)"
    r"|\.(run|evaluation|part-\d+)\.\d+\.(jsonl?|arrow|parquet)"
    r"|\..*\.[0-9a-f]{8}(\.old)?|\.curate-snapshots-\w+"
)
"""Names in the folder of a run; those with a dot are of what was being written."""
LONGEST = 200
"""Bytes of a name that others can be made of; a file system takes 255."""


def folder_of(out: Path) -> Path:
    """Where a run keeps what it resumes from: `.NAME.unfinished` beside `out`.

    A digest stands for a name that is very long.
    """
    out = out.absolute()
    return out.parent / f".{_short(out.name)}.unfinished"


def _short(name: str) -> str:
    return name if len(os.fsencode(name)) <= LONGEST else digest_of(name)


class Unfinished:
    """The folder of a run while it is not finished; a context that removes it in the end.

    It holds `run.json` (what the run is made of), savepoints of what is being scored,
    a journal of what was evaluated, and what becomes `OUT`. It stays behind if the run dies or ends
    early with something to resume from; not if it would end in the same way again.
    A lock that the kernel takes back from the dead keeps a second process out. Of several
    ranks the first one does all of that; the others read.

    written: the provenance of `out` if this run wrote it already, perhaps not all of its parts.
    run: the run's name, which no other run has; empty until it has begun. lacks: whether something
    in the folder is needed for parts of the result that could not be made. lasting: whether what is
    done is of use even where the rest of the data, or what is asked for, was a mistake.
    """

    def __init__(
        self,
        out: Path,
        recipe: str,
        *,
        resume: bool = False,
        overwrite: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        """`recipe`: its fingerprint. `overwrite`: drop what was left, unless `resume` uses it."""
        self.out, self.ranks, self._recipe = out, ranks, recipe
        self.folder = folder_of(out)
        self.written: dict[str, Any] | None = None
        self.lacks, self.lasting = False, False
        self._resume, self._overwrite = resume, overwrite
        self._lock = FileLock(self.folder / LOCK, timeout=0)
        self._made: list[Path] = []
        self.run = ""

    def __enter__(self) -> Self:
        """Take the folder.

        Raises:
            OutputError: it cannot be made, or `out` is taken.
            UnfinishedError: another process has it; or something was left, and nobody said
                what to do with it.
        """
        result = self._result() if self._resume else None
        self.written = result if everywhere(self.ranks, result is not None) else None
        if self.ranks.rank:
            return self
        if self.written is None:
            check_free(self.out, overwrite=self._overwrite)
        self._take()
        try:
            self._look_at_what_was_left()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the folder, unless there is something in it to resume from."""
        if self.ranks.rank:
            return
        mistake = isinstance(error, UserError) and not isinstance(error, OutputError)
        hopeless = self.run and not self.lasting and (mistake or isinstance(error, NonFiniteError))
        done = error is None and not self.lacks
        if done or hopeless or not has_progress(self.folder):
            self._remove()
        self._lock.release()

    @property
    def finished(self) -> dict[str, Any] | None:
        """The provenance of `out` if all was done already; None otherwise."""
        return None if self.written is None or self.written.get(MISSING) else self.written

    def begin(self, made_of: dict[str, Any]) -> bool:
        """Enter what the run is made of, or compare; whether there is something to resume from.

        Raises:
            UnfinishedError: what was left is not of this run.
        """
        resumes = False
        if self.ranks.rank == 0 and self._resume and (self.folder / RUN).exists():
            refuse_difference(self.folder, _read(self.folder)["made of"], made_of)
            resumes = has_progress(self.folder) is not None
        elif self.ranks.rank == 0:
            run = uuid4().hex if self.written is None else self.written["run"]
            plain = {"format": FORMAT, "run": run, "made of": made_of}
            text = json.dumps({"checksum": digest_of(plain)} | plain, indent=1)
            write_whole_text(self.folder / RUN, text + "\n")
        resumes = bool(agreed(self.ranks, resumes))  # nobody reads before it is written
        self.run = _read(self.folder)["run"]
        return resumes

    def left(self) -> str:
        """What there is to resume from, in words."""
        return f"{self.folder.name}: {has_progress(self.folder)}"

    def savepoints(self, policy: str) -> Savepoints:
        """The savepoints of scoring by a policy."""
        return Savepoints(self.folder / f"score-{policy}", self.run, self.ranks)

    def journal(self) -> Journal:
        """The journal of what was evaluated."""
        return Journal(self.folder / EVALUATION, self.run, read_only=self.ranks.rank > 0)

    def stage(self) -> AbstractContextManager[Path]:
        """Where the result is written before it becomes `out`."""
        return staged(self.out, overwrite=self._overwrite, within=self.folder)

    def _take(self) -> None:
        _refuse_foreign(self.folder)
        try:
            there = existing_parent(self.folder)
            parents = [self.folder, *self.folder.parents]
            self._made = parents[: parents.index(there)]
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            if not (self.folder / LOCK).exists():  # its holder has just cleared up
                raise Timeout(str(self.folder / LOCK))
        except Timeout:
            raise UnfinishedError(
                f"{self.out}: another process is writing it; choose another --out."
            ) from None
        except OSError as error:
            raise OutputError(f"{self.out}: cannot be written: {error.strerror}.") from error

    def _look_at_what_was_left(self) -> None:
        _refuse_foreign(self.folder)
        progress = has_progress(self.folder)
        if progress is not None and not (self._resume or self._overwrite):
            raise UnfinishedError(
                f"{self.out}: a run that was not finished is in {self.folder.name} ({progress}); "
                "--resume continues it, --overwrite starts again."
            )
        for path in [*self.folder.glob(".*"), *self.folder.glob("score-*/.*")]:
            _delete(path)  # what was being written
        if not self._resume:
            self._clear()

    def _result(self) -> dict[str, Any] | None:
        """The provenance in `out`, if it is of this recipe and of the run that was left."""
        try:
            written = json.loads((self.out / MARK).read_text(encoding="utf-8"))
            left = _read(self.folder) if (self.folder / RUN).exists() else written
            ours = (written["recipe_fingerprint"], written["run"]) == (self._recipe, left["run"])
            return dict(written) if ours else None
        except (OSError, ValueError, KeyError, TypeError, UnfinishedError):
            return None

    def _remove(self) -> None:
        """Remove the folder, and those above it that were made for it and hold nothing else."""
        self._clear()
        (self.folder / LOCK).unlink(missing_ok=True)
        for folder in self._made or [self.folder]:
            try:
                folder.rmdir()
            except OSError:
                break

    def _clear(self) -> None:
        """Delete what is in the folder, and last of all the file that says that it is ours."""
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name == RUN):
            if path.name != LOCK:
                _delete(path)


def has_progress(folder: Path) -> str | None:
    """What there is to resume from, in words; None if there is nothing."""
    try:
        scored = sorted({path.parent.name for path in folder.glob("score-*/[0-9]*.safetensors")})
        journal = folder / EVALUATION
        done = len([*folder.glob("part-*.json")])
        entries = len(journal.read_bytes().splitlines()) - 1 if journal.exists() else 0
    except FileNotFoundError:  # another rank has just removed it
        return None
    parts = [name.replace("score-", "scores by ") for name in scored]
    parts += [f"{entries} retrainings"] if entries > 0 else []
    parts += [f"{done} parts scored"] if done else []
    return ", ".join(parts) or None


def _read(folder: Path) -> dict[str, Any]:
    """A run's name, and what it is made of.

    Raises:
        UnfinishedError: its file is not there, is damaged, or is of a newer format.
    """
    path = folder / RUN
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        checksum, version = plain.pop("checksum"), plain["format"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        checksum, version = None, None
    if isinstance(version, int) and version != FORMAT:
        raise UnfinishedError(
            f"{path}: is of format {version} and this curate knows {FORMAT}; resume with the "
            "version that wrote it, or start again with --overwrite."
        )
    if checksum is None or digest_of(plain) != checksum:
        raise UnfinishedError(
            f"{path}: is damaged, so nobody can tell whether the rest is of this run; start again "
            "with --overwrite."
        )
    return dict(plain)


def _refuse_foreign(folder: Path) -> None:
    """Raise UnfinishedError unless what is in a folder is ours, going by what it holds.

    Nothing is written through a link, whoever made it. Before there is a `run.json` there is
    nothing but an empty lock, and what was to become that file.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise UnfinishedError(
            f"{folder}: is {'a link' if folder.is_symlink() else 'a file'}, so it is left alone; "
            "move it away."
        )
    entries = [*folder.iterdir()]
    foreign = [e.name for e in entries if e.is_symlink() or not OURS.fullmatch(e.name)]
    foreign += [e.name for e in entries if e.name == LOCK and e.lstat().st_size]
    if not (folder / RUN).exists():
        foreign += [e.name for e in entries if e.name != LOCK and not e.name.startswith(".run.")]
    elif not foreign and not _is_record(folder / RUN):
        raise UnfinishedError(
            f"{folder / RUN}: is damaged or somebody else's, so the folder is left alone; move it "
            "away."
        )
    if foreign:
        raise UnfinishedError(
            f"{folder}: was not written by curate, so it is left alone; move it away (it holds "
            f"{foreign[0]})."
        )


def _is_record(path: Path) -> bool:
    """Whether a file is what `begin` writes, of any format, at most with damage to its values."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return isinstance(record, dict) and {"checksum", "format", "run"} <= record.keys()
    except (OSError, ValueError):
        return False


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def check_free(out: Path, *, overwrite: bool) -> None:
    """Raise OutputError if `out` cannot become our directory."""
    if out.absolute().name in ("", ".."):
        raise OutputError(f"{out}: is no name for a new directory; choose another --out.")
    try:
        out.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:  # a name that is too long, or that no file can have
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{out}: cannot be written: {reason}.") from error
    if out.is_symlink():
        raise OutputError(f"{out}: is a link; give what it leads to, {os.readlink(out)}, as --out.")
    if not overwrite:
        raise OutputError(f"{out}: exists already; choose another --out or give --overwrite.")
    if not out.is_dir() or (any(out.iterdir()) and not (out / MARK).is_file()):
        raise OutputError(
            f"{out}: was not written by curate, so --overwrite leaves it alone; move it away."
        )


def existing_parent(out: Path) -> Path:
    """The closest directory above `out` that is there already."""
    above = out.absolute().parents
    return next((parent for parent in above if os.path.isdir(parent)), out.absolute())


@contextmanager
def staged(out: Path, *, overwrite: bool, within: Path | None = None) -> Iterator[Path]:
    """A temporary directory, which becomes `out` when the block ends well, and goes otherwise.

    within: where it is made, on the file system of `out`; beside it if None.

    Raises:
        OutputError: `out` is taken, or cannot be written.
    """
    check_free(out, overwrite=overwrite)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        stage = (within or out.parent) / f".{_short(out.name)}.{uuid4().hex[:8]}"
        stage.mkdir()
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror}.") from error
    try:
        yield stage
        _replace(stage, out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _replace(stage: Path, out: Path) -> None:
    if out.is_dir():
        old = stage.with_name(f"{stage.name}.old")
        out.rename(old)
        try:
            stage.rename(out)
        except OSError:
            old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        stage.rename(out)


class Change(NamedTuple):
    """A value that is not what it was: its keys from the outside in, None where it was not."""

    path: tuple[str, ...]
    before: Any
    now: Any


def changes(before: Any, now: Any) -> list[Change]:
    """Every difference of nested plain values, as JSON has them: lists and tuples are alike."""
    before, now = json.loads(json.dumps([before, now]))
    return [*_changes(before, now, ())]


def _changes(before: Any, now: Any, path: tuple[str, ...]) -> Iterator[Change]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in now | before:
            yield from _changes(before.get(key), now.get(key), (*path, key))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for k, pair in enumerate(zip(before, now, strict=True)):
            yield from _changes(*pair, (*path, str(k)))
    elif before != now:
        yield Change(path, before, now)


def refuse_difference(folder: Path, left: dict[str, Any], made_of: dict[str, Any]) -> None:
    """Raise UnfinishedError if a run is not made of what the one in `folder` was made of."""
    every = changes(left, made_of)
    if not every:
        return
    every = [change for change in every if change.path != (LOSSES,)] or every  # those follow
    path, before, now = every[0]
    key = ".".join(path[1:])
    shown = f"{json.dumps(before)} -> {json.dumps(now)}"
    what = {
        "recipe": f"the recipe is another: {key} {shown}",
        "data": f"{' '.join(path)}: has changed: {shown}",
        "versions": f"versions are others: {key} {shown}",
        "processes": f"it ran in another number of processes: {shown}",
        "threads": f"it ran with another number of threads: {shown} (OMP_NUM_THREADS sets it)",
        "device": f"it ran on another device: {shown}",
        LOSSES: "the same recipe and data now give other losses in the first step: the "
        "model, its code or the machine has changed",
    }.get(path[0], f"{'.'.join(path)} {shown}")
    more = f" (and {len(every) - 1} more)" if len(every) > 1 else ""
    raise UnfinishedError(
        f"{folder.name} cannot be resumed: {what}{more}; undo that, or start again with "
        "--overwrite."
    )
