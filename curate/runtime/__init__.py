"""What does a run stand on? Files, processes, trackers, time."""

__all__: list[str] = []
