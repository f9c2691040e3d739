"""Seeds of random streams."""

import numpy as np

from common.seeding import stream_seed


def test_stream_seed():
    numbers = [(), (1,), (1, 0), (0, 1), (1, 0, 0), (11,)]
    numbers += [(a, b) for a in range(2, 20) for b in range(20)]
    seeds = {stream_seed(purpose, *n) for purpose in ("views", "order") for n in numbers}
    assert len(seeds) == 2 * len(numbers)
    assert stream_seed("views", 1, 2) == stream_seed("views", np.int64(1), 2)
