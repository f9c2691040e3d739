"""Seeds of independent random streams."""

import hashlib


def stream_seed(purpose: str, *numbers: int) -> int:
    """Return a 32-bit seed, the hash of `purpose` and `numbers` (run seed, epoch, image, …), so
    that streams of different purposes or numbers are independent."""
    key = " ".join([purpose, *(str(int(number)) for number in numbers)])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
