"""The command line's own function: it runs a verb and turns what goes wrong into one sentence and an exit code."""

import errno
from collections.abc import Sequence

import typer

from segsweep.cli.app import app
from segsweep.errors import SegsweepError
from segsweep.terminal import complain

# Faults of the machine that its user can put right; any other OSError is our own mistake.
USABLE_ERRNOS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` unless given) and return the exit code.

    0 done, 1 `check` found errors, 2 something that a user can put right (one sentence on stderr), 130 interrupted.
    """
    try:
        code = app(None if argv is None else list(argv), prog_name="segsweep", standalone_mode=False) or 0
    except SegsweepError as error:
        complain(str(error))
        return 2
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        if error.format_message():  # empty when the help was shown instead
            where = context.command_path if context else "segsweep"
            complain(f"{error.format_message().rstrip('.')}; see `{where} --help`")
        return 2
    except OSError as error:
        if error.errno not in USABLE_ERRNOS:
            raise
        complain(f"{error.filename or 'this machine'}: {error.strerror}")
        return 2
    except KeyboardInterrupt:
        code = 130
    if code == 130:
        complain("interrupted; give the same command again to go on")
    return int(code)
