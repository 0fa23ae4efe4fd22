"""Turns the Hub's refusals and network failures into HubRefusal, one sentence each that says what to do."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from hf_xlmr.errors import HfXlmrError, InputError

if TYPE_CHECKING:
    from types import ModuleType

    from huggingface_hub.errors import HfHubHTTPError

TOKENS: Final = "https://huggingface.co/settings/tokens"
NO_TOKEN: Final = (
    f"there is no token: log in with `hf auth login`, or set HF_TOKEN to one that may write (from {TOKENS})"
)
OFFLINE: Final = "HF_HUB_OFFLINE is set, which forbids requests to the Hub: unset it"
BAD_TOKEN: Final = (
    f"the Hub rejects the token: log in with `hf auth login --force`, or set HF_TOKEN to a valid one (from {TOKENS})"
)
SMALLER_FILES: Final = 'write smaller files: convert or save_pretrained with max_shard_size="5GB"'
LONGEST_TOLD: Final = 300  # characters of the Hub's own words
LONGEST_WAIT: Final = (60.0, 300.0, 300.0, None)  # seconds to connect, to read, to write, to get a connection
SENTENCES: Final[Mapping[int, str]] = {
    401: BAD_TOKEN,
    402: "the plan of {namespace} does not cover this: free space there, or push to a public repository",
    403: "the token may not write to {repo_id}, or the Hub forbids it (its reason is at the end): use one that may "
    "write (from " + TOKENS + "), propose the change with create_pr=True, or remove the reason",
    404: "{repo_id} does not exist, or the token may not see it: check its name and the token",
    409: "{repo_id} exists although the token does not see it, or somebody is changing it now: check the token, or try "
    "again",
    412: "somebody has changed {repo_id} since it was checked: try again, which reads it again",
    413: f"the Hub accepts nothing of that size: if it is weights, {SMALLER_FILES}",
    429: "the Hub accepts no more requests for now: try again in {wait}",
}
FAULT_OF_THE_HUB: Final = "the Hub has an internal error: try again later"
NO_ANSWER: Final = "the Hub cannot be reached, or the connection broke: check your network{}, and try again"
OTHER_ADDRESS: Final = " and HF_ENDPOINT ({})"  # if the Hub's own address is not used
OF_HTTP: Final = ("httpx", "httpx2", "httpcore", "httpcore2", "requests")
"""The HTTP libraries of huggingface_hub, whose releases differ in this."""
OF_THE_HUB: Final = ("huggingface_hub", *OF_HTTP, "hf_xet")
NOT_UNDERSTOOD: Final = "the Hub's answer cannot be understood ({}): check HF_ENDPOINT and proxies"


class HubRefusal(InputError):
    """The Hub refused or did not answer; `status` is its answer's, None if there was none, `said` its own words."""

    def __init__(self, told: str, *, status: int | None = None, is_unanswered: bool = False, said: str = "") -> None:
        """Store the sentence, the status, the Hub's words, and whether the answer was lost or an error of the Hub."""
        self.told = told
        self.said = said
        self.status = status
        self.is_unanswered = is_unanswered
        super().__init__(told)

    def going_on(self, told: str) -> HubRefusal:
        """The same refusal with more text at its end."""
        return HubRefusal(self.told + told, status=self.status, is_unanswered=self.is_unanswered, said=self.said)


class NotOnTheHub(HubRefusal):
    """A repository or a branch does not exist, or the token may not see it."""


@contextmanager
def told_by_the_hub(repo_id: str) -> Iterator[None]:
    """Turn what huggingface_hub raises about a repository into a HubRefusal of one sentence.

    Errors that hf_xlmr's own code raises in the block, or causes in the standard library, stay unchanged.
    """
    try:
        with _limited_waiting():
            yield
    except (HfXlmrError, MemoryError):
        raise
    except Exception as error:
        cause = _cause(error) if _is_of_the_hub(error) else error
        refusal = _refusal(cause, repo_id) if _is_of_http(cause) or _is_of_the_hub(cause) else None
        if refusal is not None:
            raise refusal from error
        if cause is error:
            raise
        raise cause from None


@contextmanager
def _limited_waiting() -> Iterator[None]:
    """Wait at most LONGEST_WAIT for the Hub, unless the user set a limit; huggingface_hub itself has none."""
    session = hub_utils().get_session()
    before = session.timeout
    if before.read is None:
        session.timeout = LONGEST_WAIT
    try:
        yield
    finally:
        session.timeout = before


