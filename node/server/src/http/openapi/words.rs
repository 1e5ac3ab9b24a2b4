//! Words and parts of bodies that several calls have, as the document has them.
//!
//! The words themselves belong to the ledger, which knows nothing of HTTP; a test holds these lists to its own.

#![allow(dead_code)] // they describe, and are never made

use utoipa::ToSchema;
use utoipa::openapi::schema::{AdditionalProperties, ArrayBuilder, ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Schema};

/// How far a job is.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum JobState {
    Queued,
    Running,
    Finished,
}

/// How a job, or a test case, ended.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum Verdict {
    Accepted,
    WrongAnswer,
    CompileError,
    RuntimeError,
    TimeLimit,
    MemoryLimit,
    OutputLimit,
    Cancelled,
    InternalError,
}

/// Which level of the queue a job waits in.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum Priority {
    High,
    Normal,
    Low,
}

/// Whose copy of the ledger is read: `linearizable` (the default) sees everything that was acknowledged before, `stale`
/// is this node's own copy as it is.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum Consistency {
    Linearizable,
    Stale,
}

/// How bytes stand in the answer: as text (the default), or as base64 under names that end with `_base64`.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case", as = Encoding)]
pub enum EncodingWord {
    Text,
    Base64,
}

/// What is shown beyond the usual: every test case with what was submitted.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum Include {
    Tests,
}

/// Which end of a list comes first: `newest` (the default) or `oldest`.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum Order {
    Newest,
    Oldest,
}

/// What is waited for: all of the jobs (the default), or any of them.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum Until {
    All,
    Any,
}

/// Where a language is defined: in the files of the nodes, or in the cluster.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum Origin {
    File,
    Cluster,
}

/// How a language stands on a node.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum ImageState {
    Present,
    Pulling,
    Failed,
    Unknown,
}

/// Whether a node votes.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum Role {
    Voter,
    Learner,
}

/// How the news of a job's end stands.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum DeliveryState {
    Waiting,
    Pending,
    Delivered,
    Failed,
}

/// One of the two streams of a program.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum Stream {
    Stdout,
    Stderr,
}

fn strings(least: usize, most: usize) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(least))
        .max_length(Some(most))
}

/// Arguments of a program.
pub fn args() -> RefOr<Schema> {
    ArrayBuilder::new()
        .items(strings(0, 4096))
        .max_items(Some(256))
        .description(Some("Arguments"))
        .into()
}

/// Arguments of a compiler.
pub fn compile_args() -> RefOr<Schema> {
    ArrayBuilder::new()
        .items(strings(0, 4096))
        .max_items(Some(256))
        .description(Some(
            "Arguments for the compiler, behind the language's own; only for languages that have a compile step",
        ))
        .into()
}

/// Marks to find a job by.
pub fn labels() -> RefOr<Schema> {
    ArrayBuilder::new()
        .items(strings(1, 128))
        .max_items(Some(16))
        .description(Some("Marks to find the job by; no control characters"))
        .into()
}

/// A program as the body of a request: its bytes, which are UTF-8.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
pub struct Program(String);

/// Names of a language, and extensions of its files.
pub fn names() -> RefOr<Schema> {
    ArrayBuilder::new()
        .items(strings(1, 40).pattern(Some("^[a-z0-9+#._-]+$")))
        .max_items(Some(16))
        .into()
}

/// Variables of a program.
pub fn env() -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .additional_properties(Some(AdditionalProperties::RefOr(strings(0, 4096).into())))
        .property_names(Some(strings(1, 4096).pattern(Some("^[^=\\u0000]+$"))))
        .max_properties(Some(64))
        .description(Some("Variables of the environment"))
        .into()
}

/// Headers of a callback.
pub fn callback_headers() -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .additional_properties(Some(AdditionalProperties::RefOr(
            strings(0, 1024).pattern(Some("^[ -~]*$")).into(),
        )))
        .property_names(Some(
            strings(1, 64).pattern(Some("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")),
        ))
        .max_properties(Some(16))
        .description(Some(
            "Headers to send along; none that belongs to the connection, and none that begins with Quorun-",
        ))
        .into()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use utoipa::PartialSchema;

    use super::*;

    fn words<T: PartialSchema>() -> Value {
        serde_json::to_value(T::schema()).unwrap()["enum"].clone()
    }

    #[test]
    fn the_words_are_those_of_the_ledger() {
        use quorun_ledger::{DeliveryState as Delivery, JobState as State, Priority as Level};
        let states = [State::Queued, State::Running, State::Finished].map(State::as_str);
        assert_eq!(words::<JobState>(), json!(states));
        let levels: Vec<_> = Level::ALL.iter().map(|level| level.as_str()).collect();
        assert_eq!(words::<Priority>(), json!(levels));
        let ends: Vec<_> = quorun_ledger::Verdict::ALL
            .iter()
            .map(|verdict| verdict.as_str())
            .collect();
        assert_eq!(words::<Verdict>(), json!(ends));
        let deliveries = [
            Delivery::Waiting,
            Delivery::Pending,
            Delivery::Delivered,
            Delivery::Failed,
        ];
        let deliveries = deliveries.map(Delivery::as_str);
        assert_eq!(words::<DeliveryState>(), json!(deliveries));
    }
}
