"""Metrics as pure functions of arrays: no Ray, no storage."""
