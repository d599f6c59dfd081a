"""Measurements against peers: scripts, each of which prints one ratio. Not part of the product."""
