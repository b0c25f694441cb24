"""Retries for storage errors: transient ones are retried, then end the run; only permanent ones reject the image.

tenacity is not used: its Retrying takes 42 us a call (9.2, on an EPYC), six times as long as reading 15 kB from an open tar.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa

from foundry.errors import UserError
from foundry.storage.locations import is_store_failure, one_line
from foundry.units.rejection import ImageError

RETRY_AFTER_S = (1.0, 4.0, 15.0)
WEB_RETRY_AFTER_S = (1.0,)
"""Fewer, since a list of web addresses always holds some that nobody serves any more."""

_TOO_MANY_REQUESTS = (408, 429)
_WEB = ("http://", "https://")
_DEFINITIVE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, EOFError, ValueError, pa.ArrowException)

ResultT = TypeVar("ResultT")


class StoreError(UserError):
    """A store that did not answer, or refused. `is_alone` where it may be for this one image: a refusal, or a web address."""

    def __init__(self, message: str, *, is_alone: bool, may_pass: bool) -> None:
        super().__init__(message)
        self.is_alone = is_alone
        self.may_pass = may_pass

    def __reduce__(self) -> tuple[Any, ...]:
        return _store_error, (str(self), self.is_alone, self.may_pass)


def _store_error(message: str, is_alone: bool, may_pass: bool) -> StoreError:
    return StoreError(message, is_alone=is_alone, may_pass=may_pass)


def retried(read: Callable[[], ResultT], *, uri: str, name: str, before_retry: Callable[[str], None]) -> ResultT:
    """What `read` returns; it is called again after a failure that may pass, each time after `before_retry(uri)` and a pause.

    Raises ImageError("unreadable") for what another try would not mend, StoreError where the tries are used up or the store
    refuses; what only a bug or a lack of memory can raise passes as it is.
    """
    for pause_s in (*(WEB_RETRY_AFTER_S if uri.startswith(_WEB) else RETRY_AFTER_S), None):
        try:
            return read()
        except Exception as error:
            failure = _judged(error, uri=uri, name=name)
            if failure is None:
                raise
            if pause_s is None or not (isinstance(failure, StoreError) and failure.may_pass):
                raise failure from error
        before_retry(uri)
        time.sleep(pause_s)
    raise AssertionError("the last try returns or raises")


def _judged(error: Exception, *, uri: str, name: str) -> ImageError | StoreError | None:
    """What a failure means; None for one that is to pass as it is."""
    is_web = uri.startswith(_WEB)
    if is_web and isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # fsspec says "not found" for every failure of the web
    if isinstance(error, ImageError | StoreError):
        return error
    if isinstance(error, MemoryError) or isinstance(error.__cause__, ImportError):
        return None
    found = f"{name}: {type(error).__name__}: {one_line(error)}"
    if isinstance(error, _DEFINITIVE) or _is_arrows_own(error) or _is_final_status(error):
        return ImageError("unreadable", found)
    if isinstance(error, PermissionError):
        return StoreError(f"cannot read {found}; check the permissions", is_alone=True, may_pass=False)
    if is_store_failure(error, uri):
        advice = "the same command goes on once the store answers"
        return StoreError(f"cannot read {found}; {advice}", is_alone=is_web, may_pass=True)
    return None


def _is_arrows_own(error: Exception) -> bool:
    """Whether it is Arrow's word on damaged bytes; what a file system says has a number or a class of its own."""
    return type(error) is OSError and error.errno is None


def _is_final_status(error: Exception) -> bool:
    """Whether it is an answer of the web to this request, which would be the same again."""
    status = getattr(error, "status", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in _TOO_MANY_REQUESTS
