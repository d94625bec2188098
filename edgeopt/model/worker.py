"""The process that reads untrusted models: one request on stdin, one reply on stdout."""

import importlib
import json
import os
import resource
import sys

from edgeopt.errors import ConfigError, ModelError
from edgeopt.heap import keep_freed_memory

#: Everything a worker can be asked for: module and function. Each takes and returns plain JSON.
FUNCTIONS = {
    "describe": "edgeopt.model.describe:describe_file",
    "inline": "edgeopt.model.describe:inline_external",
    "export": "edgeopt.model.export:export_factory",
    "convert": "edgeopt.model.simplify:convert_opset",
    "normalize": "edgeopt.model.simplify:normalize_file",
}


def limit(limits: dict[str, float]) -> None:
    """Bind this process to its limits before any parser is loaded."""
    for name, kind in (
        ("cpu", resource.RLIMIT_CPU),
        ("address_space", resource.RLIMIT_AS),
        ("file", resource.RLIMIT_FSIZE),
    ):
        _, hard = resource.getrlimit(kind)
        value = int(limits[name])
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Answer one request; anything unexpected ends in a traceback on stderr and status 1.

    The arguments are the name of the function and its limits, as JSON.
    """
    limit(json.loads(sys.argv[2]))
    keep_freed_memory()
    # What libraries and the user's own module print must not mix with the reply.
    reply = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    module, _, name = FUNCTIONS[sys.argv[1]].partition(":")
    # There may be nothing to read for a while, in which this is done.
    function = getattr(importlib.import_module(module), name)
    message = json.load(sys.stdin)
    os.chdir(message["directory"])
    try:
        answer = {"result": function(**message["request"])}
    except (ConfigError, ModelError) as error:
        kind = type(error).__name__
        facts = {"kind": kind, "what": error.what, "why": error.why, "fix": error.fix}
        answer = {"error": facts}
    with reply:
        json.dump(answer, reply)


if __name__ == "__main__":
    main()
