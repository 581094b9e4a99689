"""The report of `sparring intriguing`: every table beside the papers' own, and what the numbers say."""

from __future__ import annotations

from sparring.report.intriguing.story import Story
from sparring.report.page import Section, Summary
from sparring.runs import Run, RunError

__all__ = ["story"]


def story(run: Run) -> tuple[Summary, list[Section]]:
    """What the report says of a run of `sparring intriguing`."""
    checkpoint = run.checkpoint()
    if checkpoint is None:
        raise RunError(f"{run.path} has no checkpoint yet: there is nothing to report")
    tensors, state = checkpoint
    found = Story(run.config, state["numbers"], tensors, state.get("left_out", {}))
    return found.summary(), found.sections()
