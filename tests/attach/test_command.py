"""``python -m tonnage.attach bench``, the progress bar, and the benchmark's tables."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tonnage.attach.__main__ import main
from tonnage.attach.progress import ProgressReporter

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks/attach"


@NO_GPU
def test_without_a_gpu_it_measures_reading(shard: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(shard), "--repeat", "2"]) == 0
    out = capsys.readouterr().out
    assert "No GPU found" in out
    assert "read 2:" in out


@NO_GPU
def test_as_json(tensors_file: Path, tensors: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tensors_file), "--json", "--repeat", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tensor_bytes"] == sum(tensor.nbytes for tensor in tensors.values())
    assert found["pinned_limit_gb_s"] is None
    assert len(found["gb_s"]) == 1


@pytest.mark.parametrize(("arguments", "code"), [(["gone"], 11), (["gone", "--repeat", "0"], 2)])
def test_errors_set_the_exit_code_and_print_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int
) -> None:
    assert main(["bench", str(tmp_path / arguments[0]), *arguments[1:]]) == code
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_its_help_describes_the_measurement_and_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "pinned" in shown
    assert "bench /models/llama-70b" in shown
    assert "`" not in shown


def test_a_bar_shows_on_a_terminal_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressReporter("auto", 100, description="llama") as reporter:
        reporter.update(1)
        assert terminal.getvalue() == ""
        reporter._began -= 5
        reporter.update(50)
        reporter.finish_phase(60)
    assert "llama" in terminal.getvalue()


def test_no_bar_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReporter("auto", 100, description="llama") as reporter:
        reporter._began -= 5
        reporter.update(50)
    assert capsys.readouterr().err == ""


def test_the_benchmarks_table_survives_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import summary

    call = {"seconds": 0.5, "cpu_seconds": 2.0}
    record = {"stage": "peers", "round": 0, "bytes": 10**10, "calls": [call, {"seconds": 0.4, "cpu_seconds": 1.0}]}
    stats = [{"pinned_bytes": 128 << 20}]
    records = [
        {**record, "label": "tonnage", "contender": "tonnage", "peak_extra_bytes": 1 << 20, "stats": stats},
        {**record, "label": "pinned limit", "contender": "limit"},
        {"stage": "peers", "round": 0, "label": "other", "contender": "runai", "error": "ended with 1:\nno | module"},
    ]
    summary.write_report([{"facts": {}, "records": records}], tmp_path, "attach")
    text = (tmp_path / "attach.md").read_text()
    assert (
        "| **tonnage** | 1 | 20.0 (20.0–20.0) | 1.00 | 25.0 (25.0–25.0) | 25.0 (25.0–25.0) | 0.20 | 1 MiB | 128 MiB |"
        in text
    )
    assert "failed: no / module" in text


@pytest.mark.parametrize(
    ("links", "host_memory", "first", "share"),
    [(100, 80, 60, "0.75"), (100, 80, 90, "0.90"), (100, 120, 60, "0.60"), (90, 100, 110, "1.10")],
    ids=["the host's memory", "what was passed is none", "the links", "all were passed"],
)
def test_the_benchmark_compares_several_gpus_with_the_least_limit_that_none_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: int, host_memory: int, first: int, share: str
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import summary

    rates = {"limit": links, "host-memory": host_memory, "tonnage": first, "exchange": 240}
    records = [
        {"stage": "gpus", "label": f"2 GPUs: {name}", "contender": name, "gpus": 2, "bytes": rate * 10**9,
         "calls": [{"seconds": 1.0, "cpu_seconds": 1.0}]}
        for name, rate in rates.items()
    ]  # fmt: skip
    summary.write_report([{"records": records}], tmp_path, "attach")
    text = (tmp_path / "attach.md").read_text()
    assert f"| **2 GPUs: tonnage** | 1 | {first:.1f} ({first:.1f}–{first:.1f}) | {share} |" in text


def test_the_benchmark_measures_another_release_as_well_as_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import children

    specs = [{"label": "tonnage, own rank", "contender": "tonnage"}, {"label": "InstantTensor", "contender": "other"}]
    assert children.with_library(specs, "") == specs
    other = children.with_library(specs, str(tmp_path))[2:]
    assert [spec["label"] for spec in other] == ["tonnage, other release, own rank"]

    (tmp_path / "tonnage").mkdir()
    (tmp_path / "tonnage/__init__.py").write_text("raise SystemExit('the other release was imported')")
    process = children.spawn({**other[0], "path": "", "device": "cpu", "gate": True})
    assert "the other release was imported" in children.collect(process, other[0])["error"]


@pytest.mark.parametrize("contender", ["iterate-tonnage", "iterate-safetensors"])
@pytest.mark.parametrize("use", ["parameters", "drop"])
def test_the_benchmark_of_vllms_iterators_needs_no_vllm(
    shard: Path, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, contender: str, use: str
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import contenders

    spec = {"contender": contender, "device": "cpu", "path": str(shard.parent), "use": use, "check": True, "calls": 1}
    found = contenders.run_child(spec)
    assert found["bytes"] == sum(tensor.nbytes for tensor in tensors.values())
    assert found["checked"] == (len(tensors) if use == "parameters" else 0)
    assert "vllm" not in sys.modules


@pytest.mark.timeout(180)
def test_the_benchmark_of_streaming_loads_and_reads_a_model_both_ways(tmp_path: Path) -> None:
    """With a real loader and the iterator of vLLM's load format, on the CPU."""
    command = [sys.executable, str(BENCHMARKS / "streaming.py"), "--gib", "0.02", "--rounds", "1", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--folder", tmp_path, "--out", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "attach-streaming.json").read_text())["seconds"]
    assert {way: len(runs) for way, runs in found.items()} == {"waits": 1, "streams": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["attach-streaming.json"]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("contender", ["exchange", "host-memory"])
def test_the_benchmark_of_several_gpus_divides_a_model_and_each_process_receives_all_of_it(
    shard: Path, tensors: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contender: str
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import children

    size = sum(tensor.nbytes for tensor in tensors.values())
    common = {"path": str(shard.parent), "gpus": 2, "device": "cpu", "bytes": size, "calls": 1, "gate": True}
    specs = [
        {**common, "contender": contender, "gpu": gpu, "rendezvous": str(tmp_path / "rendezvous")} for gpu in range(2)
    ]
    with contextlib.ExitStack() as started:
        processes = []
        for spec in specs:
            processes.append(started.enter_context(children.spawn(spec)))
            started.callback(processes[-1].kill)
        for process in processes:
            children.wait_until_ready(process)
            children.release(process)
        found = [children.collect(process, spec) for process, spec in zip(processes, specs, strict=True)]
    files = sum(path.stat().st_size for path in shard.parent.glob("*.safetensors"))
    assert [each.get("bytes", each) for each in found] == [size if contender == "exchange" else files] * 2


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=3), st.integers(0, 100), max_size=30), st.integers(1, 8))
def test_the_parts_of_a_divided_model_are_disjoint_complete_and_no_two_differ_by_more_than_a_tensor(
    sizes: dict[str, int], ranks: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import exchange

        parts = exchange.divide(sizes, ranks)
    assert sorted(name for part in parts for name in part) == sorted(sizes)
    totals = [sum(sizes[name] for name in part) for part in parts]
    assert max(totals) - min(totals) <= max(sizes.values(), default=0)
