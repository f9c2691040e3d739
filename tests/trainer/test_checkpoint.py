"""What a checkpoint may hold."""

from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch

from trainer.checkpoint import CHECKPOINT, save


class Name(str):
    pass


def test_only_what_can_be_read_again_is_saved(tmp_path):
    contents = {"weights": OrderedDict(w=torch.ones(2)), "part": (1, 2.5, None, [b"x", {"a"}])}
    save(tmp_path, contents)
    read = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert torch.equal(read.pop("weights")["w"], torch.ones(2))
    assert read == {"part": contents["part"]}
    for wrong in (Name("x"), Path("x"), {"a": [Name("x")]}, {Name("x"): 1}, Counter("a")):
        with pytest.raises(TypeError, match="cannot be read again"):
            save(tmp_path, {"about": wrong})
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["part"] == contents["part"]
