"""What people look at: words and pictures of results."""

from curate.report.tuning import describe_tuning, plot_tuning, why
from curate.report.verification import describe_verification, plot_verification

__all__ = ["describe_tuning", "describe_verification", "plot_tuning", "plot_verification", "why"]
