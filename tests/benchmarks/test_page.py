"""The page of results agrees with its JSON files."""

import json

from benchmarks import page


def test_the_page_is_up_to_date():
    text = (page.RESULTS / "README.md").read_text()
    assert page.rewritten(text) == text
    assert all(f"<!-- {table.__name__} -->" in text for table in page.TABLES)


def test_tables_of_the_files_that_there_are(tmp_path, monkeypatch):
    step = {"ms_per_image": [4.0, 5.0], "memory_gb": 1.5, "profile": {"ReLU": 0.5}}
    result = {
        "flop_per_image": 10**9,
        "tasks": {"a": {"plain": step, "default": {"ms_per_image": [2.0, 2.0], "memory_gb": 1}}},
    }
    (tmp_path / "throughput-cpu.json").write_text(json.dumps(result))
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    lines = page.throughput().splitlines()
    assert len(lines) == 6 and lines[0].startswith("2 processor cores with bfloat16")
    assert lines[4] == "| stage (a), step only | plain | 4.50 | 0.889 | 1.50 |  |"
    assert lines[5] == "| stage (a), step only | default | 2.00 | 2.000 | 1.00 | 2.25 (2.00–2.50) |"
    assert page.profile().splitlines()[-1] == "| ReLU | 2.25 |"
