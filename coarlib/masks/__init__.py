"""Mask designs: which components a row keeps, as a function of (seed, row)."""

from coarlib.masks.designs import MaskDesign, check_design_fits, draw, parse_design

__all__ = ["MaskDesign", "check_design_fits", "draw", "parse_design"]
