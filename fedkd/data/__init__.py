"""Data: labelled examples, their sources, and how silos share them."""
