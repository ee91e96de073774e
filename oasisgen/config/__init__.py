"""Settings as frozen dataclasses: what the flags say."""
