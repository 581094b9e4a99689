"""A small run of `sparring intriguing`, with everything in it that a report shows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from sparring import data
from sparring.intriguing import Plan, conduct
from sparring.runs import Run


def make(folder: Path) -> Run:
    """On digits, hardly trained."""
    train, test = data.load("digits"), data.load("digits", split="test")
    plan = Plan(images=10, train_images=200, epochs=1, units=10, draws=2)
    about = {"name": "digits", "note": train.note}
    run = Run.create(folder, "made", {"data": about, "intriguing": asdict(plan)})
    with run:
        conduct(train, test, plan, run=run)
    return run
