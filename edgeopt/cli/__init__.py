"""The command line: it parses, calls and prints. stdout is the result, stderr the story."""

import errno
import json
import os
import signal
import sys
import time
from types import FrameType
from typing import Any, NoReturn

import typer

from edgeopt import __version__
from edgeopt.cli import (
    bench,
    boards,
    catalogs,
    flow,
    planning,
    project,
    sidebyside,
    studying,
    tuning,
)
from edgeopt.errors import ConfigError, EdgeoptError, Interrupted

app = typer.Typer(
    name="edgeopt",
    help="Give it a model, a board and a budget; get back a verified deployment on that board.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgeopt {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Give it a model, a board and a budget; get back a verified deployment on that board."""


planning.register(app)
studying.register(app)
flow.register(app)
tuning.register(app)
bench.register(app)
sidebyside.register(app)
project.register(app)
app.add_typer(catalogs.targets, name="targets", help="Kinds of device: list, show, probe.")
app.add_typer(catalogs.profiles, name="profiles", help="Trades of size and accuracy: list, show.")
app.add_typer(
    boards.boards, name="board", help="Boards: who, kick; emulated ones: start, stop, list, shell."
)


#: What click raises for an option or a command that it does not know, under any name.
_ClickError: type[Exception] = typer.BadParameter.__mro__[2]
#: The user stops a run with any of these; the last one is a terminal that was closed.
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: The system's refusals that no code can foresee: the disk is full, or not ours to write, or
#: what was named cannot be a file.
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_REFUSALS |= {errno.ENOTDIR, errno.ENAMETOOLONG}
#: The exit code of a shell's command that was ended by Ctrl-C.
_STOPPED = 130

#: Seconds after it was stopped in which a run lets go of its board, however often it is stopped
#: again: interrupted, that would leave a run folder there, and a lease that others wait for.
_LETTING_GO = 5.0

#: When the user stopped this run, by the monotonic clock.
_stopped: list[float] = []


class _Stop(KeyboardInterrupt):
    """The user stopped this run.

    CPython remembers a KeyboardInterrupt that leaves code made from a string, as dataclasses and
    named tuples are while a module is loaded, and ends by that signal whatever exit code follows
    (run_eval_code_obj in Python/pythonrun.c, Py_RunMain in Modules/main.c); of a subclass it
    does not.
    """


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    now = time.monotonic()
    if _stopped and now - _stopped[-1] < _LETTING_GO:
        return
    _stopped.append(now)
    raise _Stop


def main() -> None:
    """Run the CLI; an expected failure prints what, why and fix, and no traceback."""
    for each in _STOPS:
        if signal.getsignal(each) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(each, _interrupt)
    # Read when numpy is loaded. Weights and samples run side by side: threads inside their small
    # products would wait for one another, and they wait by spinning.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    status = _run()
    if status == _STOPPED:
        _fail(Interrupted("interrupted", fix="run the same command again: it goes on from here"))
    sys.exit(status)


def _run() -> int | None:
    """Run the command; its exit code, 130 when it was stopped."""
    try:
        # It returns the code of an Exit, and 130 instead of raising KeyboardInterrupt.
        status: int | None = app(standalone_mode=False)
    except KeyboardInterrupt:
        return _STOPPED
    except EdgeoptError as error:
        _fail(error)
    except _ClickError as error:
        _refuse_usage(error)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        _fail(
            ConfigError(
                f"cannot read or write {error.filename or 'the output'}",
                why=error.strerror or str(error),
                fix="check its permissions, and make room: edgeopt cache --clear",
            )
        )
    except Exception:
        # Compiled modules make errors of their own of a KeyboardInterrupt that meets them.
        if not _stopped:
            raise
        return _STOPPED
    return status


def _refuse_usage(error: Any) -> NoReturn:
    """Let click show its own error on stderr, and say the same under --json."""
    error.show()
    usage = ConfigError(error.format_message(), fix="see --help")
    _print_document(usage)
    sys.exit(usage.exit_code)


def _fail(error: EdgeoptError) -> NoReturn:
    # What is left to do is to say so: a second Ctrl-C must not end it with another status.
    for each in _STOPS:
        signal.signal(each, signal.SIG_IGN)
    typer.echo(f"error: {error}", err=True)
    _print_document(error)
    sys.exit(error.exit_code)


def _print_document(error: EdgeoptError) -> None:
    if "--json" not in sys.argv[1:]:
        return
    document = {
        "schema_version": 1,
        "error": {
            "code": error.exit_code,
            "what": error.what,
            "why": error.why,
            "fix": error.fix,
            "retryable": error.exit_code in {6, 8, 12},
        },
    }
    typer.echo(json.dumps(document, indent=1))
