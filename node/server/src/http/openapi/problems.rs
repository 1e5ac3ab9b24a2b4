//! The problems that calls can come to, as answers of the document.

use std::collections::BTreeSet;

use serde_json::json;
use utoipa::ToSchema;
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::path::Operation;
use utoipa::openapi::response::Response;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{Components, ContentBuilder, Ref, RefOr, ResponseBuilder};

use super::ProblemShape;

/// The content type of every problem.
const PROBLEM: &str = "application/problem+json";

/// Every kind: the last part of its type, its status, its title.
const KINDS: &[Kind] = &[
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
fn headers() -> [(&'static str, Header); 4] {
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

/// Answers that most calls have in common: they are described once.
const SHARED: [(&str, u16, &[&str]); 8] = [
    ("Unauthorized", 401, &["no-token", "unknown-token"]),
    ("Forbidden", 403, &["not-allowed", "foreign-origin"]),
    ("UnknownJob", 404, &["unknown-job"]),
    ("SlowBody", 408, &["slow-body"]),
    ("TooLarge", 413, &["too-large"]),
    ("EncodedBody", 415, &["encoded-body"]),
    ("InvalidRequest", 422, &["invalid-request"]),
    ("TooMany", 429, &["rate-limited", "client-busy"]),
];

/// Adds what calls refer to.
pub fn add_shared(components: &mut Components) {
    for (name, header) in headers() {
        components.headers.insert(name.to_owned(), header.into());
    }
    for (name, status, kinds) in SHARED {
        let answer = answer(status, &of_status(kinds, status), true);
        components.responses.insert(name.to_owned(), answer.into());
    }
}

type Kind = (&'static str, u16, &'static str);

/// Those of the kinds that have this status.
fn of_status(kinds: &[impl AsRef<str>], status: u16) -> Vec<&'static Kind> {
    let all = KINDS.iter().filter(|kind| kind.1 == status);
    all.filter(|kind| kinds.iter().any(|one| one.as_ref() == kind.0))
        .collect()
}

/// The answer with a problem of one of these kinds, which have this status.
fn answer(status: u16, kinds: &[&Kind], of_token: bool) -> Response {
    let lines: Vec<String> = kinds
        .iter()
        .map(|(slug, _, title)| format!("`{slug}`: {title}"))
        .collect();
    let example = kinds.first().map(|(slug, _, title)| {
        json!({
            "type": format!("urn:quorun:error:{slug}"), "title": title, "status": status,
            "detail": "what is wrong in this case, and what would be right",
        })
    });
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(ProblemShape::name())))
        .example(example)
        .build();
    let mut answer = ResponseBuilder::new()
        .description(lines.join("  \n"))
        .content(PROBLEM, content)
        .build();
    match status {
        401 | 403 => refer(&mut answer, "WWW-Authenticate"),
        429 | 503 => refer(&mut answer, "Retry-After"),
        _ => {}
    }
    if of_token {
        add_standing(&mut answer);
    }
    answer
}

/// Adds an answer for each status that problems of these kinds have. `of_token`: the call needs a token.
pub fn add(operation: &mut Operation, kinds: &[String], of_token: bool) {
    let answers = &mut operation.responses.responses;
    if of_token {
        for own in answers.values_mut() {
            if let RefOr::T(own) = own {
                add_standing(own);
            }
        }
    }
    let statuses: BTreeSet<u16> = KINDS.iter().map(|kind| kind.1).collect();
    for status in statuses {
        let kinds = of_status(kinds, status);
        if kinds.is_empty() {
            continue;
        }
        let shared = SHARED
            .iter()
            .find(|(_, of, usual)| of_token && *of == status && of_status(usual, status) == kinds);
        match (answers.get_mut(&status.to_string()), shared) {
            // The call has an answer of its own with this status.
            (Some(RefOr::T(own)), _) => {
                let problem = answer(status, &kinds, of_token);
                own.description = format!("{}; or  \n{}", own.description, problem.description);
                own.content.extend(problem.content);
                own.headers.extend(problem.headers);
            }
            (_, Some((name, _, _))) => {
                let at = format!("#/components/responses/{name}");
                answers.insert(status.to_string(), RefOr::Ref(Ref::new(at)));
            }
            (_, None) => {
                let problem = answer(status, &kinds, of_token);
                answers.insert(status.to_string(), problem.into());
            }
        }
    }
}

/// Adds the headers that say how it stands with a token's rate.
fn add_standing(answer: &mut Response) {
    refer(answer, "RateLimit-Policy");
    refer(answer, "RateLimit");
}

/// Whether there is such a kind.
#[cfg(test)]
pub fn is_known(kind: &str) -> bool {
    KINDS.iter().any(|known| known.0 == kind)
}
