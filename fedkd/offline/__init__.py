"""Consolidation without a federation: model files in, one student out."""
