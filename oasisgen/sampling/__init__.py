"""From a seed to a slice, and from a bundle to a batch of slices."""
