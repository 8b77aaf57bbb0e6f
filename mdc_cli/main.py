"""`mdc`: every command, and what an error looks like."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mdc_cli import holdings, local, remote, service
from mdc_cli.output import fail
from mdc_core import __version__
from mdc_core.errors import MdcError


class _Commands(TyperGroup):
    """Shows our own errors as one line instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error that has a reason ends with status 1, Ctrl-C with 130."""
        try:
            return super().invoke(ctx)
        except MdcError as error:
            fail(str(error))
        except BrokenPipeError:  # whoever read our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:
            fail(str(error))
        except KeyboardInterrupt:
            sys.exit(130)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Condense a data set once, deliver any size of it to any device.

    Try `mdc condense digits --ipc 10`, or `mdc up` and then `mdc submit digits --watch`.
    """


for module in (local, service, remote, holdings):
    module.register(app)


if __name__ == "__main__":
    app()
