"""The text that runs one command on a board under supervision, whatever its login shell is.

sshd hands the request to the user's login shell, which may be fish or csh and may print a banner.
It gets one constant that they all read alike; that starts sh, which reads one line from stdin and
evaluates it. The bytes that follow on stdin are the command's own stdin. The end of stdin means
that the client is gone, or has lost patience: the command's whole process group is then killed.
busybox ash, dash and bash run it; nothing else is needed on the board.
"""

import shlex
from collections.abc import Sequence

#: The SSH request. No newline, backslash or exclamation mark: csh would read them its own way.
LOGIN = "exec sh -c 'IFS= read -r line && eval \"$line\"'"

_SUPERVISE = "; ".join(
    [
        # Whatever the login printed comes before the marker, on either stream.
        "printf '%s\\n' \"$mark\"",
        "printf '%s\\n' \"$mark\" >&2",
        # A lease notes whose connection it is.
        "EDGEOPT_CONNECTION=$PPID; export EDGEOPT_CONNECTION",
        "exec 3<&0 4</dev/null </dev/null",
        # The command's stdin ends while ours stays open: it has to go through a file.
        'if [ "$size" != 0 ]'
        "; then file=$(umask 077; mktemp ./.edgeopt.XXXXXX 2>/dev/null || mktemp) || exit 125"
        '; head -c "$size" <&3 >"$file"'
        '; exec 4<"$file"'
        '; got=$(wc -c <"$file")'
        '; rm -f "$file"'
        # Cut short: the client went away before the command began, or the disk is full.
        '; [ "$got" -eq "$size" ] || { echo "stdin: $got of $size bytes" >&2; exit 125; }'
        "; fi",
        'if command -v setsid >/dev/null; then setsid "$@" <&4 3<&- 4<&- &'
        ' else "$@" <&4 3<&- 4<&- & fi',
        "child=$!",
        # busybox's timeout reports 143 where coreutils' reports 124; before 1.30 its usage was
        # another, and some boards have none: then only the end of stdin counts.
        '{ timeout "$limit" cat <&3'
        "; case $? in 0|124|143) ;; *) cat <&3 ;; esac"
        '; kill -s KILL -- "-$child" "$child"'
        "; } >/dev/null 2>&1 4<&- & watch=$!",
        # Shells announce a killed child there, in words of their own.
        "exec 2>/dev/null 3<&- 4<&-",
        'wait "$child"',
        "status=$?",
        'kill -s KILL "$watch"',
        # What the command left behind in its group would disturb the next one.
        'kill -s KILL -- "-$child"',
        'exit "$status"',
    ]
)


def supervised(argv: Sequence[str], *, mark: str, size: int, limit: int) -> bytes:
    """Write the line that runs argv with size bytes of stdin, for at most limit seconds.

    The limit is the board's own, for the case that the client vanishes without a trace.
    """
    words = " ".join(map(_quoted, argv))
    newline = "nl=$(printf '\\nx'); nl=${nl%x}; " if "\n" in words or '"$nl"' in words else ""
    line = f"mark={mark}; size={size}; limit={limit}; {newline}set -- {words}; {_SUPERVISE}\n"
    return line.encode(errors="surrogateescape")


def _quoted(word: str) -> str:
    """Quote one word for sh without a newline in it, since a line is all that is read."""
    if "\0" in word:
        raise ValueError("an argument cannot hold a zero byte")
    return '"$nl"'.join(map(shlex.quote, word.split("\n"))) if word else "''"
