"""The one exception that programs show without a traceback, and how they show it."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn


class InputError(ValueError):
    """The user's input is at fault; the message names the culprit and the fix."""


class ArgumentParser(argparse.ArgumentParser):
    """Raises InputError where argparse's own would print: of many processes one shall tell."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def run(main: Callable[[], int | None]) -> None:
    """Run a program's main function and leave with its exit code.

    An InputError becomes one line on stderr and exit code 2, as argparse does for a bad option;
    Ctrl-C becomes exit code 130. Anything else is a bug and keeps its traceback.
    """
    try:
        code = main()
    except InputError as error:
        # An error raised in a DataLoader worker arrives with the worker's traceback before it.
        print(f"error: {str(error).rpartition('InputError: ')[2].strip()}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    if "WORLD_SIZE" in os.environ:
        # Under torchrun all is done here, but gloo's threads can abort the interpreter's own end
        # (pytorch/pytorch#179291), which torchrun would take for a failed run.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
    sys.exit(code)
