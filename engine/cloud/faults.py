"""What an object store's client raises, told as one of a few kinds, in words that hold no secret."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from engine.errors import MachineError, TumorscanError, UsageError

Kind = Literal["passing", "missing", "denied", "credentials", "taken", "refused"]

_CREDENTIALS: Final = frozenset({
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "ExpiredTokenException", "InvalidToken",
    "TokenRefreshRequired", "RequestTimeTooSkewed", "AuthorizationHeaderMalformed", "InvalidSecurity", "401",
    "UnrecognizedClientException", "InvalidClientTokenId",
})  # fmt: skip
_DENIED: Final = frozenset(
    {"AccessDenied", "AllAccessDisabled", "AccountProblem", "InvalidObjectState", "403"}
)
_MISSING: Final = frozenset({"NoSuchKey", "NoSuchBucket", "NotFound", "404"})
_TAKEN: Final = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412"})
_PASSING: Final = frozenset({
    "SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling", "ThrottlingException",
    "RequestLimitExceeded", "TooManyRequests", "OperationAborted", "IncompleteBody", "BadDigest",
    "XAmzContentSHA256Mismatch", "408", "409", "429", "500", "502", "503", "504",
})  # fmt: skip
"""Codes of S3, and HTTP's. https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html"""
_NAMES: Final[dict[str, Kind]] = {
    "NoCredentialsError": "credentials", "PartialCredentialsError": "credentials",
    "CredentialRetrievalError": "credentials", "ProfileNotFound": "credentials",
    "ConfigParseError": "credentials", "SSOError": "credentials", "TokenRetrievalError": "credentials",
    "GoogleAuthError": "credentials",
    "HTTPClientError": "passing", "ClientPayloadError": "passing", "ClientConnectionError": "passing",
    "IncompleteRead": "passing", "IncompleteReadError": "passing", "ResponseStreamingError": "passing",
    "ResponseParserError": "passing", "TimeoutError": "passing", "FSTimeoutError": "passing",
    "ConnectionError": "passing", "gaierror": "passing", "ChecksumError": "passing",
    "FileNotFoundError": "missing", "FileExistsError": "taken", "PermissionError": "denied",
}  # fmt: skip
"""Of exceptions that carry no code, by the names of their classes: naming them would load the clients."""
_FORBIDDEN: Final = "Forbidden"
"""What a bare OSError begins with that gcsfs makes of HTTP's 403."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a request failed. `word` is the store's code or the client's error, without what it says beside."""

    kind: Kind
    word: str


class StoreError(Exception):
    """A request that failed for good, or for longer than it was tried."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.word)
        self.fault = fault


def fault_of(error: BaseException) -> Fault:
    """What `error`, or what caused it, amounts to."""
    last: BaseException | None = error
    while last is not None:
        code = _code(last)
        if code in _CREDENTIALS:
            return Fault("credentials", code)
        if code in _DENIED:
            return Fault("denied", code)
        if code in _MISSING:
            return Fault("missing", code)
        if code in _TAKEN:
            return Fault("taken", code)
        if code in _PASSING:
            return Fault("passing", code)
        if code:
            return Fault("refused", code)
        last = last.__cause__
    last = error
    while last is not None:
        for each in type(last).__mro__:
            if kind := _NAMES.get(each.__name__):
                return Fault(kind, type(last).__name__)
        last = last.__cause__
    if isinstance(error, OSError):
        if str(error).startswith(_FORBIDDEN):
            return Fault("denied", "403")
        return Fault("passing", type(error).__name__)
    return Fault("refused", type(error).__name__)


def told(address: object, error: StoreError, *, writing: bool = False) -> TumorscanError:
    """The line that a run ends with when `error` was met at `address`."""
    kind, word = error.fault.kind, error.fault.word
    if kind == "credentials":
        return MachineError(
            f"{address}: no valid credentials ({word}): {_how_to_sign_in(address)}, then run the same command"
        )
    if kind == "denied":
        needed = "read, list, write and delete" if writing else "list and read"
        return MachineError(
            f"{address}: access denied ({word}): the credentials in use may not {needed} there"
        )
    if kind == "missing":
        return UsageError(f"{address}: there is no such bucket or folder ({word}): check its spelling")
    if kind == "passing":
        return MachineError(
            f"{address}: the store does not answer, or not whole ({word}): nothing is lost, the same command "
            "continues once it does"
        )
    return MachineError(f"{address}: the store refuses this ({word}): check address and endpoint")


def _how_to_sign_in(address: object) -> str:
    if str(address).startswith(("gs:", "gcs:")):
        return "set GOOGLE_APPLICATION_CREDENTIALS or run `gcloud auth application-default login`"
    return "set AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or what your store's client reads"


def _code(error: BaseException) -> str:
    """The code of an answer of S3 or Google, "" for what is no answer."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code") or "")
    code = getattr(error, "code", None)
    return str(code) if type(error).__name__ == "HttpError" and code else ""
