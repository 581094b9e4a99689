"""Timing contestants side by side, judging their answers, and keeping the results.

pytest-benchmark times one function after another. On a machine that others use as well, the figures of two such groups
differ by more than what is being measured; here every round times every contestant, in an order that is reversed each
round, and only ratios within a round are kept.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RESULTS = Path(__file__).parent / "results"
SHAPES = [(1, 784), (1024, 784), (256, 3072), (64, 150_528)]
EPS_PER_ENTRY = 12 / 784
FIELDS = ("error", "over_budget", "out_of_box")

Run = Callable[[], Tensor]
Judge = Callable[[Tensor], dict[str, float]]


# --- Answers --------------------------------------------------------------------------------------------------------


def sample_rows(shape: tuple[int, int], entries: int = 2**20) -> Tensor:
    """Rows for the oracle, which sorts in float64: all, or as many evenly spaced ones as hold `entries` numbers."""
    count = min(shape[0], max(1, entries // shape[1]))
    return torch.linspace(0, shape[0] - 1, count).round().long()


def judge_l1(oracle: Callable[[Tensor], Tensor], x: Tensor, eps: float) -> Judge:
    """Largest error against `oracle(rows)`; on every row the excess over `eps` and over the box [0, 1]."""
    rows = sample_rows((x.shape[0], x.shape[1]))
    right = oracle(rows)

    def judge(v: Tensor) -> dict[str, float]:
        point = x + v
        return {
            "error": float((v[rows.to(v.device)].cpu().double() - right).abs().max()),
            "over_budget": max(0.0, float((v.double().abs().sum(1) - eps).max())),
            "out_of_box": max(0.0, float((point - 1).max()), float(-point.min())),
        }

    return judge


def judge_image(oracle: Callable[[Tensor], Tensor], shape: tuple[int, int]) -> Judge:
    """Largest error against `oracle(rows)` and the excess over the box [0, 1]."""
    rows = sample_rows(shape)
    right = oracle(rows)

    def judge(image: Tensor) -> dict[str, float]:
        return {
            "error": float((image[rows.to(image.device)].cpu().double() - right).abs().max()),
            "out_of_box": max(0.0, float((image - 1).max()), float(-image.min())),
        }

    return judge


def judge_sparse(oracle: Callable[[Tensor], Tensor], x: Tensor, k: int) -> Judge:
    """The same for perturbations of `x`, and the excess over `k` entries."""
    judge_point = judge_image(oracle, (x.shape[0], x.shape[1]))

    def judge(v: Tensor) -> dict[str, float]:
        inside = judge_image(lambda rows: torch.zeros_like(v[rows], device="cpu"), (x.shape[0], x.shape[1]))(x + v)
        over = float((v != 0).sum(1).max() - k)
        return {**judge_point(v), "out_of_box": inside["out_of_box"], "over_budget": max(0.0, over)}

    return judge


# --- Time -----------------------------------------------------------------------------------------------------------


@dataclass
class Contestant:
    """One function to time: how often it is called per sample, and in which rounds it takes part."""

    run: Run
    device: torch.device
    always: bool = False
    calls: int = 1
    every: int = 1
    warm: bool = True

    def seconds(self, calls: int) -> float:
        """Seconds a call, over `calls` calls in a row."""
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda.synchronize(self.device)
            start.record()
            for _ in range(calls):
                self.run()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / 1e3 / calls
        begin = time.perf_counter()
        for _ in range(calls):
            self.run()
        return (time.perf_counter() - begin) / calls

    def plan(self, rounds: int, budget: float) -> None:
        """Samples of 2 ms or one call; all rounds if `always`, else as many as `budget` seconds allow, at least 3."""
        once = self.seconds(1)
        self.calls = min(200, max(1, math.ceil(2e-3 / once)))
        self.warm = self.always or once < 0.1
        if not self.always:
            every = math.ceil(rounds * once * (self.calls + self.warm) / budget)
            self.every = min(every, rounds // 3) | 1  # odd, so that its rounds run in both orders

    def sample(self) -> float:
        """Warm the caches with the function's own data, unless it is so slow that they do not matter; then time it."""
        if self.warm:
            self.run()
        return self.seconds(self.calls)


def interleave(contestants: Mapping[str, Contestant], rounds: int, budget: float) -> dict[str, dict[int, float]]:
    """Seconds of every contestant by round; the order is reversed each round."""
    for contestant in contestants.values():
        contestant.plan(rounds, budget)
    times: dict[str, dict[int, float]] = {name: {} for name in contestants}
    for number in range(rounds):
        for name in list(contestants)[:: 1 if number % 2 else -1]:
            if number % contestants[name].every == 0:
                times[name][number] = contestants[name].sample()
    return times


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles to three digits."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": float(f"{median:.3g}"), "low": float(f"{low:.3g}"), "high": float(f"{high:.3g}")}


