"""JSON schemas that a grammar can keep: xgrammar leaves out, without a word, what it does not know; here that is
refused, so that an output that ended is valid."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from packhorse.errors import UsageError

ANNOTATIONS = frozenset({
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$schema", "$id",
    "$comment", "$defs", "definitions",
})  # fmt: skip
NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}

# What xgrammar keeps of each type, tried keyword by keyword in the tests.
KEYWORDS: dict[str, set[str]] = {
    "object": {
        "properties", "required", "additionalProperties", "minProperties", "maxProperties", "patternProperties",
        "propertyNames", "unevaluatedProperties",
    },
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": NUMBERS,
    "number": NUMBERS,
    "boolean": set(),
    "null": set(),
}  # fmt: skip
FORMATS = frozenset({
    "date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "uri-reference",
})  # fmt: skip

# A schema with one of them has nothing else but annotations: what stands beside them would be left out.
ALONE = ("$ref", "anyOf", "oneOf", "allOf", "enum", "const")

# In a pattern: what xgrammar ignores (look-around, boundaries, back references), and characters that JSON has to
# escape, which it would write as they are.
NOT_KEPT = re.compile(r'"|\(\?[^:]|\\[^dwsDWS./\-+*?()\[\]{}|^$@#%&=:;,!<>~_ ]')

# Python's types of JSON values, by JSON schema's names.
VALUES: dict[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
    "null": type(None),
}  # fmt: skip


def checked_schema(text: str) -> Any:
    """The schema. Raises UsageError, which names --json-schema, where it is no JSON or asks for what no grammar here
    can keep."""
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise UsageError(
            f"--json-schema is not JSON: {error}. It takes a JSON schema, as text or as a file."
        ) from error
    _check(schema, "#")
    return schema


def _check(node: Any, place: str) -> None:
    if isinstance(node, bool):
        return
    if not isinstance(node, dict):
        raise _refusal(place, f"{node!r} stands where a schema belongs", "put an object there")
    alone = [key for key in ALONE if key in node]
    if alone:
        _check_alone(node, alone[0], place)
    else:
        _check_typed(node, place)
    for name, inner in _inner(node):
        _check(inner, f"{place}/{name}")


def _check_alone(node: Mapping[str, Any], key: str, place: str) -> None:
    beside = set(node) - ANNOTATIONS - {key}
    if key in ("enum", "const"):
        beside -= {"type"}
        _check_values(node, node[key] if key == "enum" else [node[key]], place)
    if beside:
        raise _refusal(place, f"{sorted(beside)} beside {key!r} would not be kept", f"move them into the {key}")
    if key == "$ref" and not str(node[key]).startswith("#"):
        raise _refusal(place, f"$ref {node[key]!r} leads out of the schema", "copy it into $defs")
    if key == "allOf" and len(node[key]) > 1:
        raise _refusal(place, "allOf of several schemas would not be kept", "merge them into one")
    if key == "oneOf" and not _are_disjoint(node[key]):
        raise _refusal(place, "oneOf whose schemas may both hold would not be kept", "use anyOf")


def _check_typed(node: Mapping[str, Any], place: str) -> None:
    types = _types(node)
    unknown = [t for t in types if t not in KEYWORDS]
    if unknown:
        raise _refusal(place, f"there is no type {unknown[0]!r}", f"use one of {', '.join(KEYWORDS)}")
    kept = ANNOTATIONS.union({"type"}, *(KEYWORDS[t] for t in types))
    beside = sorted(set(node) - kept)
    if beside:
        what = f"of type {'/'.join(types)}" if types else "without a type"
        raise _refusal(place, f"{beside} would not be kept in a schema {what}", "say the type, or leave them out")
    if len(types) > 1 and set(node) - ANNOTATIONS - {"type"}:
        raise _refusal(place, f"keywords beside the types {types} may not be kept", "use anyOf, one type in each")
    if "pattern" in node and {"minLength", "maxLength"} & set(node):
        raise _refusal(
            place, "lengths beside a pattern would not be kept", "say the length in the pattern, as in a{1,5}"
        )
    for pattern in (*([node["pattern"]] if "pattern" in node else ()), *node.get("patternProperties", ())):
        if found := NOT_KEPT.search(pattern):
            raise _refusal(place, f"{found[0]!r} in the pattern {pattern!r} would not be kept", "use classes, or enum")
    if "format" in node and node["format"] not in FORMATS:
        raise _refusal(place, f"format {node['format']!r} would not be kept", f"known: {', '.join(sorted(FORMATS))}")


def _check_values(node: Mapping[str, Any], values: Any, place: str) -> None:
    """Of enum and const: the type beside them, if any, is that of each."""
    if not isinstance(values, list) or not values:
        raise _refusal(place, "enum takes a list of values", "give one value at least")
    types = _types(node)
    for value in values if types else ():
        fits = any(isinstance(value, VALUES.get(t, ())) for t in types)
        if not fits or (isinstance(value, bool) and "boolean" not in types):
            raise _refusal(place, f"{value!r} is not of type {'/'.join(types)}", "leave out the value or the type")


def _are_disjoint(schemas: Any) -> bool:
    """Whether each has types that no other has; integers are numbers."""
    seen: set[str] = set()
    for schema in schemas:
        types = {"number" if t == "integer" else t for t in _types(schema)} if isinstance(schema, dict) else set()
        if not types or types & seen:
            return False
        seen |= types
    return True


def _types(node: Mapping[str, Any]) -> list[str]:
    types = node.get("type", [])
    return [types] if isinstance(types, str) else list(types)


def _inner(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Schemas inside a schema."""
    for key in ("properties", "patternProperties", "$defs", "definitions"):
        for name, inner in node.get(key, {}).items():
            yield f"{key}/{name}", inner
    for key in ("items", "additionalProperties", "propertyNames", "unevaluatedProperties"):
        if key in node:
            yield key, node[key]
    for key in ("prefixItems", "anyOf", "oneOf", "allOf"):
        for i, inner in enumerate(node.get(key, [])):
            yield f"{key}/{i}", inner


def _refusal(place: str, what: str, remedy: str) -> UsageError:
    return UsageError(f"--json-schema at {place}: {what}; {remedy}.")
