"""Speed, memory and accuracy, compared with a plain implementation."""
