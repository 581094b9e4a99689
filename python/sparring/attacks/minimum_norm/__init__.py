"""Attacks of the smallest perturbation that fools a model: one file for each, and what they share in `hunt.py`.

`minimal` runs the best for a norm, in rounds made of the others' parts.
"""

from sparring.attacks.minimum_norm.alma import alma
from sparring.attacks.minimum_norm.ddn import ddn
from sparring.attacks.minimum_norm.fab import fab
from sparring.attacks.minimum_norm.minimal import minimal
from sparring.attacks.minimum_norm.pdpgd import pdpgd
from sparring.attacks.minimum_norm.sigma_zero import sigma_zero

__all__ = ["alma", "ddn", "fab", "minimal", "pdpgd", "sigma_zero"]
