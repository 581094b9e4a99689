"""The report of `sparring mixture`."""

from __future__ import annotations

from sparring.report.mixture import curves, overview, pictures
from sparring.report.mixture.experiment import Experiment
from sparring.report.page import Section, Summary
from sparring.runs import Run

__all__ = ["story"]


def story(run: Run) -> tuple[Summary, list[Section]]:
    """What the report says of a run of `sparring mixture`, finished or not; sections without data are left out."""
    found = Experiment(run)
    parts = [
        overview.table(found),
        curves.accuracy(found),
        curves.weights(found),
        curves.coverage(found),
        pictures.attacked(found),
        pictures.filters(found),
        pictures.histograms(found),
        curves.losses(found),
    ]
    return overview.summary(found), [part for part in parts if part.pictures or part.table]
