//! Queries whose parameters may come several times, which say by name what they do not take.

use std::collections::BTreeSet;

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;

use super::problem::{Problem, cut};

/// Parameters that one request may have.
const MAX_PARAMETERS: usize = 100;

/// What to say of a query that could not be read: the words of whoever tried say what it takes.
pub fn query_is_wrong(error: &QueryRejection) -> Problem {
    Problem::invalid("query", error.body_text())
}

/// The parameters of a query, in their order.
#[derive(Debug)]
pub struct Parameters {
    pairs: Vec<(String, String)>,
}

impl Parameters {
    /// Takes a query whose parameters all have one of these names.
    pub fn new(
        query: Result<Query<Vec<(String, String)>>, QueryRejection>,
        known: &[&str],
    ) -> Result<Self, Problem> {
        let Query(pairs) = query.map_err(|error| query_is_wrong(&error))?;
        if let Some((name, _)) = pairs
            .iter()
            .find(|(name, _)| !known.contains(&name.as_str()))
        {
            let known = known.join(", ");
            let named = cut(name, 100);
            let detail = format!("unknown parameter `{named}`; this path takes {known}");
            return Err(Problem::invalid("query", detail).with("value", name.as_str()));
        }
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
