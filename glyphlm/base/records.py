"""JSON, JSON lines and YAML: one strict reader and writer for every file of settings, records and results.

A damaged file is an `InputError` with its name and the place in it. NaN and infinity are not JSON and are refused in both
directions; a key that is given twice is refused. YAML is the core schema of YAML 1.2 (`010` is 10; `no`, `on` and `1:30`
are strings; `1e-3` is a number); its keys are strings as written, so that `no:` and `1:` are names.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from glyphlm.base.errors import InputError

KINDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a whole number", float: "a number"}
CURE = "restore it, or make it again"
MAX_YAML_BYTES, MAX_YAML_NODES, MAX_YAML_DEPTH = 1 << 22, 200_000, 40  # an alias counts as its expansion
UNICODE_BREAKS = re.compile("[\x85\u2028\u2029]")
SURROGATE = re.compile("[\ud800-\udfff]")


# Writing


def to_json(value: Any) -> str:
    """The JSON format of the project: sorted keys, unescaped characters, a newline at the end.

    Raises:
        InputError: a number is NaN or infinite; its key is named.
    """
    return _dump(value, indent=2, sort_keys=True) + "\n"


def to_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as JSON lines, with unescaped characters.

    Raises:
        InputError: as `to_json`.
    """
    return "".join(_dump(row) + "\n" for row in rows)


def to_yaml(value: Any) -> str:
    """A mapping as YAML, in its own order, that parsers of YAML 1.1 and 1.2 read alike.

    Raises:
        InputError: a number is NaN or infinite; its key is named.
    """
    _refuse_not_finite(value)
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _dump(value: Any, **form: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, **form)
    except ValueError:
        _refuse_not_finite(value)
        raise
    # Names of files that are not UTF-8 hold lone surrogates in Python; escaped they are valid JSON and survive a round trip.
    return SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _refuse_not_finite(value: Any) -> None:
    for name, number in _not_finite(value, ""):
        raise InputError(f"{name.lstrip('.') or 'the value'} is {number}, and only finite numbers are written; find the "
                         "step or the tensor that it comes from")


