"""Measurements of the accuracy lost to bad silos."""
