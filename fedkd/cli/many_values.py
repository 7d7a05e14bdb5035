"""A command of which one option takes several values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from typer.core import TyperCommand

if TYPE_CHECKING:
    import click

TEACHERS = "--teachers"


class ManyTeachers(TyperCommand):
    """A command whose ``--teachers`` takes all values up to the next option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line."""
        return super().parse_args(ctx, repeat_option(args, TEACHERS))


def repeat_option(arguments: Sequence[str], option: str) -> list[str]:
    """Repeat an option before each of its values, as click expects.

    ``--teachers a b --arch cnn`` becomes ``--teachers a --teachers b --arch cnn``. The values end
    at the next argument that begins with a hyphen.
    """
    repeated: list[str] = []
    first = following = False
    for argument in arguments:
        if argument.startswith("-"):
            first = argument == option
            following = first or argument.startswith(f"{option}=")
            repeated.append(argument)
        else:
            repeated += [option, argument] if following and not first else [argument]
            first = False
    return repeated
