"""The numbers and pictures that tell whether slices can be trusted."""
