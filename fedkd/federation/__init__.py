"""A federation: one data set split among silos that own pre-trained models."""
