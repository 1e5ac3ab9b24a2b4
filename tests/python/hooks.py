"""What schemathesis is told before it talks to a node (SCHEMATHESIS_HOOKS)."""

import schemathesis

# How long a request may wait for jobs, seconds. The document allows 300, and a run that waits so long takes an hour.
PATIENCE = 0.2

# Schemas that say more than they name: a problem has other members by type.
OPEN = {"Problem"}

# What an event is. For clients the answer is text; here each event in it is looked at.
EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": ["state", "output", "test", "replaced", "finished", "shown", "error"]},
        "id": {"type": "string", "pattern": "^[0-9]+-[0-9]+-[0-9]+(-[0-9]+)?(-end)?$"},
        "data": {"type": "string", "pattern": r"^\{.*\}$"},
    },
    "additionalProperties": False,
}


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """Holds answers to what is written down: a field that is not in the document is a failure too."""
    for name, schema in raw_schema["components"]["schemas"].items():
        if name not in OPEN and "properties" in schema:
            schema.setdefault("additionalProperties", False)
    events = raw_schema["paths"]["/v1/jobs/{id}/events"]["get"]["responses"]["200"]
    events["content"]["text/event-stream"]["schema"] = EVENT


def _shorter(value):
    """A number of seconds, if it is one, that is over before the run is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return min(value, PATIENCE)


@schemathesis.hook
def map_query(context, query):
    if query and "wait" in query:
        query["wait"] = _shorter(query["wait"])
    return query


@schemathesis.hook
def map_body(context, body):
    if isinstance(body, dict) and "timeout_s" in body:
        body["timeout_s"] = _shorter(body["timeout_s"])
    return body
