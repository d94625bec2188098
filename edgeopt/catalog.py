"""TOML files that people write: found by name, decoded once, strictly, with file and line."""

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import ErrorDetails, core_schema

from edgeopt.errors import ConfigError
from edgeopt.units import WRITTEN

#: A folder of files, in the project, the user's configuration and the package.
Kind = Literal["targets", "profiles"]
#: A place in a file: ("cluster", 0, "clock").
Place = tuple[str | int, ...]
Decoded = TypeVar("Decoded", bound=BaseModel)

#: A file larger than this was not written by hand.
LARGEST = 1_000_000

_PART = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_PATH = rf"{_PART}(?:\s*\.\s*{_PART})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_PATH})\s*\]")
_KEY = re.compile(rf"\s*({_PATH})\s*=")
_OPAQUE = re.compile(
    r'"""(?:\\.|[^\\])*?"""' r"|'''.*?'''" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'" r"|#[^\n]*",
    re.DOTALL,
)


def decode(path: Path, model: type[Decoded], *, table: tuple[str, ...] = ()) -> Decoded:
    """Read a TOML file into a model; table names the part that is ours: ("tool", "edgeopt").

    Raises ConfigError with every mistake of the file at once, each as `file:line: place: what`.
    """
    text = _read(path)
    try:
        data: Any = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(path, error) from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deep", fix="write it flat") from error
    for name in table:
        data = data.get(name, {}) if isinstance(data, dict) else {}
    # Through JSON: only there does pydantic's strict mode take a list for a tuple.
    document = json.dumps(data, default=str)
    try:
        return model.model_validate_json(document, strict=True, context=WRITTEN)
    except ValidationError as error:
        lines = find_lines(text)
        schema = model.model_json_schema()
        found = [
            (_line_of(lines, (*table, *each["loc"])), each)
            for each in _causes(error.errors(include_url=False))
        ]
        mistakes = [
            _mistake(each, path, line=line, schema=schema)
            for line, each in sorted(found, key=lambda pair: pair[0])
        ]
        raise _report(mistakes) from error


def load(
    kind: Kind, model: type[Decoded], name_or_path: str | Path, *, project: Path | None = None
) -> Decoded:
    """Find and decode one file; its `name` must be the file's own name."""
    return _decode_named(find_file(kind, str(name_or_path), project=project), model)


def load_all(
    kind: Kind, model: type[Decoded], *, project: Path | None = None
) -> dict[str, Decoded]:
    """Decode everything that a name can mean, sorted by name."""
    found = find_files(kind, project=project)
    return {name: _decode_named(found[name], model) for name in sorted(found)}


def find_file(kind: Kind, name: str, *, project: Path | None = None) -> Path:
    """Find by path (ends in .toml) or by name: the project's, the user's, then the shipped one."""
    if name.endswith(".toml"):
        return Path(name)
    found = find_files(kind, project=project)
    if name in found:
        return found[name]
    near = nearest(name, found)
    raise ConfigError(
        f"there is no {kind.removesuffix('s')} {name!r}",
        why=f"known {kind}: {', '.join(sorted(found)) or 'none'}",
        fix=(f"did you mean {near!r}? " if near else "") + f"list them: edgeopt {kind} list",
    )


def find_files(kind: Kind, *, project: Path | None = None) -> dict[str, Path]:
    """Return the file behind every known name; an earlier folder hides a later one's file."""
    found: dict[str, Path] = {}
    for folder in _folders(kind, project):
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, path)
    return found


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return what was probably meant.

    >>> nearest("rma", ["flash", "ram"])
    'ram'
    """
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """Describe a model's TOML to an editor (JSON Schema 2020-12): quantities are text."""
    described = model.model_json_schema(schema_generator=_TomlSchema)
    return {"$schema": GenerateJsonSchema.schema_dialect, **described}


def find_lines(text: str) -> dict[Place, int]:
    """Return the line (from 1) of every table and key of a valid TOML text.

    What is written inside an array or an inline table has the line of its key.
    """
    visible = _OPAQUE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    lines: dict[Place, int] = {}
    counts: dict[Place, int] = {}
    table: Place = ()
    depth = 0
    for number, (line, bare) in enumerate(
        zip(text.split("\n"), visible.split("\n"), strict=True), start=1
    ):
        header, key = _HEADER.match(line), _KEY.match(line)
        if depth == 0 and bare.strip() and header:
            table = _enter(_split(header[2]), counts, is_array=header[1] == "[[")
            _note(lines, table, number)
        elif depth == 0 and bare.strip() and key:
            _note(lines, (*table, *_split(key[1])), number)
        depth += sum(bare.count(mark) for mark in "[{") - sum(bare.count(mark) for mark in "]}")
    return lines


