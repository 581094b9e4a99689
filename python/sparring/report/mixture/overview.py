"""The top of the page, and the table below it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparring._text import percent, plural
from sparring.report.audit import interval
from sparring.report.mixture.experiment import Experiment
from sparring.report.page import Section, Summary, Table, Tile
from sparring.runs import Record

CAVEAT = (
    "The fast gradient sign method (FGS) is one step on the mixture as a whole, the weakest of attacks: what "
    "withstands it may fall to more steps, or to an attack on a member."
)
LEARNT = (
    "With the smaller eps {smaller:g} fewer are right ({less}) than with eps {eps:g} ({more}), which a larger attack "
    "could only lower: the mixture has learnt what this attack looks like, which is not robustness."
)
CHANCE = " From {images} images, chance alone leaves a 95 % interval of {low} to {high} for the accuracy under attack."


def summary(found: Experiment) -> Summary:
    """Accuracies first, then what they mean, and the foot of the page."""
    clean, caveat, warnings = found.end["test/accuracy"], CAVEAT, _warnings(found)
    headline, good = f"{percent(clean)} clean", True
    if found.eps is not None:
        under = found.end[f"fgs/{found.eps:g}/accuracy"]
        headline, good = f"{headline}, {percent(under)} under FGS at eps\u00a0{found.eps:g}", under >= clean / 2
        learnt = _learnt(found, found.eps)
        good, warnings = good and not learnt, warnings + learnt
        images = _tested(found)
        low, high = interval(under, images)
        caveat += CHANCE.format(images=images, low=percent(low), high=percent(high))
    return Summary(
        what="mixture of networks",
        headline=headline,
        good=good and found.finished and not found.stopped,
        lead=" ".join(_lead(found)),
        caveat=caveat,
        tiles=_tiles(found),
        command=found.config.get("command", "sparring mixture"),
        tables=[_settings(found), _setting_up(found)],
        warnings=warnings,
    )


def table(found: Experiment) -> Section:
    """Accuracy by the budget of the attack, before and after training."""
    several = found.members > 1
    head = ["attack", "mixture at first", "mixture"] + ["a member, mean", "majority"] * several
    tests = {"none, all test images": "test"}
    if found.fit.test_eps:
        tests |= {"none, the sample": "fgs/0"} | {f"FGS {eps:g}": f"fgs/{eps:g}" for eps in sorted(found.fit.test_eps)}
    lines: list[list[str]] = []
    strong: list[int] = []
    for name, group in tests.items():
        keys = ("accuracy", "members", "vote") if several else ("accuracy",)
        if found.eps is not None and group == f"fgs/{found.eps:g}":
            strong = [len(lines)]
        shares = [found.start[f"{group}/accuracy"], *(found.end[f"{group}/{key}"] for key in keys)]
        lines.append([name, *map(percent, shares)])
    text = (
        "Share of images that are classified correctly. FGS: every entry moved by eps along the sign of the mixture's "
        f"gradient, then clipped, on a sample of {_tested(found)} test images."
    )
    if several:
        text += (
            " A member and the majority are asked about the same moved images; each vote counts with the member's "
            "weight."
        )
    return Section("", "In numbers", text, [], Table(head, lines, strong))


def _lead(found: Experiment) -> list[str]:
    config, network = found.fit, found.config["network"]["name"]
    epochs = found.end["epoch"]
    against = "on real images alone"
    if config.attack != "none":
        against = f"on real images and on attacks on the mixture ({config.attack}, eps {config.eps:g})"
    who = f"{found.members} networks ({network}) as one" if found.members > 1 else f"One network ({network})"
    said = [f"{who}, trained for {epochs} {plural('epoch', epochs)} {against}."]
    before, file = (found.config["mixture"][key] for key in ("pretrain_epochs", "pretrained"))
    if before:
        said.append(f"Before that each was trained by itself for {before} {plural('epoch', before)} on real images.")
    if file is not None:
        said.append(f"They came from {Path(file['file']).name}, trained already.")
    if found.members > 1:
        said.append(_compared("On test images as they are", found.end, "test"))
        if found.eps is not None:
            said.append(_compared(f"Moved by FGS at eps {found.eps:g}", found.end, f"fgs/{found.eps:g}"))
    return said


def _compared(when: str, record: Record, group: str) -> str:
    mixture, member, majority = (percent(record[f"{group}/{key}"]) for key in ("accuracy", "members", "vote"))
    return f"{when}, the mixture has {mixture} right, a member by itself {member} (mean), the majority {majority}."


def _tiles(found: Experiment) -> list[Tile]:
    groups = {"test images as they are": "test"}
    if found.eps is not None:
        groups[f"FGS, eps {found.eps:g}"] = f"fgs/{found.eps:g}"
    tiles = []
    whose = {"mixture": "accuracy"}
    if found.members > 1:
        whose |= {"a member, mean": "members", "majority": "vote"}
    for what, group in groups.items():
        for who, key in whose.items():
            first = found.start[f"{group}/{key}"]
            tiles.append(Tile(f"{who}: {what}", percent(found.end[f"{group}/{key}"]), f"at first: {percent(first)}"))
    if found.members > 1:
        low, high = (f"{found.end[f'weights/{end}']:.3g}" for end in ("min", "max"))
        effective = f"{found.end['weights/effective']:.3g} of {found.members}"
        tiles.append(Tile("members that count, by weight", effective, f"weights from {low} to {high}"))
    return tiles


def _warnings(found: Experiment) -> list[str]:
    data, warnings = found.config["data"], []
    if found.stopped:
        warnings.append(f"Training stopped: {found.stopped}.")
    elif not found.finished:
        warnings.append(f"Unfinished: {found.end['epoch']} of {found.fit.epochs} epochs are done. Go on with --resume.")
    if data.get("official") is not True and data.get("note"):
        warnings.append(f"The real images are {data['note']}.")
    return warnings


def _learnt(found: Experiment, eps: float) -> list[str]:
    """Whether a weaker attack finds more, by more than chance."""
    shares = {one: found.end[f"fgs/{one:g}/accuracy"] for one in found.fit.test_eps}
    smaller = min((one for one in shares if one <= eps), key=lambda one: shares[one])
    if shares[smaller] >= interval(shares[eps], _tested(found))[0]:
        return []
    less, more = percent(shares[smaller]), percent(shares[eps])
    return [LEARNT.format(smaller=smaller, eps=eps, less=less, more=more)]


def _settings(found: Experiment) -> dict[str, Any]:
    table: dict[str, Any] = found.config["mixture"] | found.settings
    if table["pretrained"] is not None:
        table["pretrained"] = f"{Path(table['pretrained']['file']).name}, SHA-256 {table['pretrained']['sha256']}"
    return table


def _setting_up(found: Experiment) -> dict[str, Any]:
    table = {"network": found.config["network"]["name"]} | {key: found.config[key] for key in ("device", "threads")}
    table |= {f"data: {key}": value for key, value in found.config["data"].items() if key != "folder"}
    return table | dict(found.config.get("versions", {}))


def _tested(found: Experiment) -> int:
    """Test images that the attack is tested on."""
    all_of_them: int = found.config["data"]["test images"]
    return min(all_of_them, found.fit.eval_images or all_of_them)
