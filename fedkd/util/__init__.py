"""Files, locks, cache, random numbers, threads: nothing of federated learning."""
