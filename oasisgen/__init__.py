"""oasisgen: train a VQ-VAE and a DCGAN on brain MRI slices with Ray, and generate synthetic slices in bulk."""

__version__ = "0.1.0"
