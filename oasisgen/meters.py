"""Prometheus metrics of a job, exported through Ray's metrics port with the prefix `ray_`."""

from functools import cache

from ray.util.metrics import Counter, Gauge

GAUGES = {
    "slices_per_second": "Slices that a stage trains on or generates per second",
    "epoch": "Finished epochs of a stage",
    "ssim": "Mean SSIM of reconstructed validation slices",
}


@cache
def _gauge(name: str) -> Gauge:
    return Gauge(f"oasisgen_{name}", GAUGES[name], tag_keys=("stage",))


@cache
def _counter(verdict: str) -> Counter:
    return Counter(f"oasisgen_batches_{verdict}_total", f"Batches that were {verdict}")


def show(stage: str, **values: float) -> None:
    """Set the gauges of a stage (see GAUGES)."""
    for name, value in values.items():
        _gauge(name).set(value, {"stage": stage})


def count_batch(verdict: str) -> None:
    """Count a batch that was `released` or `quarantined`."""
    _counter(verdict).inc()
