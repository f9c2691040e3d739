"""How fast it is, beside a plain version of itself, in one run."""
