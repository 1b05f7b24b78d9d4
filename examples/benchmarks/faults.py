"""Plant faults in runs of curate, and see what is lost and what is silently wrong.

    python examples/benchmarks/faults.py [--kills 20] [--only WORDS ...] [--out DIR]

Kills (SIGKILL) at random moments and at chosen ones, disks that are full, bad rows, hostile files,
parts of a result that fail, loops with overridden methods (`faulty_loops.py`). Every fault has a
folder of its own and is judged against a run that nobody disturbed: the same scores, shards and
measurements, bit for bit; or a refusal, in one line, that leaves nothing. Writes `faults.json`, a
line per fault, and prints a table; the exit code is 1 if anything was lost or silently wrong.

Runs are forks of this process, which has loaded everything: real processes, and really killed.
This process uses neither Arrow nor Polars, whose threads a fork does not have.
"""

import argparse
import functools
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from planted import bad_rows, disks, hostile, late, runs
from planted.bench import Bench, Fault, Found, apart, applied, resumed

from faulty_loops import LOOPS  # isort: skip  # after `planted`, which sets the environment

MOMENTS = {
    "before anything is computed": ".out.unfinished/run.json",
    "after the first savepoint": ".out.unfinished/score-*/000001.safetensors",
    "after the second savepoint": ".out.unfinished/score-*/000002.safetensors",
    "within a savepoint": ".out.unfinished/score-*/.0*",
    "after training on everything": ".out.unfinished/score-everything/*.safetensors",
    "while the selection is written": ".out.unfinished/.out.*",
    "after the selection is there": "out/provenance.json",
    "in retraining": ".out.unfinished/evaluation.jsonl",
    "while dropped rows are written": "out/.dropped*",
    "in the report": "out/dropped.parquet",
    "in the card": "out/report.html",
}
"""When to kill, by the file that then appears."""
TRIES = 5
"""For a moment that may be over before anybody looks."""


def at_random(bench: Bench, start: Callable[[], int], name: str, seed: int) -> Fault:
    """Kill at a moment drawn over the length of the run; half of the time its successor, too."""

    def fault(at: Path) -> Found:
        draw = random.Random(seed)
        for _ in range(1 + seed % 2):
            end = time.monotonic() + draw.uniform(0.05, 1.0) * bench.seconds[name]
            apart(at, start, until=functools.partial(later_than, end))
        return bench.judge(name, at, start)

    return fault


def later_than(end: float) -> bool:
    """Whether it is."""
    return time.monotonic() > end


def at_moment(bench: Bench, pattern: str) -> Fault:
    """Kill as soon as a file appears."""

    def fault(at: Path) -> Found:
        for _ in range(TRIES):
            ended = apart(at, resumed(), until=lambda: next(at.glob(pattern), None) is not None)
            if ended.code == -signal.SIGKILL:
                return bench.judge("select", at)
            shutil.rmtree(at / "out", ignore_errors=True)
        return Found("", f"not killed in {TRIES} tries; exit code {ended.code}: {ended.said}")

    return fault


def overridden(loop: Callable[[Path], str]) -> Fault:
    """A loop of `faulty_loops.py`, in a process of its own."""

    def start() -> int:
        print(loop(Path.cwd()), end="", flush=True)
        return 0

    def fault(at: Path) -> Found:
        ended = apart(at, start)
        return Found(ended.said[-300:] if ended.code else "", ended.out)

    return fault


def faults(bench: Bench, kills: int) -> Iterator[tuple[str, str, str, Fault]]:
    """Every fault: its section, its name, the data that it starts from, and what plants it."""
    for k in range(kills):
        start = resumed()
        yield (
            "kills",
            f"text recipe, at random, {k + 1}",
            "text",
            at_random(bench, start, "text", k),
        )
    for k in range(kills):
        yield (
            "kills",
            f"loop with its log, at random, {k + 1}",
            "loop",
            at_random(bench, runs.loop, "loop", k),
        )
    for k in range(kills):
        yield (
            "kills",
            f"further rows, at random, {k + 1}",
            "further",
            at_random(bench, applied(), "further", k),
        )
    for name, pattern in MOMENTS.items():
        yield "kills", name, "select", at_moment(bench, pattern)
    for section, module in (
        ("full disks", disks),
        ("bad rows", bad_rows),
        ("hostile files", hostile),
        ("parts that fail", late),
    ):
        for name, fault in module.faults(bench).items():
            yield section, name, "select", fault
    for name, loop in LOOPS.items():
        yield "overridden methods", name, "loop", overridden(loop)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="random kills, of each of three runs")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="faults with one of these in section or name"
    )
    parser.add_argument("--out", type=Path, help="where faults.json goes")
    arguments = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for section, name, data, fault in faults(bench, arguments.kills):
            if not any(words in f"{section} {name}" for words in arguments.only):
                continue
            at = bench.fresh(data)
            begin = time.monotonic()
            found = fault(at)
            lines.append(
                {"section": section, "fault": name, **found._asdict()}
                | {"seconds": round(time.monotonic() - begin, 2)}
            )
            told = "; ".join(f"{k}: {v}" for k, v in found._asdict().items() if v) or "nothing"
            print(f"{section:20s} {name:50s} {told}", flush=True)
            shutil.rmtree(at, ignore_errors=True)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "faults.json").write_text(json.dumps(lines, indent=1) + "\n")
    print_table(lines)
    sys.exit(any(line["lost"] or line["wrong"] for line in lines))


def print_table(lines: list[dict[str, object]]) -> None:
    """Counts by section, as RESULTS.md has them."""
    print("\n| faults | planted | something lost | something silently wrong |\n|---|---|---|---|")
    total = Counter[str]()
    for section in dict.fromkeys(str(line["section"]) for line in lines):
        of = [line for line in lines if line["section"] == section]
        counts = {"planted": len(of)} | {
            key: sum(bool(x[key]) for x in of) for key in ("lost", "wrong")
        }
        total.update(counts)
        print(f"| {section} | {counts['planted']} | {counts['lost']} | {counts['wrong']} |")
    print(f"| all | {total['planted']} | {total['lost']} | {total['wrong']} |")


if __name__ == "__main__":
    main()
