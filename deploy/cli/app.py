"""The program ``deploy``: its commands, the flags before them, and what it says of a misspelt word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

from deploy import __version__
from deploy.cli import build, cache, doctor, init, inspect, profile, report, support, targets, verify
from deploy.cli import run as run_bundle
from deploy.cli.options import Loudness, Quiet, Verbose
from deploy.errors import UsageError

if TYPE_CHECKING:
    from typer._click import Context, Parameter


def _flags_without_type(params: list[Parameter]) -> list[Parameter]:
    """Help says ``--json``, not ``--json <bool>``."""
    for param in params:
        if isinstance(param, TyperOption) and (param.is_flag or param.count):
            param.metavar = ""
    return params


class Command(TyperCommand):
    """A command whose flags stand without a type in its help."""

    def get_params(self, ctx: Context) -> list[Parameter]:
        return _flags_without_type(super().get_params(ctx))


class Group(TyperGroup):
    """The same for what holds commands."""

    def get_params(self, ctx: Context) -> list[Parameter]:
        return _flags_without_type(super().get_params(ctx))


app = typer.Typer(
    name="deploy",
    cls=Group,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("init", cls=Command)(init.init)
app.command("build", cls=Command)(build.build)
app.command("inspect", cls=Command)(inspect.inspect)
app.command("report", cls=Command)(report.report)
app.command("run", cls=Command)(run_bundle.run)
app.command("verify", cls=Command)(verify.verify)
app.command("targets", cls=Command)(targets.targets)
app.command("support", cls=Command)(support.support)
app.command("profile", cls=Command)(profile.profile)
app.command("doctor", cls=Command)(doctor.doctor)
app.add_typer(cache.app, name="cache", cls=Group)


def run(words: list[str]) -> int:
    """Run one command line; returns the exit code. Raises DeployError, of a misspelt one too."""
    try:
        code = get_command(app).main(args=words, prog_name="deploy", standalone_mode=False)
    except typer.TyperException as e:
        raise _usage_error(e) from e
    return code if isinstance(code, int) else 0


def _usage_error(error: typer.TyperException) -> UsageError:
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)  # typer's own classes for these are private
    command = getattr(context, "command_path", "deploy")
    hint = f"`{command} --help` shows what it takes"
    message, _, nearest = message.partition(". Did you mean ")
    possible = getattr(error, "possibilities", None)
    if possible:
        message, nearest = getattr(error, "message", message), " or ".join(possible) + "?"
    message = (message[:1].lower() + message[1:]).replace("Value error, ", "")
    return UsageError(message, hint=f"did you mean {nearest.rstrip('?')}? {hint}" if nearest else hint)


@app.callback(
    invoke_without_command=True,
    help="A trained model in, the smallest and fastest artifact each device can run out, proved on the host.",
    epilog="Start with: deploy init model.onnx --data calib.npz",
)
def _before(
    context: typer.Context,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    context.obj = Loudness(verbose, quiet)
    if version:
        typer.echo(f"deploy {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
