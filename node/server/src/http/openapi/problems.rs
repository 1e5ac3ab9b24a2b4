//! The problems that calls can come to, as answers of the document.

use std::collections::BTreeMap;

use serde_json::json;
use utoipa::ToSchema;
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::path::Operation;
use utoipa::openapi::response::Response;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};

use super::ProblemShape;

/// The content type of every problem.
const PROBLEM: &str = "application/problem+json";

/// Every kind: the last part of its type, its status, its title.
const KINDS: &[(&str, u16, &str)] = &[
    ("invalid-request", 422, "The request is not valid"),
    ("invalid-batch", 422, "Some jobs of the batch are not valid"),
    ("not-json", 400, "The body is not JSON"),
    ("not-utf8", 400, "The source is not UTF-8"),
    ("empty-source", 400, "There is no program"),
    ("too-large", 413, "The request is too large"),
    ("encoded-body", 415, "The body is compressed"),
    ("slow-body", 408, "The body did not arrive in time"),
    ("incomplete-body", 400, "The body did not arrive whole"),
    ("malformed-path", 400, "The path is malformed"),
    ("unknown-language", 404, "There is no such language"),
    ("language-disabled", 422, "The language is disabled"),
    (
        "language-not-ready",
        503,
        "No node can run the language yet",
    ),
    (
        "language-changed",
        412,
        "The language is not as the request expects it",
    ),
    (
        "language-of-file",
        409,
        "The language is of the nodes' files",
    ),
    ("name-taken", 409, "A name belongs to another language"),
    ("too-many-languages", 409, "Too many languages are set"),
    ("older-nodes", 409, "Some nodes are too old for this"),
    ("unknown-job", 404, "There is no such job"),
    ("already-finished", 409, "The job has already finished"),
    (
        "idempotency-conflict",
        409,
        "The Idempotency-Key was used for another request",
    ),
    (
        "not-interactive",
        409,
        "Nobody can talk to the job's program",
    ),
    ("not-a-websocket", 400, "This path takes WebSockets"),
    ("no-token", 401, "A token is needed"),
    ("unknown-token", 401, "The token is not known"),
    ("not-allowed", 403, "The token may not do this"),
    (
        "foreign-origin",
        403,
        "Web pages from elsewhere may not use this node",
    ),
    ("rate-limited", 429, "The token makes too many requests"),
    (
        "owner-busy",
        429,
        "The owner of this token has too much under way",
    ),
    ("queue-full", 429, "Too many jobs are waiting"),
    ("client-busy", 429, "This client has too much under way"),
    ("node-busy", 503, "This node has too much under way"),
    (
        "disk-full",
        503,
        "This node has too little room on its disk",
    ),
    (
        "no-quorum",
        503,
        "The cluster has no leader that this node can reach",
    ),
    (
        "unconfirmed",
        503,
        "The cluster did not confirm the request in time",
    ),
    ("node-failing", 503, "This node cannot read its ledger"),
    ("node-ending", 503, "This node is about to end"),
    ("not-finished", 504, "The job has not finished yet"),
    ("unknown-node", 404, "There is no such node"),
    ("node-alive", 409, "A node of the cluster has this address"),
    (
        "no-majority-left",
        409,
        "The cluster would lose its majority",
    ),
    ("not-a-voter", 409, "Only a voter can lead"),
    ("leader-not-moved", 409, "The leadership was not moved"),
];

/// Headers that many answers have.
pub fn headers() -> [(&'static str, Header); 4] {
    let text = |description: &str| {
        HeaderBuilder::new()
            .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
            .description(Some(description))
            .build()
    };
    let seconds = ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(0));
    [
        (
            "Retry-After",
            HeaderBuilder::new()
                .schema(Some(seconds))
                .description(Some("When to come again, seconds"))
                .build(),
        ),
        (
            "WWW-Authenticate",
            text("What would do instead; not where only the page that asks is at fault"),
        ),
        (
            "RateLimit-Policy",
            text("How many requests the token may make, where it has a rate"),
        ),
        (
            "RateLimit",
            text("How many of them are left, where the token has a rate"),
        ),
    ]
}

fn refer(response: &mut Response, name: &str) {
    let at = format!("#/components/headers/{name}");
    response
        .headers
        .insert(name.to_owned(), RefOr::Ref(Ref::new(at)));
}

/// Adds an answer for each status that problems of these kinds have. What no kind is is left out; a test says so.
pub fn add(operation: &mut Operation, kinds: &[String]) {
    let mut by_status: BTreeMap<u16, Vec<(&str, &str)>> = BTreeMap::new();
    for (slug, status, title) in KINDS {
        if kinds.iter().any(|kind| kind == slug) {
            by_status.entry(*status).or_default().push((slug, title));
        }
    }
    for (status, kinds) in by_status {
        let lines: Vec<String> = kinds
            .iter()
            .map(|(slug, title)| format!("`{slug}`: {title}"))
            .collect();
        let said = lines.join("  \n");
        let (slug, title) = kinds[0];
        let example = json!({
            "type": format!("urn:quorun:error:{slug}"), "title": title, "status": status,
            "detail": "what is wrong in this case, and what would be right",
        });
        let content = ContentBuilder::new()
            .schema(Some(Ref::from_schema_name(ProblemShape::name())))
            .example(Some(example))
            .build();
        let answers = &mut operation.responses.responses;
        let answer = answers
            .entry(status.to_string())
            .or_insert_with(|| RefOr::T(ResponseBuilder::new().build()));
        let RefOr::T(answer) = answer else { continue };
        if answer.description.is_empty() {
            answer.description = said;
        } else {
            answer.description = format!("{}; or  \n{said}", answer.description);
        }
        answer.content.insert(PROBLEM.to_owned(), content.into());
        match status {
            401 | 403 => refer(answer, "WWW-Authenticate"),
            429 | 503 => refer(answer, "Retry-After"),
            _ => {}
        }
    }
}

/// Adds the headers that say how it stands with a token's rate.
pub fn add_standing(operation: &mut Operation) {
    for answer in operation.responses.responses.values_mut() {
        if let RefOr::T(answer) = answer {
            refer(answer, "RateLimit-Policy");
            refer(answer, "RateLimit");
        }
    }
}
