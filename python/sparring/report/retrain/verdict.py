"""The top of the page, the table of all metrics below it, and the section on metric 8."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from sparring import figures
from sparring._text import number, percent, plural
from sparring.report.page import Picture, Section, Summary, Table, Tile
from sparring.report.retrain.curves import section, title
from sparring.report.retrain.experiment import NUMBERED, Experiment

CAVEAT = (
    "This is said of one attack with one budget: another process, more steps or more pixels may find what it did not. "
    "Nor does it ask whether an image might be a fair example of its class; look at them below."
)
# What the table of all metrics shows, in words short enough for a phone.
SHARES = {
    "yield": "fool it",
    "caught": "caught",
    "caught_exact": "caught, exact",
    "accuracy": "correct",
    "false_alarm": "rejected",
}
NUMBERS = {
    "prob": "mean p(target)",
    "sparsity": "mean pixels lit",
    "distance": "mean distance",
    "distance_real": "of test images",
}


def summary(found: Experiment) -> Summary:
    """The verdict first, then the numbers that it rests on, and the foot of the page."""
    headline, good, lead = _verdict(found)
    return Summary(
        what="retraining on fooling images",
        headline=headline,
        good=good,
        lead=lead,
        caveat=CAVEAT,
        tiles=_tiles(found),
        command=found.config.get("command", "sparring retrain"),
        tables=[found.settings, _setting_up(found)],
        warnings=_warnings(found),
    )


def _verdict(found: Experiment) -> tuple[str, bool, str]:
    """The headline, whether it is good news, and the sentences below it."""
    verdict = found.verdict
    if verdict is None:
        epochs, attacks = found.epochs[-1]["epoch"], len(found.attacks)
        done = f"{epochs} {plural('epoch', epochs)} and {attacks} {plural('attack', attacks)} done"
        return "Unfinished", False, f"{done}. Go on with --resume."
    last, generations = found.attacks[-1], verdict["generations"]
    sparse = f"p of at least {verdict['p_min']:g} with at most {verdict['s_max']} entries lit"
    budget = f"{last['0/images']:.0f} attempts of {found.settings['steps']} steps each"
    if generations == 0:
        return "The attack never succeeded", False, (
            f"Not even the network before any retraining was fooled in {budget}: on average they reached "
            f"p {last['0/prob']:.2f} with {last['0/sparsity']:.1f} entries lit, where {sparse} was asked. "
            f"This speaks of a weak attack, not of a robust network.{_stronger(found)}"
        )  # fmt: skip
    after = f"After {generations} {plural('generation', generations)} of retraining, "
    if last["0/yield"]:
        lead = f"{after}{percent(last['0/yield'])} of {budget} still reach {sparse}.{_stronger(found)}"
        return "Still fooled", False, lead
    lead = f"{after}the attack found no image that qualifies ({sparse}) in {budget}.{_stronger(found)}"
    if verdict["robust"]:
        return "Robust to this process", True, lead
    return "Robust only to the budget it was trained with", False, lead


def _stronger(found: Experiment) -> str:
    """What the attack finds with the larger budget of metric 8, in a sentence after another; nothing without one."""
    verdict = found.verdict
    if verdict is None or not _has_stronger(found):
        return ""
    budget = f"{verdict['attempts']} attempts of {verdict['steps']} steps each"
    if verdict["robust"]:
        return f" Nor did a stronger attack find any, in {budget}."
    return f" A stronger attack than it was trained with succeeds in {percent(verdict['fooled'])} of {budget}."


def _has_stronger(found: Experiment) -> bool:
    """Whether metric 8 was measured with more than the budget of training."""
    return "8/images" in (found.verdict or {}) and found.settings["final_factor"] > 1


def _warnings(found: Experiment) -> list[str]:
    """What has to be said of the data's origin."""
    data = found.config["data"]
    return [f"The real images are {data['note']}."] if data.get("official") is not True and data.get("note") else []


def _tiles(found: Experiment) -> list[Tile]:
    before = [record for record in found.epochs if record["generation"] == 0] or found.epochs
    last = found.epochs[-1]
    tiles = [
        _tile("images that fool it", [record["0/yield"] for record in found.attacks], True),
        _tile("accuracy on real test images", [record["10/accuracy"] for record in (before[-1], last)], True),
    ]
    if "4/caught" in last:
        tiles.append(_tile("fresh fooling images caught", [last["4/caught"]], True))
    tiles.append(_tile("real test images rejected", [last["10/false_alarm"]], True))
    tiles.append(_tile("pixels lit in an attempt, mean", [record["0/sparsity"] for record in found.attacks], False))
    return [tile for tile in tiles if tile.value]


def _tile(label: str, values: Sequence[float], share: bool) -> Tile:
    shown = [percent(value) if share else f"{value:.1f}" for value in values]
    return Tile(label, shown[-1] if shown else "", f"before: {shown[0]}" if len(shown) > 1 else "")


def _setting_up(found: Experiment) -> dict[str, Any]:
    table = {"network": found.config.get("network", {}).get("name", ""), "threads": found.config.get("threads", "")}
    table |= {f"data: {key}": value for key, value in found.config["data"].items() if key != "folder"}
    return table | dict(found.config.get("versions", {}))


def overview(found: Experiment) -> Section:
    """Every metric with its first and last value."""
    lines = []
    for metric in NUMBERED:
        for key, what in (SHARES | NUMBERS).items():
            values = [record[f"{metric}/{key}"] for record in found.records if f"{metric}/{key}" in record]
            if values:
                write = percent if key in SHARES else number
                lines.append([metric, what, write(values[0]), write(values[-1]), title(metric)])
    text = "First: when it was first measured. Last: at the end."
    return Section(
        "", "In numbers", text, [], Table(["metric", "what", "first", "last", "measured on"], lines, words=(1, 4))
    )


def final(found: Experiment) -> Section:
    """Metric 8: the attack on the final network, with the budget of training and with a stronger one."""
    verdict = found.verdict
    if verdict is None:
        return section("8", [])
    budgets = {"as in training": (found.attacks[-1], "0", found.settings["steps"])}
    if _has_stronger(found):
        budgets["stronger"] = (verdict, "8", verdict["steps"])
    lines = [
        [
            name, f"{record[f'{m}/images']:.0f}", f"{most:.0f}", percent(record[f"{m}/yield"]),
            number(record[f"{m}/prob"]), number(record[f"{m}/sparsity"]),
        ]
        for name, (record, m, most) in budgets.items()
    ]  # fmt: skip
    name, (record, m, _) = list(budgets.items())[-1]
    keys = {f"class {c}": f"{m}/yield/class_{c}" for c in range(found.classes)}
    by_class = {c: record[key] for c, key in keys.items() if key in record}
    whole = record[f"{m}/yield"]
    picture = Picture(
        "8_classes",
        "Class by class",
        f"share of attempts that fool the final network, budget {name}",
        f"Bars of the share of attempts that fool the final network, by class, budget {name}; of all {percent(whole)}.",
        partial(figures.bars, values=by_class, x="fool the final network", level=("all classes", whole)),
    )
    head = ["budget", "attempts", "steps", "fool it", "mean p(target)", "mean pixels lit"]
    return section("8", [picture], table=Table(head, lines))
