"""What of one OpenAPI document no longer holds in a later one, for clients that were written or generated against it.

Requests may take more and answers may tell more: those are no breaks. Words in answers are open (docs/api.md), so a new
value or a new member of a tagged union is none either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Node = Mapping[str, Any]

_ALL_TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_EXACT = ("pattern", "format", "const", "multipleOf", "uniqueItems", "propertyNames", "patternProperties")


def breaks(before: Node, after: Node) -> list[str]:
    """A line for each break, beginning with its place."""
    return [*_Comparison(before, after).all()]


class _Comparison:
    def __init__(self, before: Node, after: Node) -> None:
        self._before, self._after = before, after
        self._seen: set[tuple[int, int, bool]] = set()

    def all(self) -> Iterator[str]:
        for path, operations in self._before["paths"].items():
            for method, old in operations.items():
                where = f"{method.upper()} {path}"
                new = self._after["paths"].get(path, {}).get(method)
                if new is None:
                    yield f"{where}: is gone"
                else:
                    yield from self._operation(where, old, new)
        for name, operations in self._before.get("webhooks", {}).items():
            new = self._after.get("webhooks", {}).get(name)
            if new is None:
                yield f"webhook {name}: is gone"
                continue
            old_body, new_body = (each["post"]["requestBody"]["content"] for each in (operations, new))
            yield from self._contents(f"webhook {name}", old_body, new_body, asked=False)

    def _operation(self, where: str, old: Node, new: Node) -> Iterator[str]:
        if old.get("operationId") != new.get("operationId"):
            yield f"{where}: is no longer called {old.get('operationId')}"
        yield from self._parameters(where, _parameters(old), _parameters(new))
        old_body, new_body = old.get("requestBody"), new.get("requestBody")
        if new_body and new_body.get("required") and not (old_body and old_body.get("required")):
            yield f"{where} body: must be given now"
        if old_body:
            contents = new_body["content"] if new_body else {}
            yield from self._contents(f"{where} body", old_body["content"], contents, asked=True)
        for status, answer in old["responses"].items():
            if status[0] in "23":
                yield from self._answer(f"{where} {status}", answer, new["responses"].get(status))

    def _parameters(
        self, where: str, old: Mapping[tuple[str, str], Node], new: Mapping[tuple[str, str], Node]
    ) -> Iterator[str]:
        for key in old.keys() | new.keys():
            place = f"{where} {key[0]} {key[1]}"
            if key not in new:
                yield f"{place}: is gone"
            elif new[key].get("required") and not old.get(key, {}).get("required"):
                yield f"{place}: must be given now"
            elif key in old:
                yield from self._schemas(place, old[key]["schema"], new[key]["schema"], asked=True)

    def _answer(self, where: str, old: Node, new: Node | None) -> Iterator[str]:
        if new is None:
            yield f"{where}: is no longer answered"
            return
        for header in old.get("headers", {}):
            if header not in new.get("headers", {}):
                yield f"{where} header {header}: is gone"
        yield from self._contents(where, old.get("content", {}), new.get("content", {}), asked=False)

    def _contents(self, where: str, old: Node, new: Node, *, asked: bool) -> Iterator[str]:
        for media_type, content in old.items():
            if media_type not in new:
                yield f"{where}: is no longer {media_type}"
            elif "schema" in content:
                yield from self._schemas(where, content["schema"], new[media_type].get("schema", {}), asked=asked)

    def _schemas(self, where: str, old: Node, new: Node, *, asked: bool) -> Iterator[str]:
        """`asked`: it is the client that writes such a value, and else the one who reads it."""
        old, new = _resolved(old, self._before), _resolved(new, self._after)
        if (id(old), id(new), asked) in self._seen:
            return
        self._seen.add((id(old), id(new), asked))
        old_types, new_types = self._types(old, self._before), self._types(new, self._after)
        if asked:
            yield from (f"{where}: no longer takes {name}" for name in sorted(old_types - new_types))
            yield from _bounds(where, old, new)
        else:
            yield from (f"{where}: may now be {name}" for name in sorted(new_types - old_types))
        yield from self._members(where, old, new, asked=asked)
        yield from self._fields(where, old, new, asked=asked)
        for inner in ("items", "additionalProperties"):
            if isinstance(old.get(inner), Mapping) and isinstance(new.get(inner), Mapping):
                yield from self._schemas(f"{where}/*", old[inner], new[inner], asked=asked)

    def _members(self, where: str, old: Node, new: Node, *, asked: bool) -> Iterator[str]:
        """Of unions. One that was none before, or is none any more, is compared as a union of one."""
        if not (_union(old) or _union(new)):
            return
        old_members, new_members = self._tagged(old, self._before), self._tagged(new, self._after)
        for tag, member in old_members.items():
            if tag in new_members:
                place = f"{where}<{tag.value}>" if tag.field else where
                yield from self._schemas(place, member, new_members[tag], asked=asked)
            elif asked and tag.field:
                yield f"{where}: no longer takes {tag.field} {tag.value}"

    def _fields(self, where: str, old: Node, new: Node, *, asked: bool) -> Iterator[str]:
        old_fields, new_fields = old.get("properties", {}), new.get("properties", {})
        old_required, new_required = set(old.get("required", ())), set(new.get("required", ()))
        for name, field in old_fields.items():
            place = f"{where}/{name}"
            if name in new_fields:
                yield from self._schemas(place, field, new_fields[name], asked=asked)
                if not asked and name in old_required - new_required:
                    yield f"{place}: may be missing now"
            elif not _union(new) and ("properties" in new or not asked):
                yield f"{place}: is gone"
        if asked and (old_fields or not _union(old)):
            yield from (f"{where}/{name}: must be given now" for name in sorted(new_required - old_required))

    def _types(self, schema: Node, document: Node) -> frozenset[str]:
        schema = _resolved(schema, document)
        if union := _union(schema):
            return frozenset().union(*(self._types(member, document) for member in union))
        named = schema.get("type")
        if named is None:
            return _ALL_TYPES if not (schema.keys() & {"const", "enum"}) else frozenset({"string"})
        types = frozenset([named] if isinstance(named, str) else named)
        return types | {"integer"} if "number" in types else types

    def _tagged(self, schema: Node, document: Node) -> dict[_Tag, Node]:
        field = schema.get("discriminator", {}).get("propertyName", "")
        members: dict[_Tag, Node] = {}
        for member in _union(schema) or [schema]:
            resolved = _resolved(member, document)
            if "discriminator" in resolved:
                members |= self._tagged(resolved, document)
                continue
            tag = resolved.get("properties", {}).get(field, {})
            for value in tag.get("enum", [tag.get("const")]):
                members[_Tag(field, value) if value else _Tag("", str(resolved.get("type")))] = member
        return members


class _Tag(NamedTuple):
    """What tells the members of a union apart: a field's value, or else only their type."""

    field: str
    value: str


def _parameters(operation: Node) -> dict[tuple[str, str], Node]:
    return {(each["in"], each["name"]): each for each in operation.get("parameters", ())}


def _union(schema: Node) -> list[Node]:
    found: list[Node] = schema.get("oneOf") or schema.get("anyOf") or []
    return found


def _resolved(schema: Node, document: Node) -> Node:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def _bounds(where: str, old: Node, new: Node) -> Iterator[str]:
    """Where less is taken than before."""
    if "enum" in new:
        gone = [value for value in old.get("enum", ["other values"]) if value not in new["enum"]]
        yield from (f"{where}: no longer takes {value}" for value in gone if "const" not in old)
    for name in _UPPER:
        if name in new and (name not in old or new[name] < old[name]):
            yield f"{where}: {name} is {new[name]} now"
    for name in _LOWER:
        if name in new and (name not in old or new[name] > old[name]):
            yield f"{where}: {name} is {new[name]} now"
    for name in _EXACT:
        if name in new and new[name] != old.get(name):
            yield f"{where}: {name} is another now"
