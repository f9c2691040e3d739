"""Random streams that have nothing to do with each other."""

import hashlib


def stream_seed(purpose: str, *numbers: int) -> int:
    """A seed for the random stream that serves `purpose` and that `numbers` (run seed, epoch,
    image, …) number: streams of different purposes, or of more numbers, have nothing in common."""
    name = " ".join([purpose, *(str(int(number)) for number in numbers)])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
