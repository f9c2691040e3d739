"""The method: momentum contrast, pseudo labels, hybrid self-distillation, evaluation."""
