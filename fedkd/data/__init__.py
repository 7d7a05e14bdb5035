"""Data: labelled images, their sources, and how silos share them."""
