"""No file, however broken, gets anything but a line, or what it says is not sound."""

import bad_files


def test_some_of_each_kind(tmp_path, capsys):
    table = bad_files.run(30, 0, [], tmp_path)
    assert len(table) == 13 and not any(counts["failed"] for counts in table.values()), (
        capsys.readouterr().out
    )
    for kind, counts in table.items():
        assert counts.total() == 30
        assert counts["refused"] or kind == "cache"  # which is made anew
