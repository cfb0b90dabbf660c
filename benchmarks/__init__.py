"""Measurements against peers: both sides in one run, quoted as ratios."""
