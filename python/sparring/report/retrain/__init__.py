"""The report of `sparring retrain`."""

from __future__ import annotations

from sparring.report.page import Section, Summary
from sparring.report.retrain import curves, images, perturbation, verdict
from sparring.report.retrain.experiment import PROCESSES, Experiment, keep_reference
from sparring.report.retrain.perturbation import keep_perturbation
from sparring.runs import Run

__all__ = ["keep_perturbation", "keep_reference", "story"]


def story(run: Run) -> tuple[Summary, list[Section]]:
    """What the report says of a run of `sparring retrain`, finished or not; sections without data are left out."""
    found = Experiment(run)
    parts = [
        verdict.overview(found),
        curves.attack(found),
        images.images(found),
        *(images.detection(found, metric) for metric in ("2", "3", "4", "5", "6", *PROCESSES)),
        verdict.final(found),
        curves.real(found, "9"),
        curves.real(found, "10"),
        curves.losses(found),
        curves.selection(found),
        perturbation.section(found),
    ]
    return verdict.summary(found), [part for part in parts if part.pictures or part.table]
