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



def check(what, schema, value):
    schema = {**schema, "components": document["components"]}
    validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
    for error in validator.iter_errors(value):
        sys.exit(f"{what}: {error}\n{json.dumps(value, indent=1)}")


# What is shown must be so, too.
examples = 0
for path, item in document["paths"].items():
    for method, call in item.items():
        bodies = [("body", call["requestBody"])] if "requestBody" in call else []
        for where, body in bodies + list(call["responses"].items()):
            for content in body.get("content", {}).values():
                shown = [example["value"] for example in content.get("examples", {}).values()]
                if "example" in content:
                    shown.append(content["example"])
                for example in shown:
                    check(f"the example of {call['operationId']}, {where}", content["schema"], example)
                    examples += 1
if examples < 100:
    sys.exit(f"only {examples} examples")

seen = {}
for name, answer in answers:
    check(name, {"$ref": f"#/components/schemas/{name}"}, answer)
    if isinstance(answer, dict):
        seen.setdefault(name, set()).update(key for key, value in answer.items() if value not in (None, [], {}))

# A schema whose fields nobody fills holds nothing to anything.
missing = set(schemas["Job"]["properties"]) - seen["Job"] - {"owner", "queue_position", "wait_estimate_ms"}
if missing:
    sys.exit(f"no answer had {sorted(missing)}")
print(f"{len(answers)} answers")
