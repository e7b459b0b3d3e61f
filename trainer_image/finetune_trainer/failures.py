"""How a step says why it stopped: one exception, which `__main__` turns into termination message and exit status."""

from __future__ import annotations

from finetune_trainer.contract.reports import ExitCode


class StepFailed(Exception):
    """A step can't go on. `reason` (CamelCase) is part of the API; `message` says in one sentence what to change.

    The message holds no dataset rows, credentials or log lines: it ends up in the status of the FineTuneJob.
    """

    def __init__(self, exit_code: ExitCode, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.exit_code = exit_code
        self.reason = reason
        self.message = message


def store_unavailable(where: str, error: BaseException) -> StepFailed:
    """The artifact store did not answer or refused to: another attempt may succeed."""
    return StepFailed(
        ExitCode.STORE_UNAVAILABLE, "StoreUnavailable", f"the artifact store failed at {where}: {first_line(error)}"
    )


def first_line(error: BaseException, limit: int = 300) -> str:
    """The exception as one line of at most `limit` characters, its type where it says nothing."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def bad_config(message: str) -> StepFailed:
    """A setting, or settings that don't go together: only an edit of the job helps."""
    return StepFailed(ExitCode.BAD_CONFIG, "BadConfig", message)
