//! What every reporting command shares: one JSON document on stdout, or aligned text.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;

/// Prints a value as one JSON document.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints named metrics side by side, one row per name.
pub(crate) fn metric_table(rows: &[(&str, &BTreeMap<String, f64>)]) {
    let keys: Vec<&String> = rows
        .first()
        .map(|r| r.1.keys().filter(|k| k.ends_with("@20")).collect())
        .unwrap_or_default();
    print!("{:<14}", "");
    keys.iter().for_each(|k| print!("{k:>14}"));
    println!();
    for (name, metrics) in rows {
        print!("{name:<14}");
        for k in &keys {
            match metrics.get(*k) {
                Some(v) => print!("{v:>14.4}"),
                None => print!("{:>14}", "-"),
            }
        }
        println!();
    }
}
