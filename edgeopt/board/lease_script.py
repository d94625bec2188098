"""The board's side of a lease: constant scripts for any POSIX shell, busybox ash included.

The lease is one file of one line below the deploy folder:

    TOKEN BOOT-ID EXPIRY FENCE SINCE SESSION OWNER

EXPIRY and SINCE are seconds of the board's uptime. FENCE is a number that only grows, from the
file `fence` beside it. SESSION is the process of the SSH server that serves the holder, as
PID:START, or "-"; it ends when the holder's connection does. OWNER is JSON.
"""

from pathlib import PurePosixPath

from edgeopt.board import Board, Completed
from edgeopt.errors import BoardIncompatible

#: EX_TEMPFAIL of sysexits.h: somebody else holds it.
BUSY = 75
#: Seconds that a holder whose connection was lost has to come back, before others may take over.
GRACE = 30
#: What the commands of a holder have in their environment, whatever group or session they join:
#: TOKEN@FOLDER@, for a machine may be several boards, by their folders.
MARK = "EDGEOPT_LEASE"
_PLACE = "case $1 in /*) place=$1 ;; *) place=$PWD/$1 ;; esac\n"

#: Expects the folder in $1. Fields of /proc/PID/stat behind the name count from 3 (proc(5)).
_LOOK = """\
cd "$1" || exit 1
read -r boot </proc/sys/kernel/random/boot_id
read -r now rest </proc/uptime
now=${now%%.*}
whole() { case $1 in ''|*[!0-9]*|????????????????*) return 1 ;; esac }
look() {
  holder= since= expires=0 fence=0 taken=0 session=- owner=
  [ -e lease ] || [ -L lease ] || return 0
  { read -r holder since expires fence taken session owner <lease; } 2>/dev/null || :
  # A line that no one of us has written, or that a power cut tore, holds nothing.
  case $holder in ''|*[!0-9a-f]*) holder=torn expires=0 ;; esac
  whole "$expires" || expires=0
  whole "$fence" || fence=0
  whole "$taken" || taken=0
  case $session in *:*[!0-9]*|*[!0-9:]*|'') session=- ;; esac
}
alive() {
  { read -r stat <"/proc/${1%%:*}/stat"; } 2>/dev/null || return 1
  set -- "$1" ${stat##*) }
  [ "${1#*:}" = "${21}" ]
}
# The SSH server's process that serves us: remote.py tells where to begin.
mine=-
find_session() {
  at=${EDGEOPT_CONNECTION:-}
  for step in 1 2 3 4; do
    case $at in ''|0|1|*[!0-9]*) return 0 ;; esac
    { read -r stat <"/proc/$at/stat"; } 2>/dev/null || return 0
    name=${stat#*\\(} name=${name%)*}
    set -- ${stat##*) }
    case $name in sshd*|dropbear*) mine=$at:${20}; return 0 ;; esac
    at=$2
  done
}
"""

#: When the lease that look() found may be taken: before its expiry, if the holder's connection
#: is gone; since when is written down by the first who notices.
_ENDS = f"""\
ends() {{
  ends=$expires
  [ "$since" = "$boot" ] || ends=0
  [ "$session" != - ] && [ "$ends" != 0 ] && ! alive "$session" || return 0
  [ -e "gone.$holder" ] || echo "$now" >"gone.$holder" || return 0
  read -r gone <"gone.$holder" || gone=$now
  whole "$gone" || gone=$now
  [ "$((gone + {GRACE}))" -ge "$ends" ] || ends=$((gone + {GRACE}))
}}
left() {{ echo "$((ends > now ? ends - now : 0)) $holder $fence $((now - taken)) $owner"; }}
"""

#: End what a holder left running there: its commands, and its connection.
_EVICT = f"""\
evict() {{
  for again in 1 2 3 4 5; do
    found=
    for each in $(grep -lsF "{MARK}=$1@" /proc/[0-9]*/environ 2>/dev/null); do
      found=yes each=${{each#/proc/}}
      kill -s KILL "${{each%/environ}}" 2>/dev/null || :
    done
    [ "$found" ] || break
    # One that is just being started is seen a moment later.
    sleep 1
  done
  [ "$2" = - ] || [ "$2" = "$mine" ] || ! alive "$2" || kill -s KILL "${{2%%:*}}" 2>/dev/null || :
}}
"""

