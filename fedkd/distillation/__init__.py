"""Distillation between pre-trained models: teachers in, one student out."""
