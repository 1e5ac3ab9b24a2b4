//! This API as OpenAPI 3.1 (`GET /openapi.json`), and the same for people (`GET /docs`).
//!
//! A call is described where it is handled, by `#[utoipa::path]`, and its route is made from that description, so that none
//! can be without it. What can be said of many calls is added here, from what is known anyway: the role that a call needs
//! from the table of `access`, the problems of all bodies, queries and paths, the headers of all answers. A call says only
//! which other problems it can come to (`x-problems`, which does not leave this module).

mod page;
mod problems;
pub mod words;

use std::sync::LazyLock;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::path::{Operation, ParameterIn};
use utoipa::openapi::schema::{SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{
    Components, Info, LicenseBuilder, OpenApi, PathItem, RefOr, Required, Schema,
    SecurityRequirement, ServerBuilder,
};

use super::{App, access, address};
use crate::VERSION;

/// Where a call says which problems it can come to besides those of all calls like it.
const OWN_PROBLEMS: &str = "x-problems";
/// The security scheme.
const BEARER: &str = "bearer";

/// Groups of calls, in the order in which they are shown.
const TAGS: [(&str, &str); 7] = [
    ("run", "Run a program in one request."),
    ("jobs", "Submit, look at, list and cancel jobs."),
    ("many", "Several jobs in one request."),
    (
        "live",
        "What a program prints while it runs, and talking to it.",
    ),
    ("languages", "What can be run. Changes are for admins."),
    ("cluster", "How the nodes stand. Changes are for admins."),
    ("description", "This API, described."),
];

const ABOUT: &str = "Run other people's code. Any node takes any request and answers for any job. Unknown fields and parameters are refused.\n\nErrors are problem details (RFC 9457) with a stable `type`; each call names those that it can come to.\n\nA cluster that has tokens wants one with every request, as `Authorization: Bearer TOKEN`, but for the calls that say otherwise; one that has none asks for none. Where a token has a rate, every answer says how it stands (`RateLimit`).";

/// An error (RFC 9457). Besides these members there are others, by type.
#[derive(ToSchema)]
#[schema(as = Problem)]
#[expect(dead_code, reason = "describes what `Problem` makes")]
pub struct ProblemShape {
    /// What is wrong, as a name that never changes.
    #[schema(format = "uri", pattern = "^urn:quorun:error:[a-z0-9-]+$")]
    r#type: String,
    /// The same in words.
    title: String,
    /// The status of the answer.
    status: u16,
    /// What is wrong in this case, and what would be right.
    detail: String,
    /// Which part of the request it is about.
    #[schema(nullable = false)]
    field: Option<String>,
    /// What that has.
    #[schema(nullable = false)]
    value: Option<Value>,
    /// The bound that it misses.
    #[schema(nullable = false)]
    limit: Option<f64>,
    /// The job that it is about.
    #[schema(nullable = false)]
    job: Option<String>,
}

/// The document.
#[must_use]
pub fn document() -> OpenApi {
    let mut document = super::routes().into_openapi();
    document.info = Info::builder()
        .title("Quorun")
        .version(VERSION)
        .description(Some(ABOUT))
        .license(Some(
            LicenseBuilder::new()
                .name("Apache-2.0")
                .identifier(Some("Apache-2.0"))
                .build(),
        ))
        .build();
    // Relative to where the document was fetched, so that it is the same everywhere.
    let here = ServerBuilder::new()
        .url("/")
        .description(Some("The node that was asked"));
    document.servers = Some(vec![here.build()]);
    document.tags = Some(
        TAGS.iter()
            .map(|(name, about)| {
                TagBuilder::new()
                    .name(*name)
                    .description(Some(*about))
                    .build()
            })
            .collect(),
    );
    let components = document.components.get_or_insert_with(Components::new);
    add_schemas(components);
    components.add_security_scheme(
        BEARER,
        SecurityScheme::Http(
            HttpBuilder::new()
                .scheme(HttpAuthScheme::Bearer)
                .description(Some(
                    "A token of the cluster (`quorun token new`), where it has some",
                ))
                .build(),
        ),
    );
    problems::add_shared(components);
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations(item) {
            finish(path, &method, operation);
        }
    }
    document
}

