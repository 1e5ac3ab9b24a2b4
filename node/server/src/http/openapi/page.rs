//! The document as a page: one piece of HTML without a script, so that it works everywhere and nothing of it is fetched from
//! elsewhere. Its style is part of it, and its policy admits that and nothing more.

use std::fmt::Write as _;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use utoipa::openapi::content::Content;
use utoipa::openapi::example::Example;
use utoipa::openapi::path::{Operation, Parameter, ParameterIn};
use utoipa::openapi::response::Response;
use utoipa::openapi::schema::{
    AdditionalProperties, ArrayItems, Object, SchemaFormat, SchemaType, Type,
};
use utoipa::openapi::{OpenApi, RefOr, Required, Schema};

use super::address;

const STYLE: &str = include_str!("page.css");

static POLICY: LazyLock<String> = LazyLock::new(|| {
    let style = BASE64.encode(Sha256::digest(STYLE));
    format!(
        "default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
});

/// What the page may do, for `Content-Security-Policy`.
pub fn policy() -> &'static str {
    &POLICY
}

/// A call, with where it is.
struct Call<'a> {
    method: http::Method,
    path: &'a str,
    operation: &'a Operation,
}

impl Call<'_> {
    fn id(&self) -> &str {
        self.operation.operation_id.as_deref().unwrap_or_default()
    }

    fn summary(&self) -> &str {
        self.operation.summary.as_deref().unwrap_or_default()
    }

    fn is_of(&self, tag: &str) -> bool {
        let mut tags = self.operation.tags.iter().flatten();
        tags.any(|of| of == tag)
    }
}

/// Shows a document.
pub fn render(mut document: OpenApi) -> String {
    let calls = document.paths.paths.iter_mut().flat_map(|(path, item)| {
        super::operations(item).map(move |(method, operation)| Call {
            method,
            path,
            operation,
        })
    });
    let calls: Vec<Call<'_>> = calls.collect();
    let tags: Vec<_> = document.tags.iter().flatten().collect();
    let components = document.components.as_ref();
    let schemas = components.map(|c| &c.schemas);
    let shared = |answer: &str| components.and_then(|c| c.responses.get(answer));
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>Quorun API</title><style>{STYLE}</style></head><body>\n<nav><strong>Quorun API</strong>"
    );
    for tag in &tags {
        let _ = write!(html, "<h2>{}</h2>", escaped(&tag.name));
        for call in calls.iter().filter(|call| call.is_of(&tag.name)) {
            let (id, summary) = (escaped(call.id()), escaped(call.summary()));
            let _ = write!(html, "<a href=\"#{id}\">{summary}</a>");
        }
    }
    let _ = write!(
        html,
        "<h2>more</h2><a href=\"#schemas\">Schemas</a><a href=\"/openapi.json\">openapi.json</a></nav>\n\
         <main><h1>{} API <small>{}</small></h1>{}",
        escaped(&document.info.title),
        escaped(&document.info.version),
        prose(document.info.description.as_deref().unwrap_or_default()),
    );
    for tag in &tags {
        let about = tag.description.as_deref().unwrap_or_default();
        let _ = write!(
            html,
            "\n<section><h2>{}</h2><div class=\"about\">{}</div>",
            escaped(&tag.name),
            prose(about)
        );
        for call in calls.iter().filter(|call| call.is_of(&tag.name)) {
            show_call(&mut html, call, &shared);
        }
        html += "</section>";
    }
    html += "\n<section id=\"schemas\"><h2>Schemas</h2>";
    for (name, schema) in schemas.into_iter().flatten() {
        if let RefOr::T(schema) = schema {
            show_schema(&mut html, name, schema);
        }
    }
    html += "</section></main></body></html>\n";
    html
}

/// The page with another address in its examples.
pub fn at(page: &str, address: &str) -> String {
    // As `curl` has written it: in quotes. Nothing in an address needs to be escaped.
    let quoted = |address: &str| format!("{}{address}/", escaped(" '"));
    page.replace(&quoted(address::USUAL), &quoted(address))
}

