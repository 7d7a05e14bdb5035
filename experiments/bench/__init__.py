"""The bench: fedkd's speed and memory against other ways to do the same work; `make bench`."""
