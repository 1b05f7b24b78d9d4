"""Training loops with a method of their own, for `faults.py`: each is one fault.

A function here gets an empty folder, runs such a loop, and returns what was silently wrong: ""
where what was simulated is what was trained, or where the loop was refused with an error of
curate's own. To add one, write it and a line in `LOOPS`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

LOOPS: Mapping[str, Callable[[Path], str]] = MappingProxyType({})
"""By what is overridden."""
