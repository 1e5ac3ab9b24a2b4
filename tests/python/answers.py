"""Holds answers to the schemas of a document.

Usage: answers.py URL FILE, where FILE has a list of pairs: the name of a schema, and an answer.
"""

import json
import sys
import urllib.request

import jsonschema_rs

url, file = sys.argv[1:]
with urllib.request.urlopen(url) as response:
    document = json.load(response)
with open(file) as opened:
    answers = json.load(opened)

schemas = document["components"]["schemas"]
for name, schema in schemas.items():
    # A field that is not written down is a mistake. A problem has other members by type.
    if name != "Problem" and "properties" in schema:
        schema.setdefault("additionalProperties", False)

seen = {}
for name, answer in answers:
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
    for error in validator.iter_errors(answer):
        sys.exit(f"{name}: {error}\n{json.dumps(answer, indent=1)}")
    if isinstance(answer, dict):
        seen.setdefault(name, set()).update(key for key, value in answer.items() if value not in (None, [], {}))

# A schema whose fields nobody fills holds nothing to anything.
missing = set(schemas["Job"]["properties"]) - seen["Job"] - {"owner", "queue_position", "wait_estimate_ms"}
if missing:
    sys.exit(f"no answer had {sorted(missing)}")
print(f"{len(answers)} answers")
