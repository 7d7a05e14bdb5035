"""Architectures, and what is done with whole models: building, saving, reuse."""
