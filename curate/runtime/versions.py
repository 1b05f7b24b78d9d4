"""What is installed, without importing it."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("curate", "torch", "datasets", "polars", "numpy", "transformers", "peft")


def versions() -> dict[str, str]:
    """Versions of what results depend on, by name; optional packages only where they are there."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
