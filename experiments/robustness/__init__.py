"""What bad silos cost, measured."""