/// Schemas that no body refers to, but words do.
fn add_schemas(components: &mut Components) {
    use super::events::{OutputEvent, ReplacedEvent, ShownEvent, StateEvent, TestEvent};
    fn add<T: ToSchema>(components: &mut Components) {
        let mut schemas = vec![(T::name().into_owned(), T::schema())];
        T::schemas(&mut schemas);
        components.schemas.extend(schemas);
    }
    add::<ProblemShape>(components);
    add::<StateEvent>(components);
    add::<OutputEvent>(components);
    add::<TestEvent>(components);
    add::<ReplacedEvent>(components);
    add::<ShownEvent>(components);
    // Nor do the parameters bring theirs along.
    add::<words::Consistency>(components);
    add::<words::EncodingWord>(components);
    add::<words::Include>(components);
    add::<words::Order>(components);
}

/// The calls of a path.
pub fn operations(item: &mut PathItem) -> impl Iterator<Item = (http::Method, &mut Operation)> {
    use http::Method;
    [
        (Method::GET, item.get.as_mut()),
        (Method::PUT, item.put.as_mut()),
        (Method::POST, item.post.as_mut()),
        (Method::PATCH, item.patch.as_mut()),
        (Method::DELETE, item.delete.as_mut()),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation?)))
}

/// Adds what is known of all calls.
fn finish(path: &str, method: &http::Method, operation: &mut Operation) {
    let mut kinds = own_problems(operation);
    let role = access::role(method, path);
    let needs = role.map_or_else(
        || "Needs no token.".to_owned(),
        |role| format!("Needs a token with the role `{}`.", role.name()),
    );
    operation.description = Some(match &operation.description {
        Some(text) if !text.is_empty() => format!("{text}\n\n{needs}"),
        _ => needs,
    });
    operation.security = Some(match role {
        Some(_) => vec![SecurityRequirement::new::<_, [&str; 0], &str>(BEARER, [])],
        None => vec![],
    });
    for parameter in operation.parameters.iter_mut().flatten() {
        let RefOr::T(parameter) = parameter else {
            continue;
        };
        if let Some(schema) = &mut parameter.schema {
            not_null(schema);
        }
        match parameter.parameter_in {
            ParameterIn::Path => kinds.push("malformed-path".to_owned()),
            _ => kinds.push("invalid-request".to_owned()),
        }
    }
    if let Some(RefOr::T(body)) = &mut operation.request_body {
        for content in body.content.values_mut() {
            // What may be null here may be left out: an empty body is.
            if let RefOr::T(content) = content
                && let Some(schema) = &mut content.schema
                && not_null(schema)
            {
                body.required = Some(Required::False);
            }
        }
        let of_all = ["incomplete-body", "slow-body", "too-large", "encoded-body"];
        kinds.extend(of_all.map(ToOwned::to_owned));
        if body.content.contains_key("application/json") {
            kinds.extend(["not-json", "invalid-request"].map(ToOwned::to_owned));
        }
    }
    if role.is_some() {
        let of_tokens = [
            "no-token",
            "unknown-token",
            "not-allowed",
            "foreign-origin",
            "rate-limited",
        ];
        kinds.extend(of_tokens.map(ToOwned::to_owned));
    }
    kinds.extend(["client-busy", "node-busy"].map(ToOwned::to_owned));
    problems::add(operation, &kinds, role.is_some());
}

fn own_problems(operation: &mut Operation) -> Vec<String> {
    let Some(extensions) = &mut operation.extensions else {
        return Vec::new();
    };
    let own = extensions.remove(OWN_PROBLEMS);
    if extensions.is_empty() {
        operation.extensions = None;
    }
    let own = own.and_then(|own| serde_json::from_value(own).ok());
    own.unwrap_or_default()
}

/// A parameter that need not be there is left out: it has no word for null. Whether there was one.
fn not_null(schema: &mut RefOr<Schema>) -> bool {
    if let RefOr::T(Schema::OneOf(either)) = schema
        && let Some(some) = either.items.iter().find(|item| !is_null(item))
    {
        *schema = some.clone();
        return true;
    }
    let RefOr::T(schema) = schema else {
        return false;
    };
    let schema_type = match schema {
        Schema::Object(object) => &mut object.schema_type,
        Schema::Array(array) => &mut array.schema_type,
        _ => return false,
    };
    let SchemaType::Array(types) = schema_type else {
        return false;
    };
    let before = types.len();
    types.retain(|one| *one != Type::Null);
    let was_there = types.len() < before;
    if let [one] = types.as_slice() {
        *schema_type = SchemaType::Type(one.clone());
    }
    was_there
}

fn is_null(schema: &RefOr<Schema>) -> bool {
    matches!(schema, RefOr::T(Schema::Object(object)) if object.schema_type == SchemaType::Type(Type::Null))
}

/// The document as it is printed, and kept beside the other documents.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn printed() -> Result<String, serde_json::Error> {
    Ok(document().to_pretty_json()? + "\n")
}

