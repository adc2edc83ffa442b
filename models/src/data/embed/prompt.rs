//! A sentence or more with places for columns, which a language model is asked with.

/// A template like `Product: {title}. Details: {plot:60}. In one phrase, this product is for`.
///
/// `{name}` stands for a column of `items.csv`, `{name:n}` for its first n words. A sentence, up to
/// the next `. `, is left out for items where all of its columns are empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prompt {
    sentences: Vec<Vec<Part>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Words(String),
    Column { at: usize, most: usize },
}

impl Prompt {
    /// Parses `template`; the error tells what is wrong with it.
    pub(super) fn parse(template: &str, header: &[String]) -> Result<Self, String> {
        let (mut sentences, mut parts) = (Vec::new(), Vec::new());
        let mut rest = template;
        while !rest.is_empty() {
            let end = rest.find(". ").map_or(rest.len(), |at| at + 2);
            let place = rest.find('{').unwrap_or(rest.len());
            if place > 0 {
                let words = &rest[..end.min(place)];
                parts.push(Part::Words(words.to_owned()));
                rest = &rest[words.len()..];
                if end <= place {
                    sentences.push(std::mem::take(&mut parts));
                }
                continue;
            }
            let inner = rest[1..]
                .split_once('}')
                .ok_or_else(|| format!("{rest:?} lacks a closing brace"))?
                .0;
            let (name, most) = match inner.split_once(':') {
                None => (inner, Ok(usize::MAX)),
                Some((name, most)) => (name, most.parse()),
            };
            let at = header.iter().position(|h| h == name).ok_or_else(|| {
                format!("no column {name:?}; the header has {}", header.join(", "))
            })?;
            let most = most.map_err(|_| format!("{{{inner}}} should end in a number of words"))?;
            parts.push(Part::Column { at, most });
            rest = &rest[inner.len() + 2..];
        }
        sentences.push(parts);
        let prompt = Self { sentences };
        if prompt.columns().is_empty() {
            return Err("the prompt names no column, as {title} would".to_owned());
        }
        Ok(prompt)
    }

    /// The columns it names, each once.
    pub(super) fn columns(&self) -> Vec<usize> {
        let mut columns = Vec::new();
        for part in self.sentences.iter().flatten() {
            match part {
                Part::Column { at, .. } if !columns.contains(at) => columns.push(*at),
                _ => {}
            }
        }
        columns
    }

    /// The text of an item with these fields; none if it has nothing to say.
    pub(super) fn fill(&self, fields: &[String]) -> Option<String> {
        if self.columns().iter().all(|&at| fields[at].is_empty()) {
            return None;
        }
        let mut text = String::new();
        for sentence in &self.sentences {
            let mut places = sentence.iter().filter_map(|part| match part {
                Part::Column { at, .. } => Some(fields[*at].is_empty()),
                Part::Words(_) => None,
            });
            let first = places.next();
            if first == Some(true) && places.all(|empty| empty) {
                continue;
            }
            for part in sentence {
                match part {
                    // A field may bring the mark that ends the sentence.
                    Part::Words(words) if text.ends_with(['.', '!', '?', '。']) => {
                        text.push_str(words.strip_prefix('.').unwrap_or(words));
                    }
                    Part::Words(words) => text.push_str(words),
                    Part::Column { at, most } => text.push_str(&said(&fields[*at], *most)),
                }
            }
        }
        Some(text.trim().to_owned())
    }
}

/// A field in a sentence: a list reads as words.
fn said(field: &str, most: usize) -> String {
    let field = field.replace('|', ", ");
    let words: Vec<&str> = field.split_whitespace().take(most).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Vec<String> {
        ["item_id", "title", "brand", "plot"]
            .map(str::to_owned)
            .to_vec()
    }

    #[test]
    fn sentences_without_a_value_are_left_out() {
        let template = "Product: {title}. Brand: {brand}. Details: {plot:3}. It is for";
        let prompt = Prompt::parse(template, &header()).expect("a template");
        assert_eq!(prompt.columns(), [1, 2, 3]);
        let fill = |title: &str, brand: &str, plot: &str| {
            prompt.fill(&["7", title, brand, plot].map(str::to_owned))
        };
        assert_eq!(
            fill("Hat St. Ives", "a|b", "warm and red and wide").as_deref(),
            Some("Product: Hat St. Ives. Brand: a, b. Details: warm and red. It is for")
        );
        assert_eq!(
            fill("帽子", "", "Warm.").as_deref(),
            Some("Product: 帽子. Details: Warm. It is for")
        );
        assert_eq!(
            fill("Why?", "", "And so on...").as_deref(),
            Some("Product: Why? Details: And so on... It is for")
        );
        assert_eq!(fill("", "", ""), None);
    }

    #[test]
    fn templates_are_checked() {
        for (template, word) in [
            ("A {title", "closing brace"),
            ("A {colour}", "colour"),
            ("A {title:x}", "number of words"),
            ("A hat", "no column"),
            ("", "no column"),
        ] {
            let reason = Prompt::parse(template, &header()).expect_err(template);
            assert!(reason.contains(word), "{reason}");
        }
    }
}