#: Arguments: folder, token, seconds, and the token of a holder that is to lose it in any case (it
#: is known to be dead, or was told to go), or nothing; our own owner line on stdin. Those that find
#: the same stale lease take turns, and look again when it is their turn. A turn is a folder named
#: after the lease with its owner in it, which appears by one rename, and not over another one. It
#: is not removed when its owner has died, for two could do so: the turn after it has a name of
#: its own, PLACE.PID. Prints our fence.
TAKE = (
    'umask 077\nmkdir -p "$1"\n'
    + _LOOK
    + _ENDS
    + _EVICT
    + """\
turn() {
  place=$1
  { read -r stat <"/proc/$$/stat"; } 2>/dev/null || return 1
  set -- "$2" ${stat##*) }
  { mkdir -p "draft.$1" && echo "$boot $$:${21}" >"draft.$1/by"; } 2>/dev/null || return 1
  until mv -T "draft.$1" "$place" 2>/dev/null; do
    { read -r when by <"$place/by"; } 2>/dev/null || by=
    case $by in ''|*[!0-9:]*) false ;; esac && { [ "$when" != "$boot" ] || ! alive "$by"; } || {
      rm -rf "draft.$1"
      return 1
    }
    place=$place.${by%%:*}
  done
}
# Be the first where there is none. Making a folder is as exclusive as a hard link, which some
# file systems (FAT) do not have.
first() {
  if ln "lease.$2" "link.$2" 2>/dev/null; then
    rm -f "link.$2"
    ln "lease.$2" lease 2>/dev/null
    return
  fi
  turn turn "$2" || return 1
  [ ! -e lease ] && mv "lease.$2" lease && echo >"lease.$2"
  outcome=$?
  rm -rf turn turn.*
  return "$outcome"
}
number() {
  last=0
  [ ! -e fence ] || read -r last <fence || :
  whole "$last" || last=0
  [ "$last" -ge "$fence" ] || last=$fence
  fence=$((last + 1))
  echo "$fence" >"fence.$2" && mv -f "fence.$2" fence || return 1
  # Not into lease.$2, which may be the lease itself by another name.
  echo "$2 $boot $((now + $3)) $fence $now $mine $us" >"next.$2" && mv -f "next.$2" lease
}
read -r us
find_session
echo "$2 $boot $((now + $3)) 0 $now $mine $us" >"lease.$2" || exit 1
got= holder= ends=0 fence=0 taken=0 owner=
for try in 1 2 3; do
  if first "$@"; then
    fence=0
    number "$@" || { rm -f lease "lease.$2" "next.$2"; exit 1; }
    got=yes
    break
  fi
  look
  # Released in between: try again to be the first.
  [ "$holder" ] || continue
  ends
  [ "$now" -ge "$ends" ] || [ "$holder" = "$4" ] || break
  stale=$holder
  turn "stale.$stale" "$2" || break
  look
  if [ "$holder" = "$stale" ]; then
    left=$session
    # Whose number cannot be written keeps the turn to the end: a full disk is no one's turn.
    number "$@" || break
    got=yes
    evict "$stale" "$left"
    rm -f "gone.$stale"
  fi
  rm -rf "stale.$stale" "stale.$stale".*
  break
done
rm -f "lease.$2"
if [ "$got" ]; then echo "$fence"; exit 0; fi
left
exit 75
"""
)