/// Something that is made once, when it is asked for: most nodes are never asked.
struct Kept {
    content: Bytes,
    tag: String,
}

impl Kept {
    fn new(content: String) -> Self {
        let digest = blake3::hash(content.as_bytes()).to_hex();
        Self {
            tag: format!("\"{}\"", &digest[..16]),
            content: content.into(),
        }
    }

    fn answer(&self, asked: &HeaderMap, headers: [(HeaderName, &str); 2]) -> Response {
        let known = asked.get_all(header::IF_NONE_MATCH).iter().any(|tags| {
            let tags = tags.to_str().unwrap_or_default().split(',');
            tags.map(str::trim).any(|tag| tag == self.tag || tag == "*")
        });
        let mut response = if known {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            self.content.clone().into_response()
        };
        let of_all = [
            (header::ETAG, self.tag.as_str()),
            // It changes with the program: a look whether it has costs little.
            (header::CACHE_CONTROL, "no-cache"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        for (name, value) in headers.into_iter().chain(of_all) {
            if let Ok(value) = HeaderValue::from_str(value) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}

static JSON: LazyLock<Kept> =
    LazyLock::new(|| Kept::new(document().to_json().unwrap_or_default() + "\n"));
/// With the usual address in its examples.
static PAGE: LazyLock<Kept> = LazyLock::new(|| Kept::new(page::render(document())));

/// Get this document
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "get_openapi", tag = "description",
    description = "This API as OpenAPI 3.1. `quorun openapi` prints the same.",
    params(("If-None-Match" = Option<String>, Header, description = "The `ETag` of an earlier answer")),
    responses(
        (status = 200, description = "The document", body = Object, content_type = "application/json",
            headers(("ETag" = String, description = "Changes with the document"))),
        (status = 304, description = "It has not changed"),
    ),
)]
pub async fn json(headers: HeaderMap) -> Response {
    JSON.answer(
        &headers,
        [
            (header::CONTENT_TYPE, "application/json"),
            (header::CONTENT_SECURITY_POLICY, "default-src 'none'"),
        ],
    )
}

/// Read this document
#[utoipa::path(
    get, path = "/docs", operation_id = "get_docs", tag = "description",
    description = "The same as a page for people, whose examples have the address by which it was asked for. It needs nothing but itself.",
    params(("If-None-Match" = Option<String>, Header, description = "The `ETag` of an earlier answer")),
    responses(
        (status = 200, description = "The page", body = String, content_type = "text/html",
            headers(("ETag" = String, description = "Changes with the page"))),
        (status = 304, description = "It has not changed"),
    ),
)]
pub async fn docs(State(app): State<App>, uri: Uri, headers: HeaderMap) -> Response {
    let address = address::asked_by(&uri, &headers, app.config.access.certificate.is_some());
    let page = if address == address::USUAL {
        None
    } else {
        let usual = std::str::from_utf8(&PAGE.content).unwrap_or_default();
        Some(Kept::new(page::at(usual, &address)))
    };
    page.as_ref().unwrap_or(&PAGE).answer(
        &headers,
        [
            (header::CONTENT_TYPE, "text/html; charset=utf-8"),
            (header::CONTENT_SECURITY_POLICY, page::policy()),
        ],
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::super::kinds::Kind;
    use super::*;

    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");

    #[test]
    fn the_document_is_as_it_is_written_down() {
        let made = printed().unwrap();
        let kept = std::fs::read_to_string(GOLDEN).unwrap_or_default();
        assert!(
            made == kept,
            "docs/openapi.json is not what the code makes; write it anew and look at what has changed: cargo run -- openapi > docs/openapi.json"
        );
    }

    /// Every `$ref` of a document.
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(object) => {
                if let Some(Value::String(at)) = object.get("$ref") {
                    found.insert(at.clone());
                }
                object.values().for_each(|value| references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn whatever_is_referred_to_is_there() {
        let document = serde_json::to_value(document()).unwrap();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.len() > 50);
        for at in found {
            let there = document.pointer(at.trim_start_matches('#'));
            assert!(there.is_some(), "{at}");
        }
    }

    #[test]
    fn calls_name_problems_that_there_are() {
        let mut document = super::super::routes().into_openapi();
        let mut named = 0;
        for item in document.paths.paths.values_mut() {
            for (_, operation) in operations(item) {
                for kind in own_problems(operation) {
                    assert!(Kind::of_slug(&kind).is_some(), "{kind}");
                    named += 1;
                }
            }
        }
        assert!(named > 50);
    }

    #[test]
    fn calls_have_names_and_bodies_have_examples() {
        let document = serde_json::to_value(document()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let calls = paths.values().flat_map(|item| item.as_object().unwrap());
        let mut ids = BTreeSet::new();
        for (path, item) in paths {
            for method in item.as_object().unwrap().keys() {
                let route = (method.to_uppercase(), path);
                let mut counted = crate::metrics::ROUTES.iter();
                let is_counted = counted.any(|(m, p)| *m == route.0 && p == route.1);
                assert!(is_counted, "/metrics does not count {route:?}");
            }
        }
        for (method, call) in calls {
            let id = call["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "{id} is there twice");
            let tag = call["tags"][0].as_str().unwrap();
            assert!(TAGS.iter().any(|(known, _)| *known == tag), "{id}: {tag}");
            assert!(call["summary"].is_string(), "{id}");
            if let Some(body) = call.get("requestBody") {
                assert!(method != "get" && method != "delete", "{id}");
                for content in body["content"].as_object().unwrap().values() {
                    let there = content.get("example").or(content.get("examples"));
                    assert!(there.is_some(), "{id}: no example of a body");
                }
            }
            // The document is its own example, and so is its page.
            if tag == "description" {
                continue;
            }
            for (status, answer) in call["responses"].as_object().unwrap() {
                for (media, content) in answer["content"].as_object().into_iter().flatten() {
                    assert!(content.get("example").is_some(), "{id}: {status} {media}");
                }
            }
        }
        assert_eq!(ids.len(), 33);
    }

    /// What the attributes of the descriptions repeat, because they take no constants.
    #[test]
    fn bounds_are_those_of_the_decoders() {
        use super::super::{batch, interactive, judging, list, many, submission};
        let document = serde_json::to_value(document()).unwrap();
        let of = |at: &str| {
            let at = format!("/components/schemas/{at}");
            let there = document.pointer(&at);
            there.unwrap_or_else(|| panic!("{at}")).clone()
        };
        for (at, bound) in [
            (
                "Submission/properties/files/maxItems",
                submission::MAX_FILES,
            ),
            (
                "CheckerObject/properties/files/maxItems",
                submission::MAX_FILES,
            ),
            ("Submission/properties/args/maxItems", submission::MAX_ARGS),
            (
                "Submission/properties/args/items/maxLength",
                submission::MAX_WORD,
            ),
            (
                "Submission/properties/env/maxProperties",
                submission::MAX_ENV,
            ),
            (
                "Submission/properties/labels/maxItems",
                submission::MAX_LABELS,
            ),
            (
                "Submission/properties/labels/items/maxLength",
                submission::MAX_LABEL,
            ),
            (
                "Submission/properties/isolation_key/maxLength",
                submission::MAX_ISOLATION_KEY,
            ),
            ("Submission/properties/tests/maxItems", judging::MAX_TESTS),
            (
                "Submission/properties/outputs/maxItems",
                judging::MAX_OUTPUTS,
            ),
            ("TestCase/properties/name/maxLength", judging::MAX_NAME),
            (
                "TestCase/properties/weight/maximum",
                judging::MAX_WEIGHT as usize,
            ),
            (
                "Terminal/properties/rows/maximum",
                interactive::MOST as usize,
            ),
            ("Batch/properties/jobs/maxItems", batch::MAX_JOBS),
            ("WaitForJobs/properties/ids/maxItems", many::MAX_IDS),
            ("CancelJobs/properties/ids/maxItems", many::MAX_IDS),
        ] {
            assert_eq!(of(at), bound, "{at}");
        }
        let least = serde_json::to_value(crate::config::LEAST).unwrap();
        for (name, least) in least.as_object().unwrap() {
            let described = of(&format!("Limits/properties/{name}/minimum"));
            assert_eq!(described, *least, "{name}");
        }
        let parameter = |path: &str, method: &str, name: &str| {
            let parameters = document["paths"][path][method]["parameters"].as_array();
            let mut parameters = parameters.unwrap().iter();
            parameters.find(|p| p["name"] == name).unwrap()["schema"].clone()
        };
        for (method, most) in [("get", list::MAX_PAGE), ("delete", list::MAX_CANCELLED)] {
            let limit = parameter("/v1/jobs", method, "limit");
            assert_eq!(limit["maximum"], most, "{method}");
        }
        for path in ["/v1/jobs", "/v1/jobs/batch", "/lang/{language}"] {
            let key = parameter(path, "post", "Idempotency-Key");
            assert_eq!(key["maxLength"], submission::MAX_KEY);
        }
    }
}
