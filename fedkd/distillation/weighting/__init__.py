"""Weights of teachers, caps on them, and exclusion of teachers."""
