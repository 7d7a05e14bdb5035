"""Programs without fedkd that do the bench's work; they read the workload's file alone."""
