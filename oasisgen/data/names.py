"""What the path of an image file says: case, subject, level, split, and whether it is a label map."""

import re
import signal
import threading
from dataclasses import dataclass

from oasisgen.config.data import MOST_LEVELS
from oasisgen.errors import UserError

IMAGE = re.compile(r"(?P<stem>.+?)(\.nii)?\.(png|jpe?g|tiff?|bmp)", re.IGNORECASE)
NUMBERED = re.compile(r"(?:(?P<case>.+?)[_-])?(?:slice|level|z)[_-]?(?P<level>\d{1,9})", re.IGNORECASE)
BARE = re.compile(r"(?P<level>\d{1,9})")
T1 = re.compile(r"[_.-](t1w?|mprage)$", re.IGNORECASE)  # at the end of a case; images of other contrasts keep theirs
SUBJECT = re.compile(r"(?P<subject>sub-[A-Za-z0-9]+|IXI\d+|OAS\d_\d+)(?![A-Za-z0-9]).*")
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validate", "validation"), "validate")
SPLIT_FOLDER = re.compile(rf"(?!test-retest)(.*[_-])?(?P<split>{'|'.join(SPLIT_NAMES)})([_-].*)?", re.IGNORECASE)
LABEL_WORD = r"(d?seg|segmentations?|labels?|masks?)"
LABEL_FOLDER = re.compile(rf"(.*[_-])?{LABEL_WORD}([_-].*)?", re.IGNORECASE)
LABEL_START = re.compile(rf"{LABEL_WORD}[_-]", re.IGNORECASE)
LABEL_END = re.compile(rf"[_-]{LABEL_WORD}$", re.IGNORECASE)
PATIENCE = 2.0  # seconds of computing for --pattern to search one path
EXPECTED = "expected names like case_001_slice_7.png, sub-012_T1w_slice007.png or <case>/slice_7.png, or give --pattern"


@dataclass(frozen=True)
class Named:
    """What a path says."""

    case: str
    subject: str
    level: int  # of a volume: 0
    split: str  # "" where no folder is a split's
    labels: bool  # a label map, not a slice


def printable(path: str) -> str:
    """`path` with escapes for the characters that cannot be printed, such as bytes that are not UTF-8."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in path)


def is_image(path: str) -> bool:
    """Whether a path ends like an image that can be read."""
    return IMAGE.fullmatch(path) is not None


def is_split(folder: str) -> bool:
    """Whether a folder's name tells a split."""
    return SPLIT_FOLDER.fullmatch(folder) is not None


def split_of_folders(folders: list[str]) -> str:
    """The split that a folder's name tells; "" if none does."""
    for folder in folders:
        if match := SPLIT_FOLDER.fullmatch(folder):
            return SPLIT_NAMES[match["split"].lower()]
    return ""


def parse_name(path: str, pattern: re.Pattern[str] | None = None) -> Named:
    """What the path of an image says, by `pattern` or, without one, by the usual names.

    Raises ValueError with the reason if it does not tell case and level.
    """
    *folders, name = path.split("/")
    image = IMAGE.fullmatch(name)
    stem = image["stem"] if image else name
    labels = bool(LABEL_START.match(stem) or LABEL_END.search(stem)) or any(map(LABEL_FOLDER.fullmatch, folders))
    split = split_of_folders(folders)
    if pattern:
        return by_pattern(path, pattern, split, labels)
    stem = LABEL_END.sub("", LABEL_START.sub("", stem)) if labels else stem
    match = NUMBERED.fullmatch(stem)
    case = match["case"] if match else None
    match = match or BARE.fullmatch(stem)
    if match and not case:  # the folder is the case
        case = next((folder for folder in folders[-1:] if not _is_known(folder)), None)
    if not match or not case:
        raise ValueError(f"its name does not tell case and level: {EXPECTED}")
    case = re.sub(r"^case[_-]?(?=\d)", "", T1.sub("", case), flags=re.IGNORECASE)
    return Named(case, subject_of(case), _level(match["level"]), split, labels)


def _is_known(folder: str) -> bool:
    return is_split(folder) or LABEL_FOLDER.fullmatch(folder) is not None or folder.lower() == "images"


def by_pattern(path: str, pattern: re.Pattern[str], split: str = "", labels: bool = False) -> Named:
    """What the groups that `pattern` finds in a path say; the level is 0 if `pattern` has no such group.

    Raises ValueError with the reason if they do not tell the case, and UserError if the search takes too long.
    """
    match = _search(pattern, path)
    groups = match.groupdict(default="") if match else {}
    subject = groups.get("subject", "")
    case = groups.get("case", "") or "_".join(filter(None, (subject, groups.get("session", ""))))
    level = groups.get("level", "0")
    if not case or not level.isdigit():
        wanted = "case and level" if "level" in pattern.groupindex else "case"
        raise ValueError(f"--pattern does not find its {wanted}")
    if named := groups.get("split", "").lower():
        if named not in SPLIT_NAMES:
            raise ValueError(f"--pattern finds split {named} instead of {', '.join(SPLIT_NAMES)}")
        split = SPLIT_NAMES[named]
    return Named(case, subject or subject_of(case), _level(level), split, labels)


def _search(pattern: re.Pattern[str], path: str) -> re.Match[str] | None:
    """`pattern.search(path)`. Raises UserError after PATIENCE seconds: nested repetitions may take years.

    Only the main thread can be stopped so; jobs survey their source there.
    """
    if threading.current_thread() is not threading.main_thread():
        return pattern.search(path)

    def stop(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
    try:
        return pattern.search(path)
    except TimeoutError:
        fix = "give one without a repetition in a repetition, such as (a+)+"
        raise UserError(f"--pattern {pattern.pattern} takes too long on {path}: {fix}") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def subject_of(case: str) -> str:
    """The subject of a case: sub-012 of sub-012_ses-1, OAS1_0003 of OAS1_0003_MR2, else the case itself."""
    match = SUBJECT.fullmatch(case)
    return match["subject"] if match else case


def _level(text: str) -> int:
    level = int(text)
    if level >= MOST_LEVELS:
        raise ValueError(f"level {level} is above {MOST_LEVELS - 1}")
    return level