class _TomlSchema(GenerateJsonSchema):
    """TOML has no null, and our defaults are plain numbers where the file holds text."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"{path} is too large to be a configuration file")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}", why=error.strerror or str(error), fix="check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"cannot read {path}", why=f"it is not UTF-8: {error.reason}", fix="save it as UTF-8"
        ) from error


def _decode_named(path: Path, model: type[Decoded]) -> Decoded:
    decoded = decode(path, model)
    name = getattr(decoded, "name", None)
    if name == path.stem:
        return decoded
    line = _line_of(find_lines(_read(path)), ("name",))
    raise ConfigError(
        f"{path}:{line}: name: {name!r} is not the file's own name",
        fix=f"write name = {path.stem!r}, or rename the file to {name}.toml",
    )


def _folders(kind: Kind, project: Path | None) -> list[Path]:
    # Here, not above: they cost 30 ms, and only a lookup needs them.
    from importlib import resources

    import platformdirs

    inside = Path(str(resources.files("edgeopt"))) / kind
    shipped = inside if inside.is_dir() else Path(__file__).parents[1] / kind
    user = platformdirs.user_config_path("edgeopt") / kind
    return [*([project / kind] if project else []), user, shipped]


def _split(path: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in re.findall(_PART, path))


def _enter(path: tuple[str, ...], counts: dict[Place, int], *, is_array: bool) -> Place:
    """Return the place of a header: an array of tables is entered at its last element."""
    place: Place = ()
    for position, part in enumerate(path, start=1):
        place = (*place, part)
        if is_array and position == len(path):
            counts[place] = counts.get(place, 0) + 1
        if place in counts:
            place = (*place, counts[place] - 1)
    return place


def _note(lines: dict[Place, int], place: Place, number: int) -> None:
    for end in range(1, len(place) + 1):
        lines.setdefault(place[:end], number)


def _line_of(lines: Mapping[Place, int], place: Place) -> int:
    """Return the line of the innermost table or key around a place that is in the file."""
    for end in range(len(place), 0, -1):
        if place[:end] in lines:
            return lines[place[:end]]
    return 1


def _syntax_error(path: Path, error: tomllib.TOMLDecodeError) -> ConfigError:
    match = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", str(error))
    if match is None:
        return ConfigError(f"{path}: not TOML: {error}", fix="see https://toml.io/en/v1.0.0")
    what = f"{path}:{match[2]}: not TOML: {match[1]} (column {match[3]})"
    return ConfigError(what, fix="see https://toml.io/en/v1.0.0")


def _causes(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Leave out the list that is too short only because its items are wrong."""
    places = [each["loc"] for each in errors]
    return [
        each
        for each in errors
        if each["type"] != "too_short"
        or not any(place[: len(each["loc"])] == each["loc"] != place for place in places)
    ]


def _mistake(
    error: ErrorDetails, path: Path, *, line: int, schema: dict[str, Any]
) -> tuple[str, str]:
    place = error["loc"]
    what, fix = _words(error, schema)
    where = f"{path}:{line}: {_dotted(place)}: " if place else f"{path}:{line}: "
    return where + what, fix


def _words(error: ErrorDetails, schema: dict[str, Any]) -> tuple[str, str]:
    place, given, message = error["loc"], error["input"], error["msg"]
    if error["type"] == "extra_forbidden":
        known = _keys_at(schema, place[:-1])
        near = nearest(str(place[-1]), known)
        return "unknown key", f"did you mean {near!r}?" if near else f"known: {', '.join(known)}"
    if error["type"] == "missing":
        return "missing", _to_add(schema, place)
    if error["type"] == "union_tag_not_found":
        return "kind: missing", "add kind = ..."
    if error["type"] == "union_tag_invalid":
        context = error["ctx"]
        known = re.findall(r"'([^']*)'", context["expected_tags"])
        near = nearest(context["tag"], known)
        what = f"kind: {context['tag']!r} is not known"
        return what, f"did you mean {near!r}?" if near else f"known: {', '.join(known)}"
    if error["type"] == "value_error":
        return message.removeprefix("Value error, "), ""
    near = nearest(given, re.findall(r"'([^']*)'", message)) if isinstance(given, str) else None
    shown = f", not {given!r}" if isinstance(given, str | int | float) else ""
    what = message.replace("Input should be", "must be") + shown
    return what, f"did you mean {near!r}?" if near else ""


def _to_add(schema: dict[str, Any], place: Place) -> str:
    """Write what adds a key: a value, the header of a table, or that of the first of several."""
    header = ".".join(each for each in place if isinstance(each, str))
    kinds = {node.get("type") for node in _nodes_at(schema, place)}
    items = {node.get("type") for node in _nodes_at(schema, (*place, 0))}
    if kinds == {"array"} and items == {"object"}:
        return f"add [[{header}]]"
    return f"add [{header}]" if kinds == {"object"} else f"add {place[-1]} = ..."


def _keys_at(schema: dict[str, Any], place: Place) -> list[str]:
    """Return the keys that a model knows at a place."""
    return [key for node in _nodes_at(schema, place) for key in node.get("properties", {})]


def _nodes_at(schema: dict[str, Any], place: Place) -> list[dict[str, Any]]:
    """Return what a schema says of a place, following $ref, items and anyOf."""
    nodes = [schema]
    for part in (None, *place):
        if part is not None:
            nodes = [child for node in nodes for child in _children(node, part)]
        nodes = [leaf for node in nodes for leaf in _resolve(node, schema)]
    return nodes


def _children(node: dict[str, Any], part: str | int) -> list[dict[str, Any]]:
    child = node.get("items") if isinstance(part, int) else node.get("properties", {}).get(part)
    # A tagged union's place also holds the tag, which is no key of the file.
    return [child] if isinstance(child, dict) else [node]


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in node:
        return _resolve(schema["$defs"][node["$ref"].rsplit("/", 1)[-1]], schema)
    options = node.get("anyOf") or node.get("oneOf")
    if options:
        return [leaf for option in options for leaf in _resolve(option, schema)]
    return [node]


def _dotted(place: Place) -> str:
    """Write a place as it reads best: cluster[0].clock."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _report(mistakes: list[tuple[str, str]]) -> ConfigError:
    if len(mistakes) == 1:
        return ConfigError(mistakes[0][0], fix=mistakes[0][1])
    lines = [what + (f" ({fix})" if fix else "") for what, fix in mistakes]
    return ConfigError("\n".join(lines), fix=f"correct these {len(lines)} places")
