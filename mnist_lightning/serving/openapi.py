"""The server's description for programs: OpenAPI 3.1."""

from collections.abc import Sequence
from typing import Any

from mnist_lightning import __version__

_JSON = "application/json"
_REFUSED = {
    "400": "The request is malformed.",
    "401": "The token is missing or wrong.",
    "403": "The request comes from another site's page.",
    "408": "The body did not come in time.",
    "413": "The body or a picture is too large.",
    "415": "The body is not JSON.",
    "421": "The Host header does not name this server.",
    "422": "No picture that can be read.",
    "503": "The server is busy: see Retry-After.",
    "507": "The disk is full.",
}


def description(names: Sequence[str], collects: bool, token: bool) -> dict[str, Any]:
    """Of a server with these classes; `collects`: with /collect; `token`: whether one is needed."""
    one, many = {"$ref": "#/components/schemas/Answer"}, {"$ref": "#/components/schemas/Answers"}
    batch = {"oneOf": [{"$ref": "#/components/schemas/Images"}, _list({"$ref": "#/components/schemas/Image"})]}
    single = _object({"image": {"$ref": "#/components/schemas/Image"}})
    paths: dict[str, Any] = {
        "/": {"get": _operation("page", "A page to draw on.", {"text/html": {"schema": {"type": "string"}}})},
        "/predict": {"post": _operation("predict", "Reads one picture.", _json(one), single, upload="image")},
        "/predict/batch": {"post": _operation("predictBatch", "Reads several pictures.", _json(many), batch, "images")},
        "/health": {"get": _operation("health", "Whether it works, and what it reads.", _json(_HEALTH))},
        "/metrics": {
            "get": _operation("metrics", "Counts for Prometheus.", {"text/plain": {"schema": {"type": "string"}}})
        },
        "/openapi.json": {"get": _operation("description", "This description.", _json({"type": "object"}))},
    }
    if collects:
        correction = _object({"image": {"$ref": "#/components/schemas/Image"}, "label": {"enum": list(names)}})
        saved = _object({"label": {"type": "string"}, "count": {"type": "integer"}})
        told = "Saves a drawing under its right label, as 28x28."
        paths["/collect"] = {"post": _operation("collect", told, _json(saved), correction)}
    for path in ("/predict", "/predict/batch", "/metrics", "/collect") if token else ():
        for operation in paths.get(path, {}).values():
            operation["security"] = [{"token": []}]
    schemes = {"token": {"type": "http", "scheme": "bearer"}} if token else {}
    return {
        "openapi": "3.1.0",
        "info": {"title": "mnist_lightning", "version": __version__, "description": "Reads handwritten digits."},
        "paths": paths,
        "components": {"schemas": _schemas(names), **({"securitySchemes": schemes} if schemes else {})},
    }


def _operation(
    name: str, told: str, content: dict[str, Any], body: dict[str, Any] | None = None, upload: str | None = None
) -> dict[str, Any]:
    refused = {} if body is None else {status: _refusal(why, status) for status, why in _REFUSED.items()}
    for status in ("403", "401", "421"):
        refused.setdefault(status, _refusal(_REFUSED[status], status))
    if body is None or upload is not None:  # only what saves
        for status in ("415", "507"):
            refused.pop(status, None)
    if body is None:
        refused.pop("403")
    operation = {
        "operationId": name,
        "summary": told,
        "responses": {"200": {"description": "Done.", "content": content}},
    }
    operation["responses"] |= dict(sorted(refused.items()))  # type: ignore[operator]
    if body is not None:
        kinds = _json(body)
        if upload is not None:
            file = {"type": "string", "contentMediaType": "application/octet-stream"}
            form = _object({upload: _list(file) if upload.endswith("s") else file})
            kinds |= {"multipart/form-data": {"schema": form}, "image/*": {"schema": {}}}
        operation["requestBody"] = {"required": True, "content": kinds}
    return operation


def _refusal(why: str, status: str) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": why, "content": _json({"$ref": "#/components/schemas/Error"})}
    if status == "503":
        answer["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return answer


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {_JSON: {"schema": schema}}


def _list(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1, "maxItems": 1000}


def _object(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), **more}


_HEALTH = _object(
    {
        "status": {"const": "ok"},
        "model": {"type": "string"},
        "classes": {"type": "array", "items": {"type": "string"}},
        "collects": {"type": "boolean"},
    }
)


def _schemas(names: Sequence[str]) -> dict[str, Any]:
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    text, name = {"type": ["string", "null"]}, {"enum": [*names, None]}
    level = {"type": "integer", "minimum": 0, "maximum": 255}
    row = {"type": "array", "items": level, "minItems": 28, "maxItems": 28}
    raw = {"type": "array", "items": row, "minItems": 28, "maxItems": 28, "description": "0 the paper, 255 the ink."}
    url = {"type": "string", "description": "A picture's file in base64, or its data: URL."}
    answer = {
        "status": {
            "enum": ["ok", "unsure", "blank", "none", "number"],
            "description": "none: something, but no digit; number: several digits in a row.",
        },
        "digit": {"type": ["integer", "null"], "description": "Of an unsure picture the likeliest; null of no digit."},
        "name": text | {"description": "The class's name; of a number all of its digits."},
        "number": text | {"description": "Several digits, left to right."},
        "word": text | {"description": "The likeliest reading in words."},
        "confidence": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "runner_up": name | {"description": "The second likeliest class."},
        "probabilities": {
            "oneOf": [_object(dict.fromkeys(names, probability), additionalProperties=False), {"type": "null"}]
        },
        "seen": {"type": "array", "items": {"type": "string"}, "description": "28x28 PNGs as data: URLs, one a digit."},
    }
    return {
        "Image": {"oneOf": [url, raw]},
        "Images": _object({"images": _list({"$ref": "#/components/schemas/Image"})}),
        "Answer": _object(answer),
        "Answers": _object({"answers": {"type": "array", "items": {"$ref": "#/components/schemas/Answer"}}}),
        "Error": _object({"error": {"type": "string", "description": "One line: what is wrong."}}),
    }
