"""Numbers that the papers give, in per cent but for distortions.

Szegedy et al., "Intriguing properties of neural networks", 2013, tables 1, 2 and 4; Goodfellow, Shlens and Szegedy,
"Explaining and harnessing adversarial examples", 2015, sections 5 and 7.
"""

from __future__ import annotations

MODELS = ("FC10(1e-4)", "FC10(1e-2)", "FC10(1)", "FC100-100-10", "FC200-200-10", "AE400-10")

TEST_ERROR = dict(zip(MODELS, (7.4, 9.4, 20.0, 1.64, 1.54, 1.9), strict=True))

# Error of each network on what was made for each, and the average distortion that this took.
CROSS_MODEL: dict[str, tuple[float, ...]] = {
    "FC10(1e-4)": (100, 11.7, 22.7, 2, 3.9, 2.7),
    "FC10(1e-2)": (87.1, 100, 35.2, 35.9, 27.3, 9.8),
    "FC10(1)": (71.9, 76.2, 100, 48.1, 47, 34.4),
    "FC100-100-10": (28.9, 13.7, 21.1, 100, 6.6, 2),
    "FC200-200-10": (38.2, 14, 23.8, 20.3, 100, 2.7),
    "AE400-10": (23.4, 16, 24.8, 9.4, 6.6, 100),
}
DISTORTION = dict(zip(MODELS, (0.062, 0.1, 0.14, 0.058, 0.065, 0.086), strict=True))
NOISE: dict[float, tuple[float, ...]] = {0.1: (5.0, 10.1, 18.3, 0, 0, 0.8), 0.3: (15.6, 11.3, 22.7, 5, 4.3, 3.1)}

HALVES = ("FC100-100-10", "FC123-456-10", "FC100-100-10'")

# The same for networks trained on halves of the images: the first two on one, the third on the other.
CROSS_SET: dict[str, tuple[float, ...]] = {
    "FC100-100-10": (100, 26.2, 5.9),
    "FC123-456-10": (6.25, 100, 5.1),
    "FC100-100-10'": (8.2, 8.2, 100),
}
CROSS_SET_DISTORTION = dict(zip(HALVES, (0.062, 0.059, 0.058), strict=True))
CROSS_SET_NOISE: dict[float, tuple[float, ...]] = {0.06: (2.2, 2.6, 2.4)}
AMPLIFIED = 0.1
"""Distortion that the second table of the halves is rescaled to."""

FGS_EPS = 0.25
# Error and mean confidence on mistakes of networks under the fast gradient sign method at `FGS_EPS`.
FGS_SOFTMAX = (99.9, 79.3)
FGS_RBF = (55.4, 1.2)
CONFIDENCE_RBF_CLEAN = 60.6
