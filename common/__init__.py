"""The ground that everything else stands on: errors for people, files, seeds."""
