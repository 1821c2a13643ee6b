"""Invented data sets, written in the layout of the real ones so that their loaders read them."""
