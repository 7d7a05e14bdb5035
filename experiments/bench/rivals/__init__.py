"""Programs that do the work of the bench without fedkd."""
