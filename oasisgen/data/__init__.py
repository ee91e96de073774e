"""Slices in: the data set, how it is packed, and the virtual subjects it can be tried on."""
