"""The studies behind the claims of the seed work, run, recorded and judged by ``make paper``."""
