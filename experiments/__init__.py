"""Studies: the runner that turns one YAML into arms x seeds, and the engines that run them."""
