"""How far a deploy has come, written down on the board: any host reads it, and goes on from there.

`state` names the step that changes something now. A step that ends replaces it or removes it, so
that what lies there after a crash is the step that was cut off. A release that became current and
was not seen to run since, or was found damaged, has an `unproven` beside its files.
"""

from typing import Literal

#: What a board is in the middle of, or was when it was left. empty: nothing was deployed. ready: a
#: release is current that was seen to run. broken: `current` points to no whole release.
State = Literal[
    "empty",
    "ready",
    "staging",
    "trying",
    "switching",
    "checking",
    "restoring",
    "collecting",
    "broken",
]

#: The first word of `state`, and what it means.
STEPS: dict[str, State] = {
    "stage": "staging",
    "try": "trying",
    "switch": "switching",
    "restore": "restoring",
    "collect": "collecting",
}

#: What each means where nobody is at work, and what ends it; {} is the digest that it speaks of.
MEANINGS: dict[State, str] = {
    "empty": "nothing was deployed",
    "ready": "",
    "staging": "the files of {} are not all there: its next deploy sends the rest",
    "trying": "{} is complete and not kept yet: its next deploy tries it again",
    "switching": "{} is becoming current: the next command that changes something finishes it",
    "checking": "{} became current and was not seen to run since: deploy it again, or roll back",
    "restoring": "going back to {}: the next command that changes something finishes it",
    "collecting": "old releases are being removed: the next deploy removes the rest",
    "broken": "what is current is not whole: deploy again",
}

# Positional parameters of every script: root, application, then its own.
COMMON = r"""
root=$1 app=$2; shift 2
home=$root/apps/$app

current() {
    if [ ! -L "$home/$1" ]; then
        if [ -e "$home/$1" ]; then fail "$home/$1 is not a link"; fi
        return 0
    fi
    target=$(readlink "$home/$1")
    case $target in
        releases/*/*|releases/.*|releases/) fail "$home/$1 points to $target" ;;
        releases/*) echo "${target#releases/}" ;;
        *) fail "$home/$1 points to $target" ;;
    esac
}

point() {
    rm -f "$home/.tmp-$1-$$"
    ln -s "releases/$2" "$home/.tmp-$1-$$"
    mv -T "$home/.tmp-$1-$$" "$home/$1"
}

# On a full disk nothing is noted, and nothing of it stays.
note() {
    printf '%s\n' "$@" > "$home/.tmp-state-$$" && flush "$home/.tmp-state-$$" &&
        mv -f "$home/.tmp-state-$$" "$home/state" && flush "$home" && return 0
    rm -f "$home/.tmp-state-$$"
    return 1
}

doubt() {
    if touch "$home/releases/$1/unproven" 2>/dev/null; then flush "$home/releases/$1"; fi
}

trust() {
    if [ -e "$home/releases/$1/unproven" ]; then
        rm -f "$home/releases/$1/unproven"
        flush "$home/releases/$1"
    fi
}

# Each of these steps may have been done before; a torn line is ended first.
log() {
    history=$home/history.jsonl
    if [ "$(tail -n 1 "$history" 2>/dev/null || true)" != "$1" ]; then
        if [ -s "$history" ] && [ -n "$(tail -c 1 "$history")" ]; then
            echo >> "$history" || return 1
        fi
        printf '%s\n' "$1" >> "$history" || return 1
    fi
    flush "$history" "$home" || return 1
    rm -f "$home/state" || return 1
    flush "$home"
}

# What follows a switch from $2 to $1. What is unproven, or gone, is no way back, unless it was left
# by somebody's wish.
finish() {
    case $3 in *'"action":"rollback"'*) kept=yes ;; *) kept=no ;; esac
    if [ -d "$home/releases/$2" ] && [ "$2" != "$1" ]; then
        if [ "$kept" = yes ] || [ ! -e "$home/releases/$2/unproven" ]; then
            point previous "$2" || return 1
        elif [ "$(current previous)" = "$1" ]; then
            rm -f "$home/previous"
        fi
    fi
    log "$3"
}

# Point both links to what they were, "-": to nothing. What is no release is nothing to go back to.
take_back() {
    for link in current previous; do
        if [ "$1" != - ] && [ -d "$home/releases/$1" ]; then
            point "$link" "$1"
        else
            rm -f "$home/$link"
        fi
        flush "$home"
        shift
    done
}

# Whatever was cut off is finished or forgotten; sets action, new, old and event.
recover() {
    [ -f "$home/state" ] || return 0
    { IFS=' ' read -r action new old && IFS= read -r event; } < "$home/state" || action=torn
    # On a full disk the history loses a line; nothing else may depend on it.
    if [ "$action" = switch ] && [ "$(current current)" = "$new" ]; then
        finish "$new" "$old" "$event" 2>/dev/null || true
    elif [ "$action" = restore ]; then
        take_back "$new" "$old"
        log "$event" 2>/dev/null || true
    fi
    rm -f "$home/state"
}
"""
