"""The training loop, evaluation, and the losses of silos and students."""
