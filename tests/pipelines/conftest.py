"""Shared by the tests of whole pipelines."""

import pytest

from oasisgen.metrics.detectability import Labelled
from oasisgen.quality import detectability


@pytest.fixture
def hardly_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classifiers of two steps: most of a small batch's time goes into detectability, which no gate looks at."""
    auc = detectability.auc

    def brief(real: Labelled, others: Labelled) -> float:
        return auc(real, others, steps=2)

    monkeypatch.setattr(detectability, "auc", brief)
