"""A silo in the field: what it holds, what it shares, and the look before it starts."""
