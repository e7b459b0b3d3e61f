"""What can go wrong between the operator and the API server, by what follows from it.

ClusterError
├── NotFound       the object, or the kind, is not there
├── Gone           a watch can't go on from its version: list anew (410)
├── Conflict       somebody else was faster, or the name belongs to another owner: look again
│   ├── AlreadyExists
│   └── NameTaken   what we must make exists and is another's: somebody must remove it, unless it is being collected
├── Refused        the server says no and will go on saying no: the user or an administrator must change something
│   ├── Invalid    the object breaks the schema or a rule (400, 422)
│   └── Forbidden  a quota, Pod Security or our own Role is in the way (401, 403)
└── Unavailable    no answer, or "not now" (429, 5xx): try again later
InvalidSpec        a spec that this version can't read, though the API server let it in
NotLeader          another replica acts now
NotPossible        what a person asked the command line for
"""

from __future__ import annotations


class ClusterError(Exception):
    """The API server's answer, with its own sentence."""


class NotFound(ClusterError):
    """404."""


class Gone(ClusterError):
    """410."""


class Conflict(ClusterError):
    """409."""


class AlreadyExists(Conflict):
    """409 with reason AlreadyExists."""


class NameTaken(Conflict):
    """An object of that name belongs to another owner."""


class Refused(ClusterError):
    """The same request will be refused again until somebody changes something."""


class Invalid(Refused):
    """400 or 422."""


class Forbidden(Refused):
    """401 or 403."""


class Unavailable(ClusterError):
    """Worth another try; `retry_after` is the server's own wish in seconds, where it has one."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class InvalidSpec(Exception):
    """A spec that can't be read: the message names the field."""


class NotLeader(Exception):
    """The lease ran out: nothing may be written any more."""


def of_answer(code: int, reason: str | None, message: str, retry_after: float | None) -> ClusterError:
    """The error that an HTTP status and the server's own reason stand for."""
    if reason == "AlreadyExists":
        return AlreadyExists(message)
    kinds = {400: Invalid, 401: Forbidden, 403: Forbidden, 404: NotFound, 409: Conflict, 410: Gone, 422: Invalid}
    kind = kinds.get(code)
    return Unavailable(message, retry_after) if kind is None else kind(message)


class NotPossible(Exception):
    """What a person asked for can't be done; the message says why, and what can."""
