"""Which candidates are kept?

Files are imported by name (`curate.selection.driver`): policies load no torch, the driver does.
"""

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
"""An array of numbers, of whatever type and shape its docstring says."""

__all__ = ["Array"]
