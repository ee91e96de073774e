"""Stories stay short: what does not fit on a screen or two is looked at again."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "oasisgen").rglob("*.py"), *(ROOT / "jobs").glob("*.py")])


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_is_over_300_lines_and_no_function_over_60_docstring_included(file: Path) -> None:
    text = file.read_text()
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert len(text.splitlines()) <= 300
    assert not {name: length for name, length in lengths.items() if length > 60}
