"""Results: the record of a run, the results folder, and the comparison of runs."""
