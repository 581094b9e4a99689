"""Lipschitz bounds that are bounds: norms of layers enclosed, networks bounded, and training with them."""

from sparring.lipschitz.enclosure import Enclosure
from sparring.lipschitz.spectral import spectral_norm

__all__ = ["Enclosure", "spectral_norm"]