fn show_call<'a>(
    html: &mut String,
    call: &Call<'_>,
    shared: &impl Fn(&str) -> Option<&'a RefOr<Response>>,
) {
    let operation = call.operation;
    let method = call.method.as_str();
    let _ = write!(
        html,
        "\n<details><summary><span class=\"method {}\">{method}</span><code>{}</code><span class=\"says\">{}</span></summary>\
         <div id=\"{}\">{}",
        method.to_ascii_lowercase(),
        escaped(call.path),
        escaped(call.summary()),
        escaped(call.id()),
        prose(operation.description.as_deref().unwrap_or_default()),
    );
    let parameters: Vec<&Parameter> = operation
        .parameters
        .iter()
        .flatten()
        .filter_map(inner)
        .collect();
    if !parameters.is_empty() {
        *html +=
            "<h3>Parameters</h3><table><tr><th>name</th><th>in</th><th>type</th><th></th></tr>";
        for parameter in parameters {
            let place = match parameter.parameter_in {
                ParameterIn::Path => "path",
                ParameterIn::Header => "header",
                ParameterIn::Cookie => "cookie",
                _ => "query",
            };
            let _ = write!(
                html,
                "<tr><td><code>{}</code>{}</td><td>{place}</td><td class=\"type\">{}</td><td>{}</td></tr>",
                escaped(&parameter.name),
                must(parameter.required == Required::True),
                parameter.schema.as_ref().map(kind).unwrap_or_default(),
                prose(parameter.description.as_deref().unwrap_or_default()),
            );
        }
        *html += "</table>";
    }
    let body = operation.request_body.as_ref().and_then(inner);
    if let Some(body) = body {
        for (media, content) in &body.content {
            let Some(content) = inner(content) else {
                continue;
            };
            let _ = write!(
                html,
                "<h3>Body</h3><p><code>{}</code> <span class=\"type\">{}</span>{}</p>{}",
                escaped(media),
                content.schema.as_ref().map(kind).unwrap_or_default(),
                must(body.required == Some(Required::True)),
                prose(body.description.as_deref().unwrap_or_default()),
            );
            for (about, value) in examples(content) {
                let _ = write!(html, "<p class=\"about\">{}</p>", escaped(about));
                let _ = write!(html, "<pre>{}</pre>", escaped(&text(value)));
            }
        }
    }
    let _ = write!(
        html,
        "<h3>With curl</h3><pre>{}</pre><h3>Answers</h3>\
         <table><tr><th>status</th><th></th><th>body</th></tr>",
        escaped(&curl(call)),
    );
    let mut shown = Vec::new();
    for (status, answer) in &operation.responses.responses {
        let answer = match answer {
            RefOr::T(answer) => Some(answer),
            RefOr::Ref(to) => {
                shared(to.ref_location.rsplit('/').next().unwrap_or_default()).and_then(inner)
            }
        };
        let Some(answer) = answer else { continue };
        let names: Vec<String> = answer
            .headers
            .keys()
            .map(|name| format!("<code>{}</code>", escaped(name)))
            .collect();
        let mut bodies = Vec::new();
        for (media, content) in &answer.content {
            let Some(content) = inner(content) else {
                continue;
            };
            let schema = content.schema.as_ref().map(kind).unwrap_or_default();
            bodies.push(format!(
                "<code>{}</code><br><span class=\"type\">{schema}</span>",
                escaped(media)
            ));
            if status.starts_with('2') {
                shown.extend(examples(content).map(|(_, value)| (status, value)));
            }
        }
        let _ = write!(
            html,
            "<tr><td><code>{status}</code></td><td>{}<span class=\"type\">{}</span></td><td>{}</td></tr>",
            prose(&answer.description),
            names.join(" "),
            bodies.join("<br>"),
        );
    }
    *html += "</table>";
    for (status, value) in shown {
        let _ = write!(
            html,
            "<h3>Example of {status}</h3><pre>{}</pre>",
            escaped(&text(value))
        );
    }
    *html += "</div></details>";
}

fn show_schema(html: &mut String, name: &str, schema: &Schema) {
    let _ = write!(
        html,
        "\n<div class=\"schema\" id=\"schema-{0}\"><h3>{0}</h3>",
        escaped(name)
    );
    match schema {
        Schema::Object(object) => {
            *html += &prose(object.description.as_deref().unwrap_or_default());
            if object.properties.is_empty() {
                let _ = write!(html, "<p class=\"type\">{}</p>", of_object(object));
            } else {
                *html += "<table><tr><th>field</th><th>type</th><th></th></tr>";
                for (field, schema) in &object.properties {
                    let _ = write!(
                        html,
                        "<tr><td><code>{}</code>{}</td><td class=\"type\">{}</td><td>{}</td></tr>",
                        escaped(field),
                        must(object.required.contains(field)),
                        kind(schema),
                        prose(&description(schema)),
                    );
                }
                *html += "</table>";
            }
        }
        Schema::OneOf(either) => {
            *html += &prose(either.description.as_deref().unwrap_or_default());
            let _ = write!(
                html,
                "<p class=\"type\">{}</p>",
                kind(&RefOr::T(schema.clone()))
            );
        }
        _ => {
            let _ = write!(
                html,
                "<p class=\"type\">{}</p>",
                kind(&RefOr::T(schema.clone()))
            );
        }
    }
    *html += "</div>";
}

