"""Disks that are full: no file may grow beyond so many bytes, from the first one on."""

import os
from pathlib import Path

from planted.bench import Bench, Fault, Found, apart, one_line, resumed

ROOM = (1, 100, 1_000, 4_000, 8_000, 12_000, 16_000, 24_000, 48_000, 96_000, 150_000)
COLD = (1, 1_000, 8_000)


def faults(bench: Bench) -> dict[str, Fault]:
    """A run that finds no room, then one that does."""

    def full(room: int, cold: bool) -> Fault:
        def start() -> int:
            if cold:
                import datasets

                datasets.config.HF_DATASETS_CACHE = Path("cache").absolute()
            return resumed()()

        def fault(at: Path) -> Found:
            ended = apart(at, start, room=room)
            if ended.code == 0:
                return bench.judge("select", at)
            wrong = one_line(ended)
            if os.sep not in ended.said.split("cannot be written")[0].split("CURATE")[0]:
                wrong = f"no path is named: {ended.said}"
            found = bench.judge("select", at, start)
            return Found(found.lost, found.wrong or wrong)

        return fault

    named = {f"files of {room:,} bytes at most": full(room, False) for room in ROOM}
    named |= {f"nothing cached, {room:,} bytes at most": full(room, True) for room in COLD}
    return named
