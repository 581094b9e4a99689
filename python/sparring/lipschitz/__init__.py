"""Lipschitz bounds that are bounds: norms of layers enclosed, networks bounded, and training with them."""

from sparring.lipschitz.enclosure import Enclosure

__all__ = ["Enclosure"]
