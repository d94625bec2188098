"""Remove an application from a board, with all of its releases."""

from pathlib import PurePosixPath

from edgeopt.board import Board
from edgeopt.board.script import run_script
from edgeopt.deploy.status import place_from, read_status
from edgeopt.deploy.switch import collect_garbage

# Parameters: root and application. By one rename first, so that no half of it is left to be run.
_REMOVE = r"""
home=$1/apps/$2 gone=$1/apps/.tmp-gone-$2
if [ -L "$home" ]; then fail "$home is a symbolic link"; fi
rm -rf "$gone"
if [ -d "$home" ]; then mv -T "$home" "$gone"; flush "$1/apps"; rm -rf "$gone"; fi
"""


def remove_application(board: Board, app: str, *, root: PurePosixPath) -> None:
    """Remove every release of an application, the current one too, and what only they needed."""
    place = place_from(read_status(board, app, root=root))
    run_script(board, _REMOVE, (str(place.root), app), doing=f"remove {app}")
    collect_garbage(board, place)
