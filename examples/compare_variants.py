"""Compare five variants of retraining on MNIST, three seeds each: a table in Markdown, and every number in CSV.

    python examples/compare_variants.py path/to/mnist out

writes out/variants.md and out/variants.csv. Two experiments run at a time, each on one thread.
"""

from __future__ import annotations

import sys
from pathlib import Path

import sparring as sp
from sparring.training import PRESETS
from sparring.training.compare import Outcome, as_csv, as_markdown, compare


def told(outcome: Outcome) -> None:
    numbers = outcome.numbers
    print(f"{outcome.variant}, seed {outcome.seed}: yield {numbers['yield_first']:.1%} -> {numbers['yield_final']:.1%}")


def main(data: Path, out: Path) -> None:
    train, test = (sp.data.load("mnist", data, split) for split in ("train", "test"))
    outcomes = compare(train, test, "mlp", PRESETS["quick"], processes=2, on_outcome=told)
    out.mkdir(parents=True, exist_ok=True)
    (out / "variants.csv").write_text(as_csv(outcomes))
    (out / "variants.md").write_text(as_markdown(outcomes))
    print(as_markdown(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
