"""The accelerator's script, rehearsed with tiny sizes on CPU: every row exists and is written."""

from __future__ import annotations

import json

import pytest

from benchmarks import on_gpu


def test_a_call_that_is_cut_off_keeps_its_rows(tmp_path):
    file = tmp_path / "rows.json"
    arguments = ["--tiny", "--only", "kernel", "--json", str(file), "--minutes", "0"]
    assert on_gpu.main(arguments) == 0
    content = json.loads(file.read_text())
    assert [row["sizes"]["strategy"] for row in content["rows"]] == ["fused"]
    assert {"devices", "jax", "memory"} <= set(content["environment"])


@pytest.mark.slow
def test_what_fails_is_named_and_the_rest_is_measured(tmp_path, monkeypatch):
    def broken(settings, sizes):
        raise MemoryError("no room")
        yield

    monkeypatch.setitem(on_gpu.PLAN, "simulators", broken)
    file = tmp_path / "rows.json"
    assert on_gpu.main(["--tiny", "--only", "simulators", "kernel", "--json", str(file)]) == 1
    content = json.loads(file.read_text())
    assert content["failures"] == {"simulators": "MemoryError: no room"}
    assert {row["name"] for row in content["rows"]} == {"merging/kernel"}


@pytest.mark.slow
def test_the_whole_plan_runs(tmp_path):
    file = tmp_path / "rows.json"
    assert on_gpu.main(["--tiny", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    names = {row["name"].split("/")[0] for row in rows}
    expected = (
        "environments commformer obd merging vqcd kid lsm rsfm interpret bilevel decoder novo"
    )
    assert names == set(expected.split())
    (respond,) = [row for row in rows if row["name"] == "lsm/respond"]
    assert "as fast as without a cache" in respond["note"]
