"""Lipschitz bounds that are bounds: norms of layers enclosed, networks bounded, and training with them."""

from sparring.lipschitz.chains import chain_bound
from sparring.lipschitz.empirical import empirical_lower_bound
from sparring.lipschitz.enclosure import Enclosure
from sparring.lipschitz.local import local_bound
from sparring.lipschitz.network import layer_bounds
from sparring.lipschitz.path_norm import path_norm
from sparring.lipschitz.penalties import Penalty, penalty
from sparring.lipschitz.projection import project_
from sparring.lipschitz.radius import certified_radius
from sparring.lipschitz.report import LayerBound, LipschitzReport
from sparring.lipschitz.spectral import spectral_norm

__all__ = [
    "Enclosure",
    "LayerBound",
    "LipschitzReport",
    "Penalty",
    "certified_radius",
    "chain_bound",
    "empirical_lower_bound",
    "layer_bounds",
    "local_bound",
    "path_norm",
    "penalty",
    "project_",
    "spectral_norm",
]
