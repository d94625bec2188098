"""Prove that a board's kernel kills what exceeds a memory limit, instead of believing a file.

Raspberry Pi OS ships with the memory controller switched off (raspberrypi/linux, issue 1950), and
a limit that is written where no controller is does nothing. So a process asks for more than it
is given, in a control group (cgroup v2) of its own, and must be killed.
"""

from typing import Literal, cast, get_args

from edgeopt.board import Board
from edgeopt.board.script import run_script

#: enforced: a process beyond its limit was killed. ignored: it was not. forbidden: this account
#: may make no group with a limit. absent: there is no memory controller of cgroup v2.
MemoryLimits = Literal["enforced", "ignored", "forbidden", "absent"]

#: Functions for scripts: find_group BASE NAME makes a control group whose memory can be limited and
#: names it in $group, below the one that we are in or beside it (a group that hands on controllers
#: holds no process); BASE is where cgroup v2 is mounted, "" looks for it. within COMMAND... runs a
#: command there.
GROUP = r"""
find_group() {
    base=$1 group= state=absent
    if [ -z "$base" ]; then
        while read -r device point kind rest; do
            if [ "$kind" = cgroup2 ]; then base=$point; break; fi
        done < /proc/mounts
    fi
    own=$(sed -n 's/^0:://p' /proc/self/cgroup 2>/dev/null || true)
    if [ -z "$base" ] || ! grep -qsw memory "$base/cgroup.controllers"; then return 1; fi
    state=forbidden
    for place in "$base${own%/}" "$base${own%/*}" "$base"; do
        group=$place/$2
        mkdir -p "$group" 2>/dev/null || continue
        if [ -w "$group/memory.max" ] && [ -w "$group/cgroup.procs" ]; then return 0; fi
        rmdir "$group" 2>/dev/null || true
    done
    return 1
}
limit_group() {
    echo "$1" > "$group/memory.max"
    if [ -e "$group/memory.swap.max" ]; then echo 0 > "$group/memory.swap.max"; fi
}
within() {
    sh -c 'echo $$ > "$1/cgroup.procs" && shift && exec "$@"' sh "$group" "$@"
}
killed() { sed -n 's/^oom_kill //p' "$group/memory.events" 2>/dev/null | tail -n 1; }
"""

# Parameter: where cgroup v2 is mounted, or "". A group of an earlier run is used again.
_CANARY = (
    GROUP
    + r"""
if ! find_group "$1" edgeopt-canary; then echo "$state"; exit 0; fi
limit_group 8388608
before=$(killed)
within sh -c 'head -c 67108864 /dev/zero | tail -c 33554432' > /dev/null 2>&1 || true
after=$(killed)
rmdir "$group" 2>/dev/null || true
if [ "${after:-0}" -gt "${before:-0}" ]; then echo enforced; else echo ignored; fi
"""
)


def try_memory_limit(board: Board, *, mounted: str = "") -> MemoryLimits:
    """Let a process of the board exceed 8 MiB in a group of its own, and see what becomes of it.

    mounted: where cgroup v2 is, if not where /proc/mounts says. The group is removed again.
    """
    lines = run_script(board, _CANARY, (mounted,), doing="try a memory limit")
    word = lines[-1] if lines else ""
    return cast(MemoryLimits, word) if word in get_args(MemoryLimits) else "absent"
