"""Where a run can be watched: experiment trackers, none of them a dependency.

Not the audit log (`curate.output.audit_log`), which says what became of every candidate.
"""

from curate.runtime.trackers.base import Careful, Tracker, careful
from curate.runtime.trackers.open import open_tracker, tracking

__all__ = ["Careful", "Tracker", "careful", "open_tracker", "tracking"]
