"""Files, locks, cache, random numbers and threads: pieces that know nothing of federated learning."""
