"""Four hospitals with colour pictures and networks of their own: the study ``hospitals.yaml``."""
