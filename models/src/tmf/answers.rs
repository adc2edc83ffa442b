//! What a written answer is worth.
//!
//! Definitions after LLaRA (arXiv 2312.02445), which the paper builds on: an answer is *valid* if its
//! first line names exactly one candidate. ValidRatio is the share of valid answers;
//! HitRate@1 has two readings, among the valid answers and among all, which must not be compared.

use serde::{Deserialize, Serialize};

/// Which titles an answer names where one title is part of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MatchRule {
    /// Every title that occurs: an answer "usb cable" names "cable" too, and is not valid.
    #[default]
    Strict,
    /// Of titles within one another only the longest.
    Longest,
}

/// The one candidate that an answer names, if it is valid. Only the first line counts, without case.
pub fn named(answer: &str, titles: &[String], rule: MatchRule) -> Option<usize> {
    let line = answer.trim().lines().next()?.trim().to_lowercase();
    let titles: Vec<String> = titles.iter().map(|t| t.trim().to_lowercase()).collect();
    let occurs = |t: &String| !t.is_empty() && line.contains(t.as_str());
    let mut found = (0..titles.len()).filter(|&i| occurs(&titles[i]));
    match rule {
        MatchRule::Strict => found.next().filter(|_| found.next().is_none()),
        MatchRule::Longest => {
            let found: Vec<usize> = found.collect();
            let longest = *found.iter().max_by_key(|&&i| titles[i].len())?;
            let inside = |i: &&usize| titles[longest].contains(titles[**i].as_str());
            (found.iter().filter(inside).count() == found.len()).then_some(longest)
        }
    }
}

/// Titles made different by a counter behind repeated ones: " #2", " #3".
pub fn distinct_titles(titles: &[String]) -> Vec<String> {
    let mut seen = std::collections::HashMap::new();
    titles
        .iter()
        .map(|t| {
            let n = seen.entry(t.to_lowercase()).or_insert(0u32);
            *n += 1;
            if *n == 1 {
                t.clone()
            } else {
                format!("{t} #{n}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn titles(t: &[&str]) -> Vec<String> {
        t.iter().map(|t| (*t).to_owned()).collect()
    }

    /// Oracle T11.
    #[test]
    fn answers_match_oracle() {
        let shelf = titles(&["red mug", "blue mug", "steel pan"]);
        let outputs = [
            ("red mug", 0usize),
            ("blue mug", 2),
            ("a red mug or a blue mug", 0),
            ("Steel Pan\nblue mug", 2),
        ];
        let named = |s: &str, rule| super::named(s, &shelf, rule);
        let got: Vec<(Option<usize>, usize)> = outputs
            .iter()
            .map(|(s, target)| (named(s, MatchRule::Strict), *target))
            .collect();
        let valid = got.iter().filter(|(n, _)| n.is_some()).count();
        let right = got.iter().filter(|(n, t)| *n == Some(*t)).count();
        assert_eq!((valid, right), (3, 2)); // ValidRatio 3/4, HitRate@1 2/3 and 2/4
        let cables = titles(&["cable", "usb cable"]);
        assert_eq!(super::named("usb cable", &cables, MatchRule::Strict), None);
        assert_eq!(
            super::named("usb cable", &cables, MatchRule::Longest),
            Some(1)
        );
        assert_eq!(
            super::named("red mug, blue mug", &shelf, MatchRule::Longest),
            None
        );
        assert_eq!(named("", MatchRule::Strict), None);
    }

    #[test]
    fn repeated_titles_are_counted() {
        let got = distinct_titles(&titles(&["Mug", "pan", "mug", "MUG"]));
        assert_eq!(got, ["Mug", "pan", "mug #2", "MUG #3"]);
    }
}
