"""Methods of distillation, one a file."""
