"""Studies of the reference paper's claims, run, recorded and evaluated by ``make paper``."""
