"""From one study to its results: check, split, pre-train, run every arm and seed, compare."""
