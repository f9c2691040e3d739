"""The page of results agrees with its JSON files."""

import json

from benchmarks import page


def test_the_page_is_up_to_date():
    text = (page.RESULTS / "README.md").read_text()
    assert page.rewritten(text) == text
    assert all(f"<!-- {table.__name__} -->" in text for table in page.TABLES)


def test_missing_measurements(tmp_path, monkeypatch):
    step = {"ms_per_image": [4.0, 5.0], "memory_gb": 1.5}
    result = {
        "made_by": {"machine": "2 processor cores"},
        "flop_per_image": 10**9,
        "tasks": {"a": {"plain": step, "default": {**step, "ms_per_image": [2.0, 2.0]}}},
    }
    (tmp_path / "throughput-cpu.json").write_text(json.dumps(result))
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    lines = page.throughput().splitlines()
    not_measured = " not measured | not measured | not measured |"
    assert f"| stage (a), step only | default | 2.25 (2.00–2.50) |{not_measured}" in lines
    assert f"| stage (d), step only | default | not measured |{not_measured}" in lines
    assert f"| stage (a), TFLOP/s | default | 2 |{not_measured}" in lines
    assert page.profile().count("not measured") == 4
