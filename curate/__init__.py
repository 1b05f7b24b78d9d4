"""curate: choose training data by what it does to the model.

What is public loads when it is first asked for, so that `import curate` costs nothing.
"""

from importlib import import_module, metadata
from typing import Any

_HOME = {
    "CurateError": "errors:CurateError",
    "LightningLookAhead": "integrations:LightningLookAhead",
    "LookAheadLoader": "integrations:LookAheadLoader",
    "LookAheadMixin": "integrations:LookAheadMixin",
    "Recipe": "recipe:Recipe",
    "Scorer": "pipeline.scorer:Scorer",
    "Tracker": "runtime.trackers:Tracker",
    "apply": "pipeline.apply:run_apply",
    "check_recipe": "recipe:check_recipe",
    "freeze_norms": "models:freeze_norms",
    "load_recipe": "recipe:load_recipe",
    "open_tracker": "runtime.trackers:open_tracker",
    "plan": "pipeline.forecast:plan_select",
    "read_log": "output.audit_log:read_log",
    "run_select": "pipeline.select:run_select",
    "select": "pipeline.session:select",
    "tune": "tuning.tune:tune",
    "verify": "pipeline.verify:run_verify",
    "write_kept": "integrations.kept:write_kept",
}

__all__ = [
    "CurateError",
    "LightningLookAhead",
    "LookAheadLoader",
    "LookAheadMixin",
    "Recipe",
    "Scorer",
    "Tracker",
    "apply",
    "check_recipe",
    "freeze_norms",
    "load_recipe",
    "open_tracker",
    "plan",
    "read_log",
    "run_select",
    "select",
    "tune",
    "verify",
    "write_kept",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("curate")
    if name not in _HOME:
        raise AttributeError(f"module 'curate' has no attribute {name!r}")
    module, _, attribute = _HOME[name].partition(":")
    return getattr(import_module(f"curate.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
