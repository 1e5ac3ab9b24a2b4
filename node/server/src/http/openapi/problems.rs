//! The problems that calls can come to, as answers of the document.

use std::collections::BTreeSet;

use utoipa::ToSchema;
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::path::Operation;
use utoipa::openapi::response::Response;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{Components, ContentBuilder, Ref, RefOr, ResponseBuilder};

use super::ProblemShape;
use crate::http::kinds::Kind;

/// The content type of every problem.
const PROBLEM: &str = "application/problem+json";

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

/// Those of the kinds that have this status, in the order of the list.
fn of_status(kinds: &[impl AsRef<str>], status: u16) -> Vec<Kind> {
    let all = Kind::ALL.iter().copied();
    all.filter(|kind| kind.described().status.as_u16() == status)
        .filter(|kind| {
            kinds
                .iter()
                .any(|one| one.as_ref() == kind.described().slug)
        })
        .collect()
}

/// The answer with a problem of one of these kinds, which have this status.
fn answer(status: u16, kinds: &[Kind], of_token: bool) -> Response {
    let lines: Vec<String> = kinds
        .iter()
        .map(|kind| kind.described())
        .map(|kind| format!("`{}`: {}", kind.slug, kind.title))
        .collect();
    let example = kinds.first().map(|kind| kind.example());
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
    let all = Kind::ALL.iter().map(|kind| kind.described());
    let statuses: BTreeSet<u16> = all.map(|kind| kind.status.as_u16()).collect();
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
