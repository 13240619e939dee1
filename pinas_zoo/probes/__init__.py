"""Probes: how good a network's frozen features are, by nearest neighbours and by a linear classifier."""