#: Whether the lease is still ours: two seconds before its end it is not, so that no one else can
#: take it between the look and what follows. It lasts at least $3 seconds more from then on, as
#: far as the disk has room to say so; a connection that was opened again is noted.
_OURS = (
    "umask 077\n"
    + _LOOK
    + """\
ours() {
  look
  [ "$holder" = "$2" ] && [ "$since" = "$boot" ] && [ "$now" -lt "$((expires - 2))" ]
}
extend() {
  find_session
  ends=$((now + $3))
  [ "$ends" -gt "$expires" ] || ends=$expires
  if [ "$ends" != "$expires" ] || [ "$session" != "$mine" ]; then
    { echo "$2 $boot $ends $fence $taken $mine $owner" >"lease.$2.$$" &&
      mv -f "lease.$2.$$" lease; } 2>/dev/null || rm -f "lease.$2.$$"
  fi
  [ ! -e "gone.$2" ] || rm -f "gone.$2"
}
"""
)

#: Arguments: folder, token, seconds. Confirms, and extends.
CONFIRM = (
    _OURS
    + _ENDS
    + """\
if ! ours "$@"; then
  ends
  left
  exit 75
fi
extend "$@"
"""
)

#: Arguments: folder, token, seconds, then a command, which runs where and as it would without this,
#: if the lease is ours. What says that it did not is the token, alone on a line of stderr.
FENCED = (
    "(\n"
    + CONFIRM
    + f""") || {{ echo "$2" >&2; exit 75; }}
case $1 in /*) {MARK}=$2@$1@ ;; *) {MARK}=$2@$PWD/$1@ ;; esac
export {MARK}
shift 3
exec "$@"
"""
)

RELEASE = _OURS + 'if ours "$@"; then rm -f lease "gone.$2"; fi\n'

#: Argument: folder. Prints who holds it, as TAKE does, and every command of a lease on the board.
WHO = (
    '[ -d "$1" ] || exit 0\n'
    + _PLACE
    + _LOOK
    + _ENDS
    + f"""\
look
if [ "$holder" ]; then ends 2>/dev/null; echo "holder $(left)"; fi
[ ! -e fence ] || read -r fence <fence
echo "fence $fence"
for each in $(grep -lsF "@$place@" /proc/[0-9]*/environ 2>/dev/null); do
  each=${{each%/environ}}
  token=$(tr '\\0' '\\n' 2>/dev/null <"$each/environ" | sed -n 's/^{MARK}=//p')
  words=$(tr '\\0\\n' '  ' 2>/dev/null <"$each/cmdline" | head -c 300)
  [ ! "$token" ] || echo "process ${{each#/proc/}} ${{token%%@*}} $words"
done
"""
)

#: Argument: folder. Ends the commands of every lease but the one that is held now; prints them.
STRAYS = (
    '[ -d "$1" ] || exit 0\n'
    + _PLACE
    + _LOOK
    + f"""\
look
[ "$since" = "$boot" ] && [ "$now" -lt "$expires" ] || holder=none
for each in $(grep -lsF "@$place@" /proc/[0-9]*/environ 2>/dev/null); do
  grep -qsF "{MARK}=$holder@" "$each" && continue
  each=${{each#/proc/}}
  kill -s KILL "${{each%/environ}}" 2>/dev/null && echo "${{each%/environ}}"
done
exit 0
"""
)


def call_lease(
    board: Board,
    script: str,
    root: PurePosixPath,
    *arguments: str,
    stdin: bytes = b"",
    timeout: float,
) -> Completed:
    """Run one of the scripts; any other status than 0 and BUSY is a BoardIncompatible."""
    done = board.run(lease_argv(script, root, *arguments), stdin=stdin, timeout=timeout)
    if done.status not in (0, BUSY):
        raise BoardIncompatible(
            f"{board.name}: cannot keep a lease in {root}",
            why=done.stderr.decode(errors="replace").strip() or f"status {done.status}",
            fix="check that this user may write there, or choose another deploy folder",
        )
    return done


def lease_argv(script: str, root: PurePosixPath, *arguments: str) -> list[str]:
    """Return the command that runs a script for the lease below root."""
    # Commands start in the home folder, and a quoted "~" means nothing to a shell.
    return ["sh", "-c", script, "sh", str(root).removeprefix("~/"), *arguments]
