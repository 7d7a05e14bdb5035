"""``python -m fedkd.cli``."""

from fedkd.cli import main

main()
