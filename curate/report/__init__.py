"""What people look at: words and pictures of results."""

from curate.report.verification import describe_verification, plot_verification

__all__ = ["describe_verification", "plot_verification"]
