"""The faults of `faults.py`, by kind."""
