"""curate: choose training data by what it does to the model.

What is public loads when it is first asked for, so that `import curate` costs nothing.
"""

from importlib import import_module, metadata
from typing import Any

_HOME = {
    "CurateError": "curate.errors",
    "LightningLookAhead": "curate.integrations",
    "LookAheadLoader": "curate.integrations",
    "LookAheadMixin": "curate.integrations",
    "Recipe": "curate.recipe",
    "Tracker": "curate.runtime.trackers",
    "check_recipe": "curate.recipe",
    "load_recipe": "curate.recipe",
    "open_tracker": "curate.runtime.trackers",
    "read_log": "curate.output.audit_log",
    "run_select": "curate.pipeline.select",
    "tune": "curate.tuning.tune",
    "write_kept": "curate.integrations.kept",
}

__all__ = [
    "CurateError",
    "LightningLookAhead",
    "LookAheadLoader",
    "LookAheadMixin",
    "Recipe",
    "Tracker",
    "check_recipe",
    "load_recipe",
    "open_tracker",
    "read_log",
    "run_select",
    "tune",
    "write_kept",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("curate")
    if name not in _HOME:
        raise AttributeError(f"module 'curate' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
