#!/usr/bin/env python3
"""Checks a JSON file against docs/result.schema.json: the part of JSON Schema 2020-12 that the
schema uses, and a refusal of any keyword beyond it. Usage: schema_check.py SCHEMA FILE..."""
import json
import sys

TYPES = {"object": dict, "array": list, "string": str, "null": type(None)}
IGNORED = {"$schema", "$id", "$defs", "title", "description"}


def has_type(value, name):
    if name == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, TYPES[name])


def errors(value, schema, root, path="$"):
    """All violations as texts, "$.results[0].model.name: ..."."""
    for key, want in schema.items():
        if key in IGNORED:
            continue
        if key == "$ref":
            target = root
            for step in want.removeprefix("#/").split("/"):
                target = target[step]
            yield from errors(value, target, root, path)
        elif key == "type":
            names = [want] if isinstance(want, str) else want
            if not any(has_type(value, name) for name in names):
                yield f"{path}: found {value!r}, expected type {names}"
        elif key == "const":
            if value != want:
                yield f"{path}: found {value!r}, expected {want!r}"
        elif key == "enum":
            if value not in want:
                yield f"{path}: found {value!r}, expected one of {want}"
        elif key == "anyOf":
            if all(list(errors(value, option, root, path)) for option in want):
                yield f"{path}: {value!r} fits none of the alternatives"
        elif key in ("minimum", "maximum"):
            outside = has_type(value, "number") and (
                value < want if key == "minimum" else value > want)
            if outside:
                yield f"{path}: found {value}, expected {key} {want}"
        elif key in ("minItems", "maxItems"):
            outside = isinstance(value, list) and (
                len(value) < want if key == "minItems" else len(value) > want)
            if outside:
                yield f"{path}: {len(value)} items, expected {key} {want}"
        elif key == "items":
            for i, item in enumerate(value if isinstance(value, list) else []):
                yield from errors(item, want, root, f"{path}[{i}]")
        elif key == "required":
            for name in want:
                if isinstance(value, dict) and name not in value:
                    yield f"{path}: key {name!r} is missing"
        elif key == "properties":
            for name, inner in want.items():
                if isinstance(value, dict) and name in value:
                    yield from errors(value[name], inner, root, f"{path}.{name}")
        elif key == "additionalProperties":
            for name in value if isinstance(value, dict) else []:
                if not want and name not in schema["properties"]:
                    yield f"{path}: key {name!r} is not in the schema"
        else:
            raise ValueError(f"schema keyword {key} is not supported by this checker")


def refuse_constant(name):
    raise ValueError(f"{name} is no JSON")


def check(schema_path, path):
    with open(schema_path, encoding="utf-8") as file:
        schema = json.load(file)
    with open(path, encoding="utf-8") as file:
        value = json.load(file, parse_constant=refuse_constant)
    return list(errors(value, schema, schema))


if __name__ == "__main__":
    found = [f"{path}: {error}" for path in sys.argv[2:] for error in check(sys.argv[1], path)]
    print("\n".join(found), end="\n" if found else "")
    sys.exit(1 if found else 0)
