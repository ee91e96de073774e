"""Names of covariates, as columns of a data set."""

import re

DEFAULT_COLUMNS = ("age", "sex", "CDR")  # those that a table has
SEX = ("sex", "M/F", "gender")  # names of one column
OURS = ("case", "subject", "level", "height", "width", "image", "labels", "split")


def covariate_name(column: str) -> str:
    """The name of the covariate of a column: `M/F` -> `sex`, `nWBV` -> `nWBV`, `Age (years)` -> `Age_years`."""
    if column.lower() in map(str.lower, SEX):
        return "sex"
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", column).strip("_.-")


def titles_of(columns: str) -> list[str]:
    """`age,M/F` -> [age, M/F]. Raises ValueError unless these give different names that a data set can have."""
    titles = [title.strip() for title in columns.split(",")]
    names: set[str] = set()
    for title in titles:
        name = covariate_name(title).lower()
        if not name:
            raise ValueError(f"columns names {title!r}: must be names of columns with letters or digits, like age,sex")
        if name in OURS:
            raise ValueError(f"columns names {title}, which every data set has: rename that column in the table")
        if name in names:
            raise ValueError(f"columns names {title} twice: remove one")
        names.add(name)
    return titles
