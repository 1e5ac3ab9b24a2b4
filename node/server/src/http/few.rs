//! Lists and maps that are counted while they are read. What is next to nothing in JSON (`["","",…]`) can be large in memory,
//! so nothing is kept of one that has too many; the rest is only counted, to say how many there were.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A list of at most `MOST` items.
#[derive(Debug)]
pub struct Few<T, const MOST: usize>(pub Vec<T>);

/// A map of at most `MOST` entries.
#[derive(Debug)]
pub struct FewNamed<T, const MOST: usize>(pub BTreeMap<String, T>);

impl<T, const MOST: usize> Default for Few<T, MOST> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T, const MOST: usize> Default for FewNamed<T, MOST> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

/// How the message begins that [`too_many`] knows; a parser may put more behind it.
const BEGINS: &str = "too many: ";

fn refused<E: Error>(count: usize, most: usize) -> E {
    E::custom(format!("{BEGINS}{count} of {most}"))
}

/// How many there were, and may be, if that is what a message is about.
pub fn too_many(message: &str) -> Option<(usize, usize)> {
    let mut words = message.strip_prefix(BEGINS)?.split(' ');
    let count = words.next()?.parse().ok()?;
    let most = words.nth(1)?.parse().ok()?;
    Some((count, most))
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Few<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counting<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Counting<T, MOST> {
            type Value = Few<T, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MOST}")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while items.len() < MOST {
                    match list.next_element()? {
                        Some(item) => items.push(item),
                        None => return Ok(Few(items)),
                    }
                }
                let mut count = MOST;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                if count > MOST {
                    return Err(refused(count, MOST));
                }
                Ok(Few(items))
            }
        }
        deserializer.deserialize_seq(Counting(PhantomData))
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for FewNamed<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counting<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Counting<T, MOST> {
            type Value = FewNamed<T, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a map of at most {MOST} entries")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = BTreeMap::new();
                let mut count = 0;
                while count < MOST {
                    match map.next_entry()? {
                        Some((name, value)) => entries.insert(name, value),
                        None => return Ok(FewNamed(entries)),
                    };
                    count += 1;
                }
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    count += 1;
                }
                if count > MOST {
                    return Err(refused(count, MOST));
                }
                Ok(FewNamed(entries))
            }
        }
        deserializer.deserialize_map(Counting(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use serde_json::{Value, json};

    use super::super::body;
    use super::*;

    thread_local! {
        static MADE: Cell<usize> = const { Cell::new(0) };
    }

    /// Says how many of it were made.
    #[derive(Debug)]
    struct Counted;

    impl<'de> Deserialize<'de> for Counted {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            MADE.set(MADE.get() + 1);
            String::deserialize(deserializer).map(|_| Self)
        }
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Request {
        list: Few<Counted, 3>,
        map: FewNamed<Counted, 2>,
    }

    fn read(body: &Value) -> Result<(usize, usize), Value> {
        MADE.set(0);
        match body::json::<Request>(body.to_string().as_bytes()) {
            Ok(Request { list, map }) => Ok((list.0.len(), map.0.len())),
            Err(problem) => Err(problem.to_json()),
        }
    }

    #[test]
    fn what_is_too_many_is_counted_and_not_made() {
        let full = json!({ "list": ["", "", ""], "map": { "a": "", "b": "" } });
        assert_eq!(read(&full).unwrap(), (3, 2));
        assert_eq!(read(&json!({})).unwrap(), (0, 0));
        let problem = read(&json!({ "list": vec![""; 100_000] })).unwrap_err();
        assert_eq!(MADE.get(), 3);
        let members = |problem: &Value| {
            ["field", "value", "limit", "detail"].map(|member| problem[member].clone())
        };
        let says = "list has 100000 items; at most 3 are allowed";
        let expected = [json!("list"), json!(100_000), json!(3), json!(says)];
        assert_eq!(members(&problem), expected);
        let map: serde_json::Map<_, _> = (0..9).map(|n| (n.to_string(), json!(""))).collect();
        let problem = read(&json!({ "map": map })).unwrap_err();
        assert_eq!(MADE.get(), 2);
        let says = "map has 9 items; at most 2 are allowed";
        let expected = [json!("map"), json!(9), json!(2), json!(says)];
        assert_eq!(members(&problem), expected);
        // What is wrong in another way is said as ever, also where only counting is done.
        for (body, field) in [
            (json!({ "list": ["", 1] }), "list[1]"),
            (json!({ "list": "" }), "list"),
            (json!({ "map": [] }), "map"),
            (json!({ "map": { "a": 1 } }), "map.a"),
        ] {
            assert_eq!(read(&body).unwrap_err()["field"], field, "{body}");
        }
        let cut = r#"{"list":["","","","","#;
        let problem = body::json::<Request>(cut.as_bytes()).unwrap_err();
        assert_eq!(problem.to_json()["type"], "urn:quorun:error:not-json");
    }

    #[test]
    fn a_message_of_something_else_is_none_of_these() {
        assert_eq!(too_many("too many: 9 of 2"), Some((9, 2)));
        assert_eq!(
            too_many("too many: 9 of 2 at line 1 column 70"),
            Some((9, 2))
        );
        for other in [
            "",
            "too many: ",
            "too many: x of 2",
            "more than 2",
            "too many: 9",
        ] {
            assert_eq!(too_many(other), None, "{other}");
        }
    }
}
