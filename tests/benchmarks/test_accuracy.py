"""The comparison of fast and plain training."""

import pytest

from benchmarks import accuracy
from common.errors import InputError
from datasets import synthetic


def test_plain_and_fast_side_by_side(data, tmp_path, capsys):
    out = tmp_path / "runs.jsonl"
    flags = (
        f"--image-size 32 --epochs 2 --schedule 1 -j 0 --out {out} --seeds 0 --device cpu".split()
    )
    accuracy.main([str(data), *flags, "--modes", "plain", "default"])
    plain, fast = lines = accuracy.read_runs(out)
    assert (plain["mode"], fast["mode"]) == ("plain", "default") and fast["made_by"]["command"]
    assert fast["loss"] == pytest.approx(plain["loss"], rel=0.01)  # the same batches and views
    for line in lines:
        assert len(line["loss"]) == 2 and len(line["accuracy"]) == 10
        assert all(0 <= value <= 1 for value in line["accuracy"])
    # Finished runs are skipped.
    accuracy.main([str(data), *flags, "--modes", "plain", "default"])
    assert accuracy.read_runs(out) == lines
    synthetic.make(tmp_path / "other", base=40, rare=26, size=32, seed=1)
    with pytest.raises(InputError, match="has runs on other images"):
        accuracy.main([str(tmp_path / "other"), *flags, "--modes", "plain"])
    assert f"| default | 1 | {fast['loss'][-1]:.3f} (0.000) |" in capsys.readouterr().out