/// A call as somebody would type it.
fn curl(call: &Call<'_>) -> String {
    let mut line = "curl".to_owned();
    let body = call.operation.request_body.as_ref().and_then(inner);
    if !(call.method == http::Method::GET || call.method == http::Method::POST && body.is_some()) {
        let _ = write!(line, " -X {}", call.method);
    }
    let is_open = call.operation.security.as_ref().is_none_or(Vec::is_empty);
    if !is_open {
        line += " -H \"Authorization: Bearer $TOKEN\"";
    }
    if let Some((media, content)) = body.and_then(|body| body.content.iter().next()) {
        let example = inner(content).and_then(|content| examples(content).next());
        let (name, value) = match example {
            Some((_, Value::String(text))) => ("--data-binary", text.clone()),
            Some((_, value)) => ("-d", value.to_string()),
            None => ("-d", String::new()),
        };
        let value = value.replace('\'', "'\\''");
        let _ = write!(
            line,
            " \\\n  -H 'Content-Type: {media}' {name} '{value}' \\\n "
        );
    }
    let path = call
        .path
        .replace("{language}", "python")
        .replace("{name}", "lua");
    let id = if path.starts_with("/v1/jobs") {
        "01900000-0000-7000-8000-000000000000"
    } else {
        "3"
    };
    let path = path.replace("{id}", id);
    let _ = write!(line, " '{}{path}'", address::USUAL);
    line
}

fn examples(content: &Content) -> impl Iterator<Item = (&str, &Value)> {
    let one = content.example.iter().map(|value| ("", value));
    let more = content.examples.values().filter_map(|example| {
        let Example { summary, value, .. } = inner(example)?;
        Some((summary.as_str(), value.as_ref()?))
    });
    one.chain(more)
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        value => format!("{value:#}"),
    }
}

const fn inner<T>(one: &RefOr<T>) -> Option<&T> {
    match one {
        RefOr::T(one) => Some(one),
        RefOr::Ref(_) => None,
    }
}

const fn must(required: bool) -> &'static str {
    if required {
        " <span class=\"must\">needed</span>"
    } else {
        ""
    }
}

fn description(schema: &RefOr<Schema>) -> String {
    let said = match schema {
        RefOr::Ref(to) => return to.description.clone(),
        RefOr::T(Schema::Object(object)) => &object.description,
        RefOr::T(Schema::Array(array)) => &array.description,
        RefOr::T(Schema::OneOf(either)) => {
            return either.items.iter().map(description).collect();
        }
        RefOr::T(_) => &None,
    };
    said.clone().unwrap_or_default()
}

/// The type of something, with its bounds.
fn kind(schema: &RefOr<Schema>) -> String {
    match schema {
        RefOr::Ref(to) => {
            let name = escaped(to.ref_location.rsplit('/').next().unwrap_or_default());
            format!("<a href=\"#schema-{name}\">{name}</a>")
        }
        RefOr::T(Schema::Object(object)) => of_object(object),
        RefOr::T(Schema::Array(array)) => {
            let items = match &array.items {
                ArrayItems::RefOrSchema(items) => kind(items),
                ArrayItems::False => String::new(),
            };
            let or_null = if has_null(&array.schema_type) {
                ", or null"
            } else {
                ""
            };
            let bounds = range(array.min_items, array.max_items, "items");
            format!("list of {items}{bounds}{or_null}")
        }
        RefOr::T(Schema::OneOf(either)) => {
            let items: Vec<String> = either.items.iter().map(kind).collect();
            items.join(" or ")
        }
        RefOr::T(_) => "any".to_owned(),
    }
}

