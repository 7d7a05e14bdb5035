"""The bench: how long whole commands take beside other ways to do the same work; `make bench`."""
