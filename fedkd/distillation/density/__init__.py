"""Densities of the silos' data: bases, estimators, moments that add up."""
