//! The names of JSON fields, in what all commands print: each says its unit, and always the same.

use crate::table::TABLE;
use crate::world::{Run, world};
use serde_json::Value;
use std::collections::BTreeMap;

/// Ends of names, and how to say it instead.
const FORBIDDEN: &[(&str, &str)] = &[
    ("_kib", "_bytes"),
    ("_mb", "_bytes"),
    ("_mib", "_bytes"),
    ("_ms", "_us"),
    ("_page", "_frames"),
    ("_pages", "_frames"),
    ("_s", "_seconds"),
    ("_secs", "_seconds"),
];

/// Ends of names whose values are numbers, or objects of such.
const UNITS: &[&str] = &["_bytes", "_frames", "_ns", "_us", "_seconds"];

/// Commands that print JSON, and take little time.
const COMMANDS: &[&str] = &[
    "check",
    "color",
    "dedup",
    "demo",
    "explain",
    "map",
    "pull",
    "record inspect",
    "record translate",
    "replay",
    "tune",
];

/// All values by the names of their fields, at any depth.
fn fields<'a>(value: &'a Value, all: &mut Vec<(&'a str, &'a Value)>) {
    match value {
        Value::Object(object) => {
            for (name, inner) in object {
                all.push((name, inner));
                fields(inner, all);
            }
        }
        Value::Array(array) => array.iter().for_each(|inner| fields(inner, all)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn is_of_numbers(value: &Value) -> bool {
    match value {
        Value::Number(_) | Value::Null => true,
        Value::Object(object) => object.values().all(is_of_numbers),
        Value::Bool(_) | Value::String(_) | Value::Array(_) => false,
    }
}

/// What the command prints as JSON: one value, or one on each line.
fn printed(words: &str) -> Vec<Value> {
    let entry = TABLE.iter().find(|entry| entry.words == words).unwrap();
    let mut run = Run::new(entry, &[entry.run, &["--json"]].concat());
    let output = run.command.stdout(std::process::Stdio::piped()).output().unwrap();
    let values = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
    let values: Result<Vec<_>, _> = values.collect();
    values.unwrap_or_else(|error| panic!("{words}: {error}"))
}

#[test]
fn names_of_json_fields_say_their_units() {
    let _world = world();
    let mut strings: BTreeMap<String, &str> = BTreeMap::new();
    let mut numbers: BTreeMap<String, &str> = BTreeMap::new();
    for words in COMMANDS {
        let values = printed(words);
        assert!(!values.is_empty(), "{words}");
        let mut all = Vec::new();
        values.iter().for_each(|value| fields(value, &mut all));
        for (name, value) in all {
            let wrong = FORBIDDEN.iter().find(|(end, _)| name.ends_with(end));
            assert!(wrong.is_none(), "{words}: {name}: {wrong:?}");
            let has_unit = UNITS.iter().any(|unit| name.ends_with(unit));
            assert!(!has_unit || is_of_numbers(value), "{words}: {name} is {value}");
            match value {
                Value::String(_) => _ = strings.insert(name.to_owned(), words),
                Value::Number(_) => _ = numbers.insert(name.to_owned(), words),
                Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {}
            }
        }
    }
    for (name, words) in &numbers {
        let other = strings.get(name);
        assert!(other.is_none(), "{name} is a number in {words}, and a text in {other:?}");
    }
}
