"""How the commands of this project report errors: one line instead of a traceback. Needs typer."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from mdc_core.errors import MdcError

INTERRUPTED = 130


class CommandGroup(TyperGroup):
    """A group of commands that prints expected errors as one line and exits with status 1; Ctrl-C exits with 130."""

    def reason(self, error: Exception) -> str | None:
        """What to tell the user about an error; None if it is a bug, which keeps its traceback."""
        return str(error) if isinstance(error, MdcError | OSError) else None

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader of our output has closed it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if (reason := self.reason(error)) is None:
                raise
        typer.secho(f"Error: {reason}", fg="red", err=True)
        raise typer.Exit(1)
