"""`curate apply`: score and filter any amount of further rows with what a selection learned.

Rows come as a stream and are scored part by part. A part that is done lies in the folder of the
run, under checksums, so that a run that dies goes on with the next one; in the end all parts become
one directory. Memory: a part. Disk: what is kept, twice.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from datasets.table import table_cast

from curate.datasets import Stream, fingerprint_of, refuse_outside, stream
from curate.errors import UnfinishedError, UserError
from curate.output.directory import made_with
from curate.output.shards import write_shards
from curate.pipeline.reading import column_uses
from curate.pipeline.scorer import ADDED, Scorer
from curate.recipe import Pretrained
from curate.runtime.files import digest_of, write_whole, write_whole_text
from curate.runtime.large import released
from curate.runtime.progress import Phases
from curate.runtime.resume import MARK, Unfinished
from curate.runtime.tables import embedded, read_mapped

ROWS, TEXTS = 2**15, 2**12
"""Rows of a part: what is lost at most when a run dies."""
ORIGIN = ("versions", "platform", "git_commit", "recipe_fingerprint", "run", "fingerprint")
"""What provenance.json has beside the summary."""


def run_apply(
    selection: Path | str,
    data: str,
    out: Path | str,
    *,
    split: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    run_code: bool = False,
    phases: Phases | None = None,
) -> dict[str, Any]:
    """Score the rows of a source, and write those that a selection would keep to `out`.

    Args:
        selection: a directory that `curate select` wrote of a recipe with `score`.
        data: what is read, as a recipe names it. split: of it.
        device: auto, cpu or cuda.
        overwrite: replace `out` if curate wrote it, and drop a run to it that was not finished.
        resume: continue that run instead, if there is one; the result is the same, bit for bit.
        run_code: whether code that the selection's recipe names may be run.
        phases: where phase times go; shows bars if made with `bars=True`.

    Returns:
        rows, how many are kept, how many have no score, the share that the selection kept of its
        own; seconds per phase. `out` has the rows kept as split `train`, and `scores.parquet`.

    Raises:
        UserError: nothing was written; what to change is in the message.
    """
    out = Path(out)
    scorer, phases = Scorer(selection, device=device, run_code=run_code), phases or Phases()
    made_of = {
        "selection": scorer.fingerprint,
        "data": {"path": data, "split": split},
        "device": scorer.device,
        "versions": made_with()["versions"],
    }
    with Unfinished(out, digest_of(made_of), resume=resume, overwrite=overwrite) as unfinished:
        with phases.phase("read"):
            source = stream(data, split=split, uses=column_uses(scorer.recipe))
        if (finished := unfinished.finished) is not None:
            parts = source.tables(_rows_of(scorer))
            if finished["fingerprint"] != digest_of([_digest(part, data) for part in parts]):
                raise UserError(f"{out}: {data} has changed since; apply to it again.")
            return _told(finished, out)
        unfinished.lasting = True  # a row that cannot be read may be mended
        unfinished.begin(made_of | {"threads": torch.get_num_threads()})
        pieces = Pieces(unfinished.folder, source, data, scorer)
        with phases.phase("score", source.rows, "row") as tick:
            counts = pieces.make(tick)
        with unfinished.stage() as stage:
            with phases.phase("write"):
                pieces.join(stage)
            written = made_with() | {
                "recipe_fingerprint": digest_of(made_of),
                "run": unfinished.run,
                "fingerprint": digest_of(counts.pop("digests")),
                "rows": source.rows,
                **counts,
                "selection": str(selection),
                "expected": scorer.share,
                "data": data,
                "device": scorer.device,
                "seconds": {name: round(value, 3) for name, value in phases.seconds.items()},
            }
            write_whole_text(stage / MARK, json.dumps(written, indent=2) + "\n")
    return _told(written, out)


@dataclass
class Pieces:
    """The parts of a stream that are done, in the folder of a run.

    Of each there are the rows kept (Arrow), the scores of all (Parquet), and last of all a note:
    how many there are, a digest of the rows as they came, and one of either file.
    """

    folder: Path
    source: Stream
    path: str
    scorer: Scorer
    count: int = 0

    def make(self, tick: Callable[[int], None]) -> dict[str, Any]:
        """Score all parts that are not done yet.

        Returns:
            how many rows are `kept` and how many `unscored`, and the `digests` of all parts.

        Raises:
            UnfinishedError: a part that is done was of other rows.
        """
        counts: dict[str, Any] = {"kept": 0, "unscored": 0, "digests": []}
        first = 0
        for table in self.source.tables(_rows_of(self.scorer)):
            digest = _digest(table, self.path)
            note = self._note(self.count)
            if note is not None and note["rows"] != digest:
                raise UnfinishedError(
                    f"{self.path}: rows {first:,} to {first + len(table) - 1:,} have changed since "
                    "they were scored; undo that, or start again with --overwrite."
                )
            if note is None:
                note = self._score(table, first, digest)
            for name in ("kept", "unscored"):
                counts[name] += note[name]
            counts["digests"].append(digest)
            tick(len(table))
            released()
            self.count, first = self.count + 1, first + len(table)
        return counts

    def join(self, stage: Path) -> None:
        """Make one directory of all parts."""
        kept = [read_mapped(self._file(k, "arrow")) for k in range(self.count)]
        rows = pa.concat_tables(kept)
        if len(rows):
            info = datasets.DatasetInfo(features=self.source.features)
            whole = Dataset(rows, info=info, fingerprint=self._whole())
            write_shards(stage, whole, np.arange(len(rows)))
        schema = pq.read_schema(self._file(0, "parquet"))
        with pq.ParquetWriter(stage / "scores.parquet", schema, compression="zstd") as file:
            for k in range(self.count):
                file.write_table(pq.read_table(self._file(k, "parquet")))

    def _score(self, table: pa.Table, first: int, digest: str) -> dict[str, Any]:
        where = f"{self.path}, from row {first:,}"
        scores = self.scorer.scores(table, where, self.path)
        rows = table.filter(pa.array(scores["kept"]))
        rows = embedded(table_cast(rows, self.source.features.arrow_schema))
        places = pa.array(np.arange(first, first + len(table)))
        columns = {
            name: pa.array(scores[name], kind, from_pandas=True) for name, kind in ADDED.items()
        }
        scored = pa.table({"row": places} | columns)
        write_whole(self._file(self.count, "arrow"), lambda path: _write_arrow(rows, path))
        write_whole(self._file(self.count, "parquet"), lambda path: pq.write_table(scored, path))
        note = {
            "rows": digest,
            "kept": len(rows),
            "unscored": int(np.isnan(scores["score"]).sum()),
            "files": self._digests(self.count),
        }
        text = json.dumps({"checksum": digest_of(note)} | note)
        write_whole_text(self._file(self.count, "json"), text + "\n")
        return note

    def _note(self, k: int) -> dict[str, Any] | None:
        """What is known of a part; None if it is not done, or damaged."""
        try:
            note = json.loads(self._file(k, "json").read_text(encoding="utf-8"))
            whole = note.pop("checksum") == digest_of(note) and note["files"] == self._digests(k)
            return dict(note) if whole else None
        except (OSError, ValueError, KeyError, AttributeError):
            return None

    def _digests(self, k: int) -> list[str]:
        digests = []
        for kind in ("arrow", "parquet"):
            with self._file(k, kind).open("rb") as file:
                digests.append(hashlib.file_digest(file, "blake2b").hexdigest()[:16])
        return digests

    def _whole(self) -> str:
        """By which caches know the rows that are kept."""
        return digest_of([self._digests(k)[0] for k in range(self.count)])

    def _file(self, k: int, kind: str) -> Path:
        return self.folder / f"part-{k:06d}.{kind}"


def _rows_of(scorer: Scorer) -> int:
    """How many rows a part has."""
    return TEXTS if isinstance(scorer.recipe.model, Pretrained) else ROWS


def _told(summary: dict[str, Any], out: Path) -> dict[str, Any]:
    """The part of the provenance that is the summary."""
    return {key: value for key, value in summary.items() if key not in ORIGIN} | {"out": str(out)}


def _digest(table: pa.Table, path: str) -> str:
    """Of rows, and of the files that they name; DataError, and none is read, if one lies outside.

    path: where the rows came from.
    """
    rows = Dataset(table, fingerprint="")  # which it would pickle the rows to find
    refuse_outside(rows, path)
    return str(fingerprint_of(rows)["fingerprint"])


def _write_arrow(rows: pa.Table, path: Path) -> None:
    with pa.RecordBatchStreamWriter(str(path), rows.schema) as writer:
        writer.write_table(rows)
