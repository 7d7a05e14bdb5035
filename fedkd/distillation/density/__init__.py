"""Densities of the silos' data: bases, estimators, and pooled class moments."""
