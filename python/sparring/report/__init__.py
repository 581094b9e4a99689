"""The report of a run: what it found, verdict first, on one page."""

from __future__ import annotations

from pathlib import Path

from sparring.report import audit, intriguing, mixture, page, retrain
from sparring.report.retrain import keep_perturbation, keep_reference
from sparring.runs import Run, RunError

__all__ = ["keep_perturbation", "keep_reference", "write"]


def write(run: Run, *, small: bool = False) -> Path:
    """Write the report of a run, finished or not, and its figures; return the path of report.html.

    With `small` the figures have fewer pixels and colours, and the page about a quarter of the bytes.
    """
    if "retrain" in run.config:
        return page.write(run.path, *retrain.story(run), small=small)
    if "audit" in run.config:
        return page.write(run.path, *audit.story(run), small=small)
    if "mixture" in run.config:
        return page.write(run.path, *mixture.story(run), small=small)
    if "intriguing" in run.config:
        return page.write(run.path, *intriguing.story(run), small=small)
    commands = "`sparring retrain`, `sparring mixture`, `sparring intriguing` or `sparring audit`"
    raise RunError(f"{run.path} is not a run of {commands}: it has no report")
