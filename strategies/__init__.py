"""The Flower server side: strategies, the consolidation phase, and the gate for replies."""
