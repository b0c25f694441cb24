"""Retries for storage errors: transient ones are retried, then end the run; only permanent ones reject the image.

tenacity is not used: its Retrying takes 42 us a call (9.2, on an EPYC), six times as long as reading 15 kB from an open tar.
"""

import errno
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

import pyarrow as pa

from foundry.errors import StoreError, one_line
from foundry.storage.locations import is_store_failure, shown
from foundry.units.rejection import ImageError

RETRY_AFTER_S = (1.0, 4.0, 15.0)
WEB_RETRY_AFTER_S = (1.0,)
"""Fewer, since a list of web addresses always holds some that nobody serves any more."""

Side = Literal["image", "refusal", "store"]
"""Cause of a failure: the image's, which is rejected; a refusal, which may be for the image alone; the store's, which is
waited for, then ends the run."""

# Every errno of Linux by its side. A reference that names no file, or none that can be read, is its row's fault.
ERRNOS: dict[Side, str] = {
    "image": (
        "ENOENT ENOTDIR EISDIR ENAMETOOLONG ELOOP EINVAL EILSEQ EXDEV ENXIO ENODEV ENOTBLK EFBIG EOVERFLOW ERANGE EDOM ESPIPE "
        "ENOTTY ESRCH ECHILD EEXIST ENOTEMPTY EMLINK E2BIG ENOEXEC ENOTUNIQ ENODATA ENOTNAM EISNAM ENAVAIL EBFONT EBADE EBADR "
        "EBADRQC EBADSLT"
    ),
    "refusal": "EACCES EPERM EROFS ENOKEY EKEYEXPIRED EKEYREVOKED EKEYREJECTED ERFKILL",
    "store": (
        "EIO ESTALE ETIMEDOUT ETIME ECONNREFUSED ECONNRESET ECONNABORTED EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH ENETRESET "
        "ENOTCONN EISCONN ESHUTDOWN EPIPE EAGAIN EWOULDBLOCK EINTR EBUSY ETXTBSY EALREADY EINPROGRESS ECANCELED EMFILE ENFILE "
        "ENOMEM ENOBUFS ENOSPC EDQUOT ENOLCK EDEADLK EDEADLOCK EUSERS EREMOTE EREMOTEIO EREMCHG ENOLINK ENONET ECOMM EPROTO "
        "EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT ESOCKTNOSUPPORT EPFNOSUPPORT EAFNOSUPPORT EADDRINUSE EADDRNOTAVAIL EMSGSIZE "
        "EDESTADDRREQ ETOOMANYREFS ENOTSOCK EOPNOTSUPP ENOTSUP ENOSYS EFAULT EBADF EBADFD EBADMSG EUCLEAN ENOMEDIUM "
        "EMEDIUMTYPE ENOTRECOVERABLE EOWNERDEAD ERESTART ESTRPIPE ENOSR ENOSTR ENOPKG EADV ESRMNT EMULTIHOP EDOTDOT ECHRNG "
        "ENOMSG EIDRM EL2NSYNC EL3HLT EL3RST ELNRNG EUNATCH ENOCSI EL2HLT EXFULL ENOANO ELIBACC ELIBBAD ELIBSCN ELIBMAX "
        "ELIBEXEC"
    ),
}
# The statuses of HTTP that are not what their hundred is: 1xx and 5xx the store's, 3xx and 4xx the image's.
STATUSES: dict[Side, tuple[int, ...]] = {
    "image": (),
    "refusal": (401, 402, 403, 451),
    "store": (407, 408, 421, 423, 425, 429, 499),
}
_SIDES: dict[int, Side] = {
    number: side for side, names in ERRNOS.items() for name in names.split() if (number := getattr(errno, name, None))
}
_WEB = ("http://", "https://")
_DEFINITIVE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, EOFError, ValueError, pa.ArrowException)

ResultT = TypeVar("ResultT")


def retried(read: Callable[[], ResultT], *, uri: str, name: str, before_retry: Callable[[str], None]) -> ResultT:
    """Result of `read`, which is called again after a failure that may pass, each time after `before_retry(uri)` and a pause.

    Raises ImageError("unreadable") for what another try would not mend, StoreError where the tries are used up or the store
    refuses; what only a bug or a lack of memory can raise passes as it is.
    """
    for pause_s in (*(WEB_RETRY_AFTER_S if uri.startswith(_WEB) else RETRY_AFTER_S), None):
        try:
            return read()
        except Exception as error:
            failure = judged(error, uri=uri, name=name)
            if failure is None:
                raise
            if pause_s is None or not (isinstance(failure, StoreError) and failure.may_pass):
                raise failure from error
        before_retry(uri)
        time.sleep(pause_s)
    raise AssertionError("the last try returns or raises")


def judged(error: Exception, *, uri: str, name: str) -> ImageError | StoreError | None:
    """Error for a failure; None for one that should pass unchanged."""
    is_web = uri.startswith(_WEB)
    if is_web and isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # fsspec says "not found" for every failure of the web
    if isinstance(error, ImageError | StoreError):
        return error
    if isinstance(error, MemoryError) or isinstance(error.__cause__, ImportError):
        return None
    found = f"{name}: {type(error).__name__}: {shown(one_line(error))}"
    side = _side(error, uri)
    if side == "image":
        return ImageError("unreadable", found)
    if side == "refusal":
        return StoreError(f"cannot read {found}", advice="check the permissions", is_alone=True, may_pass=False)
    if side == "store":
        advice = "the same command resumes once the store answers"
        return StoreError(f"cannot read {found}", advice=advice, is_alone=is_web, may_pass=True)
    return None


def _side(error: Exception, uri: str) -> Side | None:
    """Cause of a failure; None for a bug, as far as one can tell."""
    if isinstance(error, PermissionError):
        return "refusal"
    if isinstance(error, _DEFINITIVE):
        return "image"
    if isinstance(error, TimeoutError | ConnectionError):
        return "store"
    if (status := _status(error)) is not None:
        named = next((side for side, statuses in STATUSES.items() if status in statuses), None)
        return named or ("image" if 300 <= status < 500 else "store")
    if isinstance(error, OSError) and error.errno in _SIDES:
        return _SIDES[error.errno]
    if type(error) is OSError and error.errno is None:
        return "image"  # Arrow's word on damaged bytes; what a file system says has a number or its own class
    return "store" if is_store_failure(error, uri) else None


def _status(error: BaseException) -> int | None:
    """The status of HTTP that a store answered with: in the error of its library, or in the one that this was made of."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, Mapping):  # botocore
            response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        holders = ((one, "status"), (one, "status_code"), (response, "status_code"), (one, "code"))
        given = itertools.chain([response], (getattr(holder, name, None) for holder, name in holders))
        if found := next((status for status in given if isinstance(status, int) and 100 <= status < 600), None):
            return found
    return None
