"""Models, plans and ensembles that threads share: a few seconds of `campaigns/stress.py`."""

from __future__ import annotations

import pytest

from campaigns.stress import stress


@pytest.mark.filterwarnings("ignore")  # warnings are a matter of the whole process, and other threads set them
@pytest.mark.parametrize("seed", [0, 1])
def test_threads_do_not_disturb_each_other(seed: int) -> None:
    count, errors = stress(4, threads=8, seed=seed)
    assert not errors, errors[0]
    assert count > 20
