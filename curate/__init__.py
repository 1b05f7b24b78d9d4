"""curate: choose training data by what it does to the model."""
