//! Queries: which parameters a call takes, what is said of others, and what the values are.
//!
//! What a call takes stands in its description, and a parameter that does not is refused before its handler sees the request:
//! a filter with a slip in its name would otherwise be none. What is for probes and people (`/healthz`, `/docs`) takes anything:
//! what asks there has parameters of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{MatchedPath, Query, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::Method;
use utoipa::openapi::path::{Operation, ParameterIn};
use utoipa::openapi::{OpenApi, RefOr};

use super::gate;
use super::openapi::operations;
use super::problem::{Problem, cut};

/// Parameters that one request may have.
const MAX_PARAMETERS: usize = 100;
/// What is quoted of the name of a parameter, characters.
const NAME: usize = 100;

/// A query as its handler gets it.
pub type Asked = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// What to say of a query that could not be read.
fn query_is_wrong(error: &QueryRejection) -> Problem {
    Problem::invalid("query", error.body_text())
}

/// Which parameters the calls take, by route and method.
#[derive(Debug)]
pub struct Takes(BTreeMap<String, Vec<(Method, Vec<String>)>>);

impl Takes {
    /// Those of the calls that are described.
    pub fn described(document: &mut OpenApi) -> Self {
        let mut takes = BTreeMap::new();
        for (path, item) in &mut document.paths.paths {
            if !path.starts_with("/v1/") && !path.starts_with("/lang/") {
                continue;
            }
            let calls = operations(item).map(|(method, operation)| (method, parameters(operation)));
            takes.insert(path.clone(), calls.collect());
        }
        Self(takes)
    }

    /// What is wrong with the names of a request's parameters, if anything is.
    fn refuses(&self, request: &Request) -> Option<Problem> {
        request.uri().query().filter(|query| !query.is_empty())?;
        let route = request.extensions().get::<MatchedPath>()?.as_str();
        let asks = match request.method() {
            &Method::HEAD => &Method::GET,
            method => method,
        };
        let calls = self.0.get(route)?.iter();
        let (_, known) = calls.clone().find(|(method, _)| method == asks)?;
        let query: Asked = Query::try_from_uri(request.uri());
        let Query(pairs) = match query {
            Ok(query) => query,
            Err(error) => return Some(query_is_wrong(&error)),
        };
        let (name, _) = pairs.into_iter().find(|(name, _)| !known.contains(name))?;
        let takes = match &known[..] {
            [] => "takes none".to_owned(),
            known => format!("takes {}", known.join(", ")),
        };
        let detail = format!(
            "unknown parameter `{}`; {asks} {route} {takes}",
            cut(&name, NAME)
        );
        let field = if name.is_empty() { "query" } else { &name };
        Some(Problem::invalid(field, detail))
    }
}

/// The names of a call's parameters.
fn parameters(operation: &Operation) -> Vec<String> {
    let described = operation.parameters.iter().flatten();
    let of_query = described.filter_map(|parameter| match parameter {
        RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Query => {
            Some(parameter.name.clone())
        }
        _ => None,
    });
    of_query.collect()
}

/// Lets a request through whose parameters are all among those that its call takes.
pub async fn known(State(takes): State<Arc<Takes>>, request: Request, next: Next) -> Response {
    let Some(problem) = takes.refuses(&request) else {
        return next.run(request).await;
    };
    let (parts, body) = request.into_parts();
    gate::turn_away(problem, &parts.headers, body)
        .await
        .into_response()
}

/// The parameters of a query, in their order.
#[derive(Debug)]
pub struct Parameters {
    pairs: Vec<(String, String)>,
}

impl Parameters {
    /// Takes a query, whose names were [looked at](known) before.
    pub fn new(query: Asked) -> Result<Self, Problem> {
        let Query(pairs) = query.map_err(|error| query_is_wrong(&error))?;
        let count = pairs.len() as u64;
        if pairs.len() > MAX_PARAMETERS {
            return Err(Problem::over_limit("query", count, MAX_PARAMETERS as u64));
        }
        Ok(Self { pairs })
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        let of_name = self.pairs.iter().filter(move |(key, _)| key == name);
        of_name.map(|(_, value)| value.as_str())
    }

    /// The value of a parameter that may be there once.
    pub fn one(&self, name: &str) -> Result<Option<&str>, Problem> {
        let mut values = self.all(name);
        let value = values.next();
        if values.next().is_some() {
            let detail = format!("{name} is there more than once; send it once");
            let count = self.all(name).count();
            return Err(Problem::invalid(name, detail)
                .with("value", count)
                .with("limit", 1));
        }
        Ok(value)
    }

    /// The value of a parameter that is yes or no.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, Problem> {
        self.one(name)?
            .map(|value| match value {
                "true" => Ok(true),
                "false" => Ok(false),
                other => Err(Problem::no_such(name, other, "true or false")),
            })
            .transpose()
    }

    /// The values of a parameter that may be there several times, and may name several of a few words, with commas between.
    pub fn set<T: Ord>(
        &self,
        name: &str,
        should: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<BTreeSet<T>, Problem> {
        self.all(name)
            .flat_map(|value| value.split(','))
            .map(|word| parse(word).ok_or_else(|| Problem::no_such(name, word, should)))
            .collect()
    }
}
