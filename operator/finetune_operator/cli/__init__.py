"""The command line: `finetune run --local FILE`, `finetune render FILE`."""

from finetune_operator.cli.commands import app

__all__ = ["app"]
