"""What can go wrong, each with a message for the person who typed the command.

LocalclusterError
├── ProcessFailed    a part ended or did not become ready; ends with its log's last lines
├── BuildFailed      a program could not be built; ends with what the compiler said
├── CommandFailed    a tool of the machine refused (ip, nft, openssl, apt-get, ctr)
└── NotOurs          a directory or network link belongs to somebody else
"""


class LocalclusterError(RuntimeError):
    """Base of all; `python -m localcluster` prints it as one message and exits with 1."""


class ProcessFailed(LocalclusterError):
    """A part ended or did not become ready."""


class BuildFailed(LocalclusterError):
    """A program could not be built."""


class CommandFailed(LocalclusterError):
    """A tool of the machine refused."""


class NotOurs(LocalclusterError):
    """Something with our name belongs to somebody else, so it is neither used nor deleted."""
