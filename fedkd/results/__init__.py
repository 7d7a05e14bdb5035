"""The record of a run, its folder, and the comparison of runs."""
