"""Sweeps over configs, their tables and claims, and the figures of the focal loss paper."""
