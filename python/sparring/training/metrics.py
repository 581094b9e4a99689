"""The eleven metrics of retraining: what each asks, and how its numbers are to be read.

A record names a number `number/what` for all images and `number/what/class_c` for those of class c. Metric 7 has a
group of numbers for each process: `7-de/what` (differential evolution) and `7-l1/what` or, where training itself uses
steps in an L1 ball, `7-prox/what`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A question to a network under training.

    Attributes
    ----------
    number : as in names of numbers.
    title : what it is measured on.
    meaning : one line on what it asks, and what is good.
    """

    number: str
    title: str
    meaning: str


METRICS: Mapping[str, Metric] = {
    metric.number: metric
    for metric in (
        Metric(
            "0",
            "Attempts of the attack",
            "Does the attack find sparse images that the network takes for a class? Few, of low probability, are good.",
        ),
        Metric(
            "1",
            "Out of distribution",
            "Are the images that fool it unlike real ones? Far from all training images, and no class to another "
            "network.",
        ),
        Metric(
            "2",
            "Images it was just trained on",
            "Does training work at all? Near 100 % caught at the end of each generation is expected.",
        ),
        Metric(
            "3",
            "Images of earlier generations",
            "Does it forget? A fall after a new generation means that it does.",
        ),
        Metric(
            "4",
            "Fresh images from the same attack",
            "Made by the newest attack but held out: learnt in general, or by heart?",
        ),
        Metric(
            "5",
            "Fresh images from earlier attacks",
            "Held out like those of 4, from the attacks on the earlier networks.",
        ),
        Metric(
            "6",
            "Images that fool an independent network",
            "The same process against a network trained on other images of the same kind: is the weakness shared?",
        ),
        Metric(
            "7",
            "Images from a different process",
            "Made another way against the same networks: is the process recognised, or what a fooling image is?",
        ),
        Metric(
            "8",
            "A stronger attack at the end",
            "More attempts of more steps than training used, on the final network: does it still find any?",
        ),
        Metric("9", "Real training images", "Does the network do well on what it was trained on?"),
        Metric("10", "Real test images", "What does retraining cost on real images that it never saw?"),
    )
}
