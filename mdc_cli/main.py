"""The command `mdc`."""

from __future__ import annotations

from typing import Annotated

import typer

from mdc_cli import local, remote, resources, service
from mdc_core import __version__
from mdc_core.system.command_group import CommandGroup

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _version(is_requested: bool) -> None:
    if is_requested:
        print(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Condense a data set once; deliver any size of it to any device.

    Try `mdc condense digits --ipc 10`, or `mdc up` and then `mdc submit digits --watch`.
    """


for module in (local, service, remote, resources):
    module.register(app)


if __name__ == "__main__":
    app()
