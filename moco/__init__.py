"""The method: URL by momentum contrast, pseudo labels, hybrid self-distillation, evaluation."""
