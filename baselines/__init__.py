"""What the papers compare with, a file a method: each trains, test.py scores."""
