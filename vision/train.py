"""``torchrun --nproc-per-node 4 -m vision.train ...``: ``recdenoise vision train`` in several processes."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import click

from recdenoise.errors import UserError
from recdenoise.mistakes import Sentence, usage_sentence
from vision.cli import prepare_process, train

PATIENCE_SECONDS = 3.0
"""A process that fails waits so long before it says why: where the main one fails too, its word is enough."""


def main(words: Sequence[str] | None = None) -> int:
    """Train in the processes that torchrun started, or in this one where there is no other; returns the exit code.

    The main process shows progress, writes the files and explains mistakes; the launcher ends the others when it fails.
    """
    prepare_process()
    from recdenoise.parallel import Processes, from_environment

    parallel = from_environment()
    try:
        code = _train(sys.argv[1:] if words is None else list(words), parallel)
    except click.exceptions.Abort:  # what click makes of an interrupt
        if parallel.main:
            click.echo("recdenoise: interrupted; what was saved can be continued with --resume.", err=True)
        return 130
    except BaseException as error:
        if not parallel.main:
            time.sleep(PATIENCE_SECONDS)
        if not isinstance(error, Sentence):
            raise
        error.show()
        return error.exit_code
    if isinstance(parallel, Processes):
        parallel.stop()
    return code


def _train(words: list[str], parallel: object) -> int:
    """Run the command, its mistakes as sentences."""
    from data_recipes import RecipeError

    try:
        return int(train.main(words, prog_name="python -m vision.train", standalone_mode=False, obj=parallel) or 0)
    except (UserError, RecipeError) as error:
        raise Sentence(str(error)) from error
    except click.UsageError as error:
        raise usage_sentence(error) from error


if __name__ == "__main__":
    sys.exit(main())
