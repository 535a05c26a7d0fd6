"""What a run leaves: the run folder, its records, the stores that it can lie in, and how it is checked."""
