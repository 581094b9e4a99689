"""The results as tables: ``python benchmarks/table.py`` prints them, and with ``--write`` renews docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
Record = dict[str, Any]


def number(value: float) -> str:
    """Three digits at most, without an exponent."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.2g}" if value < 9.95 else f"{value:.3g}".removesuffix(".0")


def size(shape: list[int]) -> str:
    return "×".join(map(str, shape))


def times(ratio: dict[str, float], spread: bool) -> str:
    text = number(ratio["median"]) + "x"
    return f"{text} [{number(ratio['low'])}-{number(ratio['high'])}]" if spread else text


def percent(share: dict[str, float]) -> str:
    return f"{100 * share['median']:.0f} %"


def grid(rows: list[list[str]]) -> str:
    """A Markdown table whose columns line up in plain text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rows.insert(1, ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]])
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


def ordered(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def table_of(records: list[Record], spread: bool) -> str:
    """One op on one device: a row per contestant, a column per shape, the thread counts side by side in a cell."""
    shapes = sorted(ordered(tuple(r["shape"]) for r in records), key=lambda shape: (shape[1], shape[0]))
    cells: dict[str, dict[Any, list[str]]] = {}
    errors: dict[str, dict[str, float]] = {}

    def add(label: str, record: Record, text: str) -> None:
        cells.setdefault(label, {}).setdefault(tuple(record["shape"]), []).append(text)

    def judge(label: str, verdict: Record) -> None:
        worst = errors.setdefault(label, {})
        for field in ("error", "over_budget", "out_of_box"):
            if field in verdict:
                worst[field] = max(worst.get(field, 0.0), verdict[field])

    for record in sorted(records, key=lambda r: r["threads"] or 0):
        for peer in record["peers"]:
            label = peer["name"] + (f" ({peer['weaker']})" if "weaker" in peer else "")
            add(label, record, "failed" if "failed" in peer else times(peer["ratio"], spread))
            judge(label, peer)
    for record in sorted(records, key=lambda r: r["threads"] or 0):
        judge("**ours**", record["ours"])
        if "microseconds" in record:
            add("**ours**", record, number(record["microseconds"]["median"]) + " µs")
        if "fresh_output" in record:
            add("ours, into a new tensor", record, times(record["fresh_output"], spread))
        add("ours: share of copy bandwidth", record, percent(record["share_of_floor"]))
    cells = {"**ours**": cells.get("**ours**", {})} | cells

    checks = [f for f in ("error", "over_budget", "out_of_box") if any(f in worst for worst in errors.values())]
    titles = {"error": "error", "over_budget": "over eps", "out_of_box": "out of box"}
    rows = [["", *(size(list(shape)) for shape in shapes), *(titles[check] for check in checks)]]
    for label, row in cells.items():
        marks = [f"{errors[label][c]:.1g}" if errors.get(label, {}).get(c) else "" for c in checks]
        if label == "**ours**":
            marks = [mark or "0" for mark in marks]
        unit = "1x" if label == "**ours**" else ""
        rows.append([label, *(" / ".join(row.get(shape, [unit])) for shape in shapes), *marks])
    return grid(rows)


def latency_table(records: list[Record]) -> str:
    rows = [["one image of 784, from Python", "median", "quartiles"]]
    for record in records:
        t = record["microseconds"]
        rows.append([f"`{record['op'].removesuffix(', one call')}`", f"{number(t['median'])} µs"])
        rows[-1].append(f"{number(t['low'])}-{number(t['high'])} µs")
    return grid(rows)


def attack_table(records: list[Record]) -> str:
    """Attacks on one network: a row each, strongest last budget first; accuracy left and time for each budget."""
    budgets = sorted(records, key=lambda record: record["eps"])
    rows = [
        ["", *(f"left at eps {r['eps']:g}" for r in budgets), "gradients", "time", "CPU time", "over eps", "out of box"]
    ]
    names = sorted((a for a in budgets[-1]["attacks"]), key=lambda a: sum(a["robust"]) / len(a["robust"]))
    for name in (entry["name"] for entry in names):
        found = [next(a for a in record["attacks"] if a["name"] == name) for record in budgets]
        left = [f"{100 * sum(a['robust']) / len(a['robust']):.1f} %" for a in found]
        times = [" / ".join(number(a[field]) + "x" for a in found) for field in ("ratio", "cpu_ratio")]
        worst = [max(a[field] for a in found) for field in ("over_budget", "out_of_box")]
        label = f"**{name}**" if name.startswith("ours") else name
        rows.append([label, *left, str(found[0]["gradients"]), *times, *(f"{w:.1g}" if w else "" for w in worst)])
    return grid(rows)


def generator_table(record: Record) -> str:
    """Generators of fooling images on one network: what they made, and how long it took."""
    rows = [["", f"qualify, of {record['shape'][0]}", "gradients an image", "time", "CPU time"]]
    for entry in record["generators"]:
        label = f"**{entry['name']}**" if entry["name"].startswith("ours") else entry["name"]
        bound = ">= " if entry["at_least"] else ""
        times = [bound + number(entry[field]) + "x" for field in ("ratio", "cpu_ratio")]
        made = number(sum(entry["qualify"]) / len(entry["qualify"]))
        rows.append([label, made, number(entry["gradients"]), *times])
    return grid(rows)


def nearest_table(record: Record) -> str:
    """Of attacks that look for the nearest point: how near it is, and the time for one image as ratios to ours."""
    rows = [["", "success", "mean L2 distance", "time"]]
    for entry in record["nearest"]:
        label = f"**{entry['name']}**" if entry["name"] == "ours" else entry["name"]
        share, distance = f"{100 * entry['success']:.4g} %", f"{entry['distance']:.4f}"
        rows.append([label, share, distance, number(entry["ratio"]) + "x"])
    return grid(rows)


def render(records: list[Record], spread: bool = False) -> str:
    """All tables of one machine."""
    parts = []
    compared = [r for r in records if "peers" in r]
    for op, device in ordered((r["op"], r["device"]) for r in compared):
        group = [r for r in compared if (r["op"], r["device"]) == (op, device)]
        threads = [str(n) for n in sorted({r["threads"] for r in group if r["threads"]})]
        where = f"CPU, {' / '.join(threads)} thread{'s' * (threads != ['1'])}" if threads else "CUDA"
        parts.append(f"**`{op.split(',')[0]}`**{op[len(op.split(',')[0]) :]} ({where}):\n\n{table_of(group, spread)}")
    for network in ordered(r["network"] for r in records if "attacks" in r):
        group = [r for r in records if "attacks" in r and r["network"] == network]
        about = f"L1 attacks on `{network}`, {group[0]['shape'][0]} images, {group[0]['steps']} steps"
        parts.append(f"**{about}** (CPU, {group[0]['threads']} threads):\n\n{attack_table(group)}")
    for record in (r for r in records if "generators" in r):
        about = f"Fooling images of `{record['network']}`, at most {record['steps']} steps"
        share = f"the network's share of the plain loop: {100 * record['network_share']:.0f} %"
        parts.append(f"**{about}** (CPU, threads: {record['threads']}; {share}):\n\n{generator_table(record)}")
    for record in (r for r in records if "nearest" in r):
        images = record["shape"][0]
        parts.append(
            f"**Minimal perturbations of {images} images**, {record['op'].split(',')[1].strip()} (CPU, threads: "
            f"{record['threads']}; time for one image):\n\n{nearest_table(record)}"
        )
    calls = [r for r in records if "microseconds" in r and "peers" not in r]
    if calls:
        parts.append(latency_table(calls))
    return "\n\n".join(parts)


def requirements(records: list[Record]) -> list[str]:
    """One line per figure that was asked for: PASS or below."""
    lines = []
    for record in records:
        where = f"{record['op']} {size(record['shape'])}"
        threads = f", {record['threads']} thread{'s' * (record['threads'] != 1)}" if record["threads"] else ""
        for peer in record.get("peers", []):
            if "required" in peer and "ratio" in peer:
                ratio = peer["ratio"]["median"]
                word = "PASS " if ratio >= peer["required"] else "below"
                lines.append(f"{word} {where}{threads}: {number(ratio)}x {peer['name']}, at least {peer['required']}x")
        for entry in record.get("attacks", []):
            if entry["name"] in record["required"]:
                required = record["required"][entry["name"]]
                word = "PASS " if entry["ratio"] >= required else "below"
                lines.append(
                    f"{word} {where}{threads}: {number(entry['ratio'])}x {entry['name']}, at least {required}x"
                )
            if entry["name"] == "ours: apgd":
                left = sum(entry["robust"]) / len(entry["robust"])
                word = "PASS " if left <= record["limit_robust"] else "below"
                lines.append(f"{word} {where}{threads}: {left:.4f} left standing, at most {record['limit_robust']}")
        for entry in record.get("nearest", [])[1:]:
            word = "PASS " if entry["ratio"] >= record["required"] else "below"
            lines.append(
                f"{word} {where}{threads}: {number(entry['ratio'])}x {entry['name']}, at least {record['required']}x"
            )
        for entry in record.get("generators", []):
            for field in (field for field in ("ratio", "adam_ratio") if "adam_ratio" in entry):
                required = record["required"][field]
                word = "PASS " if entry[field] >= required else "below"
                than = "ours: l1" if field == "ratio" else "ours: adam"
                lines.append(
                    f"{word} {where}{threads}: {entry['name']} takes {number(entry[field])}x as long as {than}, "
                    f"at least {number(required)}x"
                )
        if "limit" in record:
            median = record["microseconds"]["median"]
            word = "PASS " if median <= record["limit"] else "below"
            lines.append(f"{word} {where}: {number(median)} µs, at most {number(record['limit'])} µs")
    return lines


def describe(machine: dict[str, Any]) -> str:
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    load = f"; load average before the run {machine['load_before']}" if machine.get("load_before") is not None else ""
    return f"{machine['processor']}, {machine['cores']} cores{gpu}; torch {machine['versions']['torch']}; float32{load}"


def page() -> str:
    """All measurements, from every results file."""
    parts = [
        "# All measurements",
        "`pytest benchmarks` times every peer in the same run and on the same inputs, interleaved, after checking all "
        "answers against a float64 oracle. It writes what it found, with the quartiles of every ratio, to "
        "`benchmarks/results/`, from which `python benchmarks/table.py --write` makes this page.",
        "Time of each peer divided by ours, with a preallocated output, medians over interleaved rounds; largest error "
        "against the float64 oracle, and by how much the answer exceeds the budget and the box (empty: not at all). "
        "The share of copy bandwidth is the time of a plain copy of the same number of bytes divided by ours. "
        "AutoAttack and adv-lib stand for their algorithms as written out in `benchmarks/peers.py`.",
    ]
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text())
        parts.append(f"{describe(content['machine'])}:\n\n{render(content['records'])}")
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} anew")
    write = parser.parse_args().write
    text = page()
    print(text)
    for path in sorted(RESULTS.glob("*.json")):
        print("\n" + "\n".join(requirements(json.loads(path.read_text())["records"])))
    if write:
        PAGE.write_text(text + "\n")


if __name__ == "__main__":
    main()
