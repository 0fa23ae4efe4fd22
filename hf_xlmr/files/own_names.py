"""The names of the releases, the demo and its data, and the rule that a path comes before such a name."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Final

from hf_xlmr.errors import InputError

logger = logging.getLogger(__name__)

DEMO: Final = "demo"
RELEASE_NAMES: Final = (
    *("xlmr.base", "xlmr.large", "xlmr.xl", "xlmr.xxl", "xlmr.base.v0", "xlmr.large.v0"),
    *("xmod.base", "xmod.large.prenorm", "xmod.base.13.125k", "xmod.base.30.125k", "xmod.base.30.195k"),
    *("xmod.base.60.125k", "xmod.base.60.265k", "xmod.base.75.125k", "xmod.base.75.269k"),
)
NAMES: Final = (DEMO, *RELEASE_NAMES)


def own_name(given: str | Path) -> str | None:
    """The release or demo that `given` names; None if it is a path, which comes first if it exists.

    That a path hides a name is logged as a warning, once for each path. Raises InputError.
    """
    name = str(given)
    if name not in NAMES:
        return None
    if not is_there(name):
        return name
    _warn(name, str(Path(name).absolute()))
    return None


def is_there(given: str) -> bool:
    """Whether `given` is the path of something. Raises InputError if the system does not let us know."""
    try:
        return bool(given) and bool(Path(given).stat())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        raise InputError(f"cannot read {given}: {error.strerror}.") from error


@cache
def _warn(name: str, path: str) -> None:
    logger.warning(
        "%s is read as the path ./%s (%s), which exists, and not as %s: for that one, call from another folder",
        *(name, name, path, "hf_xlmr's demo" if name == DEMO else "the release of that name"),
    )
