"""Parts of a result that fail after rows were chosen, each in turn: the rest has to be there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import polars as pl

from curate.errors import NonFiniteError
from planted.bench import Bench, Fault, Found, apart, one_line, outcome_of, resumed

FULL = OSError(28, "No space left on device")
MEMORY = RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.")
FAILING: dict[str, tuple[str, BaseException, int]] = {
    "judging runs out of memory": ("curate.pipeline.select._weigh", MEMORY, 1),
    "judging finds a full disk": ("curate.pipeline.select._weigh", FULL, 1),
    "the evaluation runs out of memory": ("curate.pipeline.select.evaluate", MEMORY, 1),
    "the evaluation finds a full disk": ("curate.pipeline.select.evaluate", FULL, 1),
    "dropped rows of no known type": ("curate.output.page.store_dropped", TypeError("no"), 1),
    "dropped rows on a full disk": ("curate.output.page.store_dropped", FULL, 1),
    "a report that cannot be made": ("curate.output.page.render", KeyError("figure"), 1),
    "a panic of Polars in the report": (
        "curate.output.page.render",
        pl.exceptions.PanicException("panic"),
        1,
    ),
    "a report on a full disk": ("curate.output.page.write_report", FULL, 1),
    "a card that cannot be made": ("curate.output.page.write_card", ValueError("no"), 1),
    "an interrupt in the evaluation": ("curate.pipeline.select.evaluate", KeyboardInterrupt(), 130),
    "an interrupt in the report": ("curate.output.page.render", KeyboardInterrupt(), 130),
}
"""What fails, how, and the exit code."""
KEPT = ("scores.parquet", "windows.parquet", "data-00000-of-00001.arrow")


def faults(bench: Bench) -> dict[str, Fault]:
    """Fails twice, so that resuming meets it as well, then no more.

    An error of code fails once: one that comes back the same is not left to be resumed again.
    """

    def failing(what: str, error: BaseException, code: int) -> Fault:
        def start() -> int:
            with patch(what, side_effect=error):
                return resumed()()

        def fault(at: Path) -> Found:
            wrong = ""
            of_code = isinstance(
                error, TypeError | KeyError | ValueError | pl.exceptions.PanicException
            )
            for _ in range(1 if of_code else 2):
                ended = apart(at, start)
                left = sorted(path.name for path in at.glob("out/**/*"))
                if lost := [name for name in KEPT if name not in left]:
                    return Found(f"not there: {lost}; {ended.said}")
                if ended.code != code:
                    wrong = f"exit code {ended.code}: {ended.said}"
                wrong = wrong or one_line(ended)
                if "--resume" not in ended.said:
                    wrong = wrong or f"says not how to do it again: {ended.said}"
            found = bench.judge("select", at)
            return Found(found.lost, found.wrong or wrong)

        return fault

    def diverging(at: Path) -> Found:
        from curate.pipeline import evaluate

        retrain: Callable[..., Any] = evaluate.retrain

        def one_diverges(job: Any, kept: Any, seed: int, *rest: Any) -> Any:
            if seed == 1 and kept.all():
                raise NonFiniteError("retraining with seed 1 ends in a loss of nan.")
            return retrain(job, kept, seed, *rest)

        def start() -> int:
            with patch("curate.pipeline.evaluate.retrain", one_diverges):
                return resumed()()

        for _ in range(2):
            ended = apart(at, start)
            if ended.code != 1 or "everything with seed 1" not in ended.said:
                return Found("", f"exit code {ended.code}: {ended.said}")
        right, found = bench.right["select"], outcome_of(at)
        return Found(
            "" if found.get("report.html") == "True" else "there is no report",
            "" if all(found[name] == right[name] for name in KEPT) else "another result",
        )

    def nothing(setting: str) -> Fault:
        def fault(at: Path) -> Found:
            for _ in range(2):
                ended = apart(at, resumed(setting))
                if not (at / "out/scores.parquet").exists():
                    return Found(f"there are no scores: {ended.said}")
                if ended.code != 2 or one_line(ended):
                    return Found("", f"exit code {ended.code}: {ended.said}")
            return Found()

        return fault

    named = {name: failing(*arguments) for name, arguments in FAILING.items()}
    named["one seed diverges"] = diverging
    named["a threshold that no score reaches"] = nothing("selection.keep={threshold: 99}")
    return named