fn of_object(object: &Object) -> String {
    if let Some(words) = &object.enum_values {
        let words: Vec<String> = words
            .iter()
            .map(|word| format!("<code>{}</code>", escaped(&text(word))))
            .collect();
        return words.join(" ");
    }
    let types: Vec<&str> = match &object.schema_type {
        SchemaType::Type(one) => vec![word(one)],
        SchemaType::Array(types) => types.iter().map(word).collect(),
        SchemaType::AnyValue => vec!["any"],
    };
    let mut said = types.join(" or ");
    if let Some(AdditionalProperties::RefOr(of)) = object.additional_properties.as_deref() {
        said = format!("names to {}", kind(of));
    }
    if let Some(SchemaFormat::Custom(format)) = &object.format {
        let _ = write!(said, " ({})", escaped(format));
    } else if let Some(SchemaFormat::KnownFormat(format)) = &object.format
        && let Ok(Value::String(format)) = serde_json::to_value(format)
        && !matches!(format.as_str(), "int32" | "int64" | "double")
    {
        let _ = write!(said, " ({})", escaped(&format));
    }
    if object.content_encoding == "base64" {
        said += " (base64)";
    }
    let number = |number: &Option<utoipa::Number>| {
        let number = serde_json::to_value(number.as_ref()?).ok()?;
        number.as_f64()
    };
    said += &match (number(&object.minimum), number(&object.maximum)) {
        (Some(least), Some(most)) => format!(", {least} to {most}"),
        (Some(least), None) if least > 0.0 => format!(", at least {least}"),
        (None, Some(most)) => format!(", at most {most}"),
        (Some(_) | None, None) => String::new(),
    };
    said + &range(object.min_length, object.max_length, "characters")
}

fn range(least: Option<usize>, most: Option<usize>, what: &str) -> String {
    match (least, most) {
        (Some(least), Some(most)) => format!(", {least} to {most} {what}"),
        (None, Some(most)) => format!(", at most {most} {what}"),
        (Some(least), None) => format!(", at least {least} {what}"),
        (None, None) => String::new(),
    }
}

fn has_null(types: &SchemaType) -> bool {
    matches!(types, SchemaType::Array(types) if types.contains(&Type::Null))
}

const fn word(one: &Type) -> &'static str {
    match one {
        Type::Object => "object",
        Type::String => "string",
        Type::Integer => "integer",
        Type::Number => "number",
        Type::Boolean => "boolean",
        Type::Array => "list",
        Type::Null => "null",
    }
}

/// Text in which nothing is HTML.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            '\'' => safe += "&#39;",
            c => safe.push(c),
        }
    }
    safe
}

/// The little of Markdown that descriptions have: paragraphs, ends of lines, and code.
fn prose(text: &str) -> String {
    let mut html = String::new();
    for paragraph in text.split("\n\n").filter(|p| !p.trim().is_empty()) {
        html += "<p>";
        for (n, part) in paragraph.split('`').enumerate() {
            let part = escaped(part).replace("  \n", "<br>");
            if n % 2 == 1 {
                let _ = write!(html, "<code>{part}</code>");
            } else {
                html += &part;
            }
        }
        html += "</p>";
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_and_every_schema_is_there() {
        let mut document = super::super::document();
        let page = render(document.clone());
        for item in document.paths.paths.values_mut() {
            for (_, operation) in super::super::operations(item) {
                let id = operation.operation_id.clone().unwrap();
                assert!(page.contains(&format!("<div id=\"{id}\">")), "{id}");
                assert!(page.contains(&format!("<a href=\"#{id}\">")), "{id}");
            }
        }
        for (n, part) in page.split("href=\"#").enumerate().skip(1) {
            let target = part.split('"').next().unwrap();
            assert!(page.contains(&format!("id=\"{target}\"")), "{n}: {target}");
        }
        // Nothing is fetched, and nothing runs.
        for never in ["<script", "src=", "@import", "url(", "style=\""] {
            assert!(!page.contains(never), "{never}");
        }
    }

    #[test]
    fn all_examples_have_the_address_that_was_asked() {
        let page = render(super::super::document());
        let calls = page.matches("With curl").count();
        assert!(calls > 30);
        assert_eq!(page.matches(address::USUAL).count(), calls);
        let page = at(&page, "https://judge.example");
        assert!(!page.contains(address::USUAL));
        assert_eq!(page.matches(" &#39;https://judge.example/").count(), calls);
    }

    #[test]
    fn text_is_never_html() {
        assert_eq!(escaped("<a b='\"&"), "&lt;a b=&#39;&quot;&amp;");
        assert_eq!(
            prose("a `<b>`  \nc\n\nd"),
            "<p>a <code>&lt;b&gt;</code><br>c</p><p>d</p>"
        );
    }

    #[test]
    fn the_policy_admits_the_style_of_the_page() {
        let digest = BASE64.encode(Sha256::digest(STYLE));
        assert!(policy().contains(&digest));
        assert!(render(super::super::document()).contains(&format!("<style>{STYLE}</style>")));
    }
}