def _refusal(error: BaseException, repo_id: str) -> HubRefusal | None:
    """The refusal for an error of huggingface_hub, None if the error is about a local file that should be sent."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalTokenNotFoundError):
        return HubRefusal(NO_TOKEN)
    if isinstance(error, OfflineModeIsEnabled):
        return HubRefusal(OFFLINE)
    if isinstance(error, HfHubHTTPError):
        return _answered(error, repo_id)
    if isinstance(error, (ConnectionError, TimeoutError)) or _is_of_http(error):
        endpoint = os.environ.get("HF_ENDPOINT")
        where = OTHER_ADDRESS.format(endpoint) if endpoint else ""
        return HubRefusal(NO_ANSWER.format(where), is_unanswered=True)
    if isinstance(error, PermissionError) and type(error).__module__.partition(".")[0] == "hf_xet":
        return HubRefusal(BAD_TOKEN, status=401)
    if isinstance(error, UnicodeEncodeError):  # of a header, in which nothing but the token is the user's
        return HubRefusal(BAD_TOKEN)
    if isinstance(error, OSError):
        return None
    if isinstance(error, ImportError):
        return HubRefusal(f"the proxy of the environment cannot be used ({_first_lines(error)})")
    return not_understood(_first_lines(error))


def _is_of_the_hub(error: BaseException) -> bool:
    """Whether huggingface_hub, or an HTTP library of it, raised an error, and not hf_xlmr's own code in a callback.

    An error that the standard library raises counts as one of the code that called it.
    """
    modules = [str(frame.f_globals.get("__name__")) for frame, _line in traceback.walk_tb(error.__traceback__)]
    of_arguments = hub_utils().validate_hf_hub_args.__module__  # wraps methods, and refuses hf_xlmr's arguments
    packages = [name.partition(".")[0] for name in modules if name != of_arguments]
    known = [package for package in packages if package not in sys.stdlib_module_names]
    return bool(known) and known[-1] in OF_THE_HUB


def _is_of_http(error: BaseException) -> bool:
    """Whether an error has a class of an HTTP library that some release of huggingface_hub uses."""
    return any(each.__module__.partition(".")[0] in OF_HTTP for each in type(error).mro())


def not_understood(reason: object) -> HubRefusal:
    """The refusal for an answer that is not in the Hub's format, such as a proxy's."""
    return HubRefusal(NOT_UNDERSTOOD.format(reason), is_unanswered=True)


def _cause(error: BaseException) -> BaseException:
    """The first cause of an error: huggingface_hub wraps it into one that only names the file that was being sent."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _answered(error: HfHubHTTPError, repo_id: str) -> HubRefusal:
    """The refusal for an answer, by its status; for a missing repository the Hub answers 401 without a valid token."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    status, headers = int(error.response.status_code), error.response.headers
    said = " ".join(str(error.server_message or "").split())[:LONGEST_TOLD]
    if isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)):
        return NotOnTheHub(_sentence(404, repo_id, said=said), status=status)
    sentence = _sentence(status, repo_id, wait=_wait(headers), said=said)
    return HubRefusal(sentence, status=status, is_unanswered=status >= 500, said=said)


def _sentence(status: int, repo_id: str, *, wait: str = "", said: str = "") -> str:
    """A sentence that says what to do about a status, with the Hub's own words `said`."""
    sentence = FAULT_OF_THE_HUB if status >= 500 else SENTENCES.get(status, "the Hub refuses this")
    advice = sentence.format(repo_id=repo_id, namespace=repo_id.partition("/")[0], wait=wait)
    return f"{advice} (status {status}{': ' if said else ''}{said})"


def _wait(headers: Mapping[str, str]) -> str:
    """The time that the Hub asks to wait, in words; "some minutes" if it does not say."""
    after = headers.get("Retry-After", "")
    limit = hub_utils().parse_ratelimit_headers(headers)
    seconds = int(after) if after.isdigit() else limit.reset_in_seconds if limit is not None else None
    return "some minutes" if seconds is None else f"{seconds} seconds"


def _first_lines(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:LONGEST_TOLD] or type(error).__name__


def hub_utils() -> ModuleType:
    """The module huggingface_hub.utils, some of whose functions have no types."""
    from huggingface_hub import utils

    return utils


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Silence huggingface_hub's progress bars, advice and warnings inside the block."""
    import warnings

    utils = hub_utils()
    had_bars, verbosity = not utils.are_progress_bars_disabled(), utils.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        utils.logging.set_verbosity_error()
        utils.disable_progress_bars()
        try:
            yield
        finally:
            utils.logging.set_verbosity(verbosity)
            if had_bars:
                utils.enable_progress_bars()
