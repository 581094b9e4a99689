"""Lipschitz bounds that are bounds: norms of layers enclosed, networks bounded, and training with them."""

from sparring.lipschitz.enclosure import Enclosure
from sparring.lipschitz.path_norm import path_norm
from sparring.lipschitz.penalties import Penalty, penalty
from sparring.lipschitz.projection import project_
from sparring.lipschitz.spectral import spectral_norm

__all__ = ["Enclosure", "Penalty", "path_norm", "penalty", "project_", "spectral_norm"]
