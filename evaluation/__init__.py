"""What test.py does: a task, many tasks, predictions, a student beside its teacher."""