def _not_finite(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield name, value
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, part in parts:
        yield from _not_finite(part, f"{name}.{key}")


# Reading


def read_json(path: Path, kind: type = dict, cure: str = CURE) -> Any:
    """The value of a JSON file, which must be of type `kind`; `cure` ends every error message.

    Raises:
        InputError: the file is missing, unreadable, damaged or of another type; the place in it is named.
    """
    return parse_json(_read_bytes(Path(path), cure), path, kind, cure)


def parse_json(text: str | bytes, where: object, kind: type = dict, cure: str = CURE, finite: bool = True) -> Any:
    """The value of JSON `text` that came from `where`; NaN and infinity are refused unless `finite` is false.

    Raises:
        InputError: as `read_json`.
    """
    text = _decoded(text, where, cure) if isinstance(text, bytes) else text
    try:
        value = json.loads(text, parse_constant=_no_number if finite else float, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:  # not JSON, a number of thousands of digits, or nested too deeply
        raise InputError(f"{where} is damaged (not JSON: {error}); {cure}") from None
    return _checked(value, where, kind, cure)


def read_json_lines(
    path: Path, needed: Mapping[str, tuple[type, ...]] | None = None, finite: bool = True
) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, each with the `needed` keys of these types; a missing file has no rows.

    Old runs that diverged have NaN in their metrics: for them `finite` is false.

    Raises:
        InputError: a line is damaged; file and line are named.
    """
    # Bytes, because str.splitlines would also split at the Unicode line separators that a row may contain.
    lines = _read_bytes(path, CURE).splitlines() if path.exists() else []
    return [parse_row(line, f"{path} line {number}", needed, finite) for number, line in enumerate(lines, start=1)]


def parse_row(
    line: bytes, where: str, needed: Mapping[str, tuple[type, ...]] | None = None, finite: bool = True
) -> dict[str, Any]:
    """The row of one line of `read_json_lines`.

    Raises:
        InputError: the line is damaged, or a key is missing or of another type.
    """
    cure = "fix or delete that line"
    row = parse_json(line, where, dict, cure, finite)
    for key, types in (needed or {}).items():
        if not isinstance(row.get(key), types):
            raise InputError(f"{where} is damaged (no valid {key!r}); {cure}")
    return row


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file.

    Raises:
        InputError: as `read_json`; also a key given twice, nesting deeper than MAX_YAML_DEPTH, an alias inside its own
            anchor, or more than MAX_YAML_BYTES or MAX_YAML_NODES.
    """
    return parse_yaml(_decoded(_read_bytes(Path(path), CURE), path, CURE), path)


def parse_yaml(text: str, where: object, kind: type = dict, cure: str = CURE) -> Any:
    """The value of YAML `text` that came from `where`.

    Raises:
        InputError: as `read_yaml`.
    """
    if len(text) > MAX_YAML_BYTES:
        raise InputError(f"{where} has {len(text):,} characters, more than the {MAX_YAML_BYTES:,} of a YAML file; {cure}")
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise InputError(f"{where} is damaged ({' '.join(_reason(error).split())}); {cure}") from None
    return _checked(value, where, kind, cure)


def _reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f" at line {mark.line + 1} column {mark.column + 1}" if mark else ""
    return f"{getattr(error, 'problem', None) or error}{place}"


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        double = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"{double!r} is given twice")
    return found


def _checked(value: Any, where: object, kind: type, cure: str) -> Any:
    if not isinstance(value, kind):
        found = "nothing" if value is None else KINDS.get(type(value), type(value).__name__)
        raise InputError(f"{where} is damaged (it holds {found}, not {KINDS[kind]}); {cure}")
    return value


def _read_bytes(path: Path, cure: str) -> bytes:
    if not path.is_file():  # a pipe or a device would never end
        raise InputError(f"{path} {'is not a file' if path.exists() else 'does not exist'}; {cure}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {cure}") from None


def _decoded(data: bytes, where: object, cure: str) -> str:
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is damaged (not UTF-8 at byte {error.start}); {cure}") from None


# The core schema of YAML 1.2 (section 10.3.2), and `<<`, which people use

SCALARS = {
    "null": "null|Null|NULL|~|",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": "<<",
}


class _Loader(yaml.SafeLoader):
    """Composes nodes within the limits of this module and refuses duplicate keys."""

    yaml_implicit_resolvers: dict[Any, Any] = {}

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = self._nodes = 0
        self._sizes: dict[str, int] = {}  # number of nodes of each complete anchor

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        before, anchor = self._nodes, event.anchor
        if self.check_event(yaml.AliasEvent):
            if anchor in self.anchors and anchor not in self._sizes:
                raise ComposerError(None, None, f"*{anchor} refers to a value that contains it", event.start_mark)
            self._nodes += self._sizes.get(anchor, 0)
        self._nodes, self._depth = self._nodes + 1, self._depth + 1
        if self._depth > MAX_YAML_DEPTH or self._nodes > MAX_YAML_NODES:
            limit = f"deeper than {MAX_YAML_DEPTH}" if self._depth > MAX_YAML_DEPTH else f"more than {MAX_YAML_NODES} values"
            raise ComposerError(None, None, limit, event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if anchor is not None:
            self._sizes[anchor] = self._nodes - before
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                key.tag = self.DEFAULT_SCALAR_TAG
                if key.value in seen:
                    raise ComposerError(None, None, f"{key.value!r} is given twice", key.start_mark)
                seen.add(key.value)
        return node

    def construct_int(self, node: yaml.ScalarNode) -> int:
        return int(node.value, {"0o": 8, "0x": 16}.get(node.value[:2], 10))

    def construct_float(self, node: yaml.ScalarNode) -> float:
        return float(node.value.replace(".inf", "inf").replace(".nan", "nan"))


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that YAML 1.1 or 1.2 would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:  # elsewhere PyYAML writes these raw and reads them as a space
        return self.represent_scalar("tag:yaml.org,2002:str", data, '"' if UNICODE_BREAKS.search(data) else None)


def _add_scalars() -> None:
    for name, pattern in SCALARS.items():
        for kind in (_Loader, _Dumper):
            kind.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(f"^(?:{pattern})$"), None)
    _Dumper.add_representer(str, _Dumper.represent_str)
    _Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)
    _Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_float)


_add_scalars()
