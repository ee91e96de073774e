"""Numbers of arrays: pure functions, no Ray, no storage."""
