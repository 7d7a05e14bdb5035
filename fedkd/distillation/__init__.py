"""Knowledge distillation from pre-trained teachers to one student."""
