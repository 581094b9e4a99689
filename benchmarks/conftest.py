"""``pytest benchmarks``: cases run in one child process per thread count; the parent prints and keeps the results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import harness
import table

CHILD = os.environ.get("SPARRING_BENCH_CHILD")  # in a child: where to write its results, by test
CORES = os.cpu_count() or 1
SETTINGS = [pytest.param(("cpu", n), id=f"cpu-{n}") for n in sorted({1, min(2, CORES)})]
SETTINGS.append(pytest.param(("cuda", 1), id="cuda", marks=pytest.mark.cuda))

_written: dict[str, Any] = {}  # in a child
_children: dict[tuple[str, int], dict[str, Any]] = {}  # in the parent
_records: list[dict[str, Any]] = []
_load = harness.load_average()


# Reference networks and data that are too large to commit, beside the checkout or where SPARRING_SHARED says.
SHARED = Path(os.environ.get("SPARRING_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "shared: needs the folder of reference networks and data (SPARRING_SHARED)")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=float, default=0.6, help="benchmarks: seconds for each contestant")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "setting" in metafunc.fixturenames:
        metafunc.parametrize("setting", SETTINGS)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    at_hand = {"cuda": torch.cuda.is_available(), "shared": (SHARED / "models").is_dir()}
    absent = [item for item in items if any(item.get_closest_marker(name) for name, is_ in at_hand.items() if not is_)]
    items[:] = [item for item in items if item not in absent]
    for item in items:
        item.add_marker(pytest.mark.timeout(0))  # a child's whole run is part of its first case
    config.hook.pytest_deselected(items=absent)


def setting_of(item: pytest.Item) -> Any:
    """(device, threads) of a test that uses `versus`, else None."""
    if isinstance(item, pytest.Function) and "versus" in item.fixturenames:
        return item.callspec.params["setting"]
    return None


def run_child(setting: tuple[str, int], items: list[pytest.Item], config: pytest.Config) -> dict[str, Any]:
    """Run `items` in a process that has had its thread count from the start."""
    device, threads = setting
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(f"\nmeasuring {len(items)} cases on {device}, {threads} thread{'s' * (threads > 1)} ...")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        count = str(threads)
        options = ["--rootdir", str(config.rootpath), f"--seconds={config.getoption('seconds')}"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *(i.nodeid for i in items)],
            env=os.environ | {"SPARRING_BENCH_CHILD": str(report), "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count},
            cwd=config.rootpath,
            capture_output=True,
            text=True,
        )
        results: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
    lost = {"failed": f"the child process ended early ({done.returncode}):\n{done.stdout[-3000:]}{done.stderr[-3000:]}"}
    return {item.nodeid: results.get(item.nodeid, lost) for item in items}


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """In the parent a test that uses `versus` is looked up in the results of the child for its setting."""
    setting = setting_of(pyfuncitem)
    if CHILD or setting is None:
        return None
    if setting not in _children:
        alike = [item for item in pyfuncitem.session.items if setting_of(item) == setting]
        _children[setting] = run_child(setting, alike, pyfuncitem.config)
    result = _children[setting][pyfuncitem.nodeid]
    if "failed" in result:
        pytest.fail(result["failed"], pytrace=False)
    _records.append(result)
    return True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if CHILD and report.failed:
        keep(report.nodeid, {"failed": report.longreprtext})


def keep(nodeid: str, result: dict[str, Any]) -> None:
    _written[nodeid] = result
    Path(str(CHILD)).write_text(json.dumps(_written))


@pytest.fixture
def device(setting: tuple[str, int]) -> torch.device:
    return torch.device(setting[0])


@pytest.fixture
def versus(request: pytest.FixtureRequest, setting: tuple[str, int]) -> Callable[..., None]:
    """``versus(ours, {peer: function}, ...)``: see `harness.measure`."""

    def run(ours: harness.Run, peers: dict[str, harness.Run], **options: Any) -> None:
        torch.set_num_threads(setting[1])
        budget = request.config.getoption("seconds")
        keep(request.node.nodeid, harness.measure(ours, peers, budget=budget, **options))

    return run


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference networks and data; for benchmarks marked `shared`."""
    return SHARED


@pytest.fixture
def keep_record() -> Callable[..., None]:
    """``keep_record(record)``: keep a result that was measured in this process, at once: the next may take long."""

    def keep_now(record: dict[str, Any]) -> None:
        _records.append(record)
        harness.save([record], harness.results_path(), _load)

    return keep_now


@pytest.fixture
def latency() -> Callable[..., None]:
    """``latency(op, benchmark, limit)``: keep what pytest-benchmark measured, in microseconds."""

    def record(op: str, benchmark: Any, limit: float) -> None:
        if benchmark.stats is None:  # --benchmark-disable
            return
        stats = benchmark.stats.stats
        values = {"median": stats.median, "low": stats.q1, "high": stats.q3}
        _records.append(
            {
                "op": f"{op}, one call",
                "shape": [1, 784],
                "device": "cpu",
                "threads": torch.get_num_threads(),
                "microseconds": {name: float(f"{1e6 * value:.3g}") for name, value in values.items()},
                "limit": limit,
            }
        )

    return record


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _records and not CHILD:
        harness.save(_records, harness.results_path(), _load)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _records and not CHILD:
        terminalreporter.section("benchmarks")
        terminalreporter.write_line(table.render(_records, spread=True))
        terminalreporter.write_line("\n" + "\n".join(table.requirements(_records)))
        terminalreporter.write_line(f"\nwritten to {harness.results_path()}")
        if _load is not None and _load > 0.5:
            terminalreporter.write_line(
                f"the machine was busy (load average {_load} before the run): ratios with several threads mean little"
            )
