"""How a step says why it stopped: one exception, which `__main__` turns into termination message and exit status."""

from __future__ import annotations

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.reasons.steps import StepReason


class StepFailed(Exception):
    """A step can't go on: a reason of the API, which has its exit code, and one sentence that says what to change.

    The message holds no dataset rows, credentials or log lines: it ends up in the status of the FineTuneJob.
    """

    def __init__(self, reason: StepReason, message: str) -> None:
        message = writable(message)
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message

    @property
    def exit_code(self) -> ExitCode:
        return self.reason.exit_code


def writable(text: str) -> str:
    """The text with halves of surrogate pairs spelled out: names of files and columns may hold some, a report or log none."""
    return text.encode("utf-8", "backslashreplace").decode()


def store_unavailable(where: str, error: BaseException) -> StepFailed:
    """The artifact store did not answer or refused to: another attempt may succeed."""
    return StepFailed(StepReason.StoreUnavailable, f"the artifact store failed at {where}: {first_line(error)}")


def first_line(error: BaseException, limit: int = 300) -> str:
    """The exception as one line of at most `limit` characters, its type where it says nothing."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def bad_config(message: str) -> StepFailed:
    """A setting, or settings that don't go together: only an edit of the job helps."""
    return StepFailed(StepReason.InvalidSpec, message)
