"""How the command line tells mistakes: one line on stderr, exit code 2, no traceback."""

from __future__ import annotations

from typing import IO, Any

import click

from recdenoise.errors import UserError, unknown_name


class Sentence(click.ClickException):
    """A mistake, told in one line, with exit code 2."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"recdenoise: {' '.join(self.format_message().split())}", err=True)


def usage_sentence(error: click.UsageError) -> click.ClickException:
    """One line in place of click's four; a bare command still gets its help."""
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        return error
    help_of = f" See {error.ctx.command_path} --help." if error.ctx is not None else ""
    message = error.format_message()
    return Sentence(message + ("" if message.endswith((".", "?")) else ".") + help_of)


class Group(click.Group):
    """Turns mistakes into one sentence and exit code 2, and an interrupt into exit code 130."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            raise usage_sentence(error) from error

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            raise UserError(str(unknown_name("command", args[0], known)))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        from data_recipes import RecipeError

        try:
            return super().invoke(ctx)
        except (UserError, RecipeError) as error:
            raise Sentence(str(error)) from error
        except click.UsageError as error:
            raise usage_sentence(error) from error
        except KeyboardInterrupt:
            click.echo("recdenoise: interrupted; what was saved can be continued with --resume.", err=True)
            ctx.exit(130)
