"""How teachers are weighted, capped and excluded."""
