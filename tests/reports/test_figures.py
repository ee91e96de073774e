"""Figures are drawn whatever the user called things."""

import base64

import numpy as np
import pytest

from oasisgen.reports import figures


def text_of(figure: str) -> str:
    """The SVG of a figure, in which matplotlib repeats each text as a comment."""
    return base64.b64decode(figure.partition(",")[2]).decode()


@pytest.mark.parametrize("name", [r"$\foo$", "$x_{$", "$1$", "100 $"])
def test_names_of_classes_and_cases_are_no_formulas(name: str) -> None:
    curves = figures.curves([{"epoch": 1, name: 1.0}], {name: [name]})
    grey = figures.grey_values({name: [np.full((4, 4), 9, np.uint8)]})
    for figure in (curves, grey):
        assert f"<!-- {name} -->" in text_of(figure)


def test_the_axis_of_code_usage_has_powers_of_ten() -> None:
    figure = text_of(figures.code_usage(np.array([5, 1, 0])))
    assert "10^{-6}" in figure
    assert "scale(0.7)" in figure  # drawn as a formula: the exponent is small