def measure(
    ours: Run,
    peers: Mapping[str, Run],
    *,
    op: str,
    shape: tuple[int, int],
    device: torch.device,
    judge: Judge,
    bytes_per_entry: int,
    fresh: Run | None = None,
    required: Mapping[str, float] | None = None,
    weaker: Mapping[str, str] | None = None,
    tolerance: float = 1e-6,
    dtype: str = "float32",
    rounds: int = 24,
    budget: float = 0.6,
) -> dict[str, Any]:
    """Judge every answer, then time all contestants and a copy of `bytes_per_entry` an entry, interleaved.

    Our own answer has to be within `tolerance` of the oracle and feasible. A peer's answer is recorded as it is.
    """
    verdict = judge(ours())
    assert verdict["error"] <= tolerance, verdict
    assert all(verdict.get(field, 0.0) <= 1e-9 for field in FIELDS[1:]), verdict

    source = torch.ones(math.prod(shape) * bytes_per_entry // 8, device=device)  # a copy reads and writes 4 bytes
    target = torch.zeros_like(source)
    runs: dict[str, Run] = {"ours": ours, "copy": lambda: target.copy_(source)}
    verdicts: dict[str, dict[str, float]] = {"ours": verdict}
    failed = {}
    if fresh is not None:
        verdicts["fresh"] = judge(fresh())
        runs["fresh"] = fresh
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peers warn about is theirs
        for name, run in peers.items():
            try:
                verdicts[name] = judge(run().clone())
                runs[name] = run
            except Exception as error:  # a peer that does not run here is reported, and the others are timed
                failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        times = interleave({n: Contestant(run, device, n not in peers) for n, run in runs.items()}, rounds, budget)

    def ratio(over: str, under: str) -> dict[str, float]:
        shared = times[over].keys() & times[under].keys()
        return spread([times[over][number] / times[under][number] for number in shared])

    results: list[dict[str, Any]] = []
    for name in peers:
        entry: dict[str, Any] = {"name": name}
        if name in (weaker or {}):
            entry["weaker"] = (weaker or {})[name]
        if name in failed:
            entry["failed"] = failed[name]
        else:
            entry |= {"ratio": ratio(name, "ours"), **{k: float(f"{v:.2g}") for k, v in verdicts[name].items()}}
        if name in (required or {}):
            entry["required"] = (required or {})[name]
        results.append(entry)
    record: dict[str, Any] = {
        "op": op,
        "shape": list(shape),
        "device": device.type,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "dtype": dtype,
        "bytes_per_entry": bytes_per_entry,
        "share_of_floor": ratio("copy", "ours"),
        "ours": {k: float(f"{v:.2g}") for k, v in verdict.items()},
        "peers": results,
    }
    if fresh is not None:
        record["fresh_output"] = ratio("fresh", "ours")
    if device.type == "cuda":  # times mean something where nobody else is on the device
        record["microseconds"] = spread([1e6 * t for t in times["ours"].values()])
        moved = math.prod(shape) * bytes_per_entry
        record["copy_gb_per_s"] = spread([moved / 1e9 / t for t in times["copy"].values()])
    return record


# --- Results --------------------------------------------------------------------------------------------------------


def processor() -> str:
    """The processor's model, as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    versions = {}
    for package in ("sparring", "torch", "foolbox", "adversarial-robustness-toolbox", "torchattacks"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "source tree" if package == "sparring" else "not installed"
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions,
    }


def results_path() -> Path:
    """``results/<machine>.json``; the name is made from the GPU's or processor's model, or SPARRING_BENCH_NAME."""
    about = machine()
    model = about["gpu"] or f"{about['processor']} {about['cores']} cores"
    model = re.sub(r"\((r|tm)\)|processor|\bcpu\b|@.*ghz", " ", model.lower())
    name = os.environ.get("SPARRING_BENCH_NAME") or "-".join(re.findall(r"[a-z0-9.]+", model))
    return RESULTS / f"{name}.json"


def key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a later measurement replaces."""
    return record["op"], record["device"], record["threads"] or 0, tuple(record["shape"])


def load_average() -> float | None:
    """Processes that want to run, over the last minute: foreign work, when asked before a measurement."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def save(records: list[dict[str, Any]], path: Path, load_before: float | None) -> None:
    """Merge `records` into the file: a partial run replaces only what it measured."""
    old = json.loads(path.read_text())["records"] if path.exists() else []
    merged = {key(record): record for record in old + records}
    path.parent.mkdir(exist_ok=True)
    content = {"machine": machine() | {"load_before": load_before}, "records": [merged[k] for k in sorted(merged)]}
    path.write_text(json.dumps(content, indent=1) + "\n")
