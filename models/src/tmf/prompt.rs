//! Prompts as symbols: tokens of text, behaviours, and places where an item's soft token goes.
//!
//! Three levels, as published; the words and the schedule are ours. A log line is
//!
//! | level | line of the log | entry of the shelf |
//! |---|---|---|
//! | 1 | `bought: red mug` | `red mug` |
//! | 2 | `<|buy|> red mug <|item|>` | `<|item|> red mug` |
//! | 3 | `<|buy|> <|item|>` | `<|item|> red mug` |
//!
//! The log comes before the shelf, so that the state at its last event has seen no candidate: the
//! history's vector is read there, where the last soft token itself went in. Lines of level 3 are not
//! broken. On the shelf the soft token goes first, so that the words of an entry have seen what stands for
//! the item, and all of them carry how well it fits the history ([`Prompt::fits`]).

use std::ops::Range;

use super::answers::distinct_titles;
use crate::data::{Dataset, HistoryEvent};
use crate::error::Result;
use crate::llm::Llm;

/// What a prompt shows of events and candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// Titles.
    Words,
    /// Titles and soft tokens.
    Both,
    /// Soft tokens alone in the log.
    Tokens,
}

/// Shares of the three levels at a progress of 0 to 1 of tuning: from words by way of both to
/// tokens.
pub(super) fn curriculum(progress: f64) -> [f64; 3] {
    let middle = 1.0 - (2.0 * progress - 1.0).abs();
    [
        (1.0 - 2.0 * progress).max(0.0),
        middle,
        (2.0 * progress - 1.0).max(0.0),
    ]
}

/// One row of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Symbol {
    /// A token of the language model.
    Token(u32),
    /// The token of a behaviour.
    Behavior(u8),
    /// Soft token `slot` of the `at`-th event of the history.
    Event { at: u32, slot: u8 },
    /// Soft token `slot` of an item.
    Item { item: u32, slot: u8 },
}

/// A prompt.
#[derive(Debug, Clone, Default)]
pub(super) struct Prompt {
    pub(super) symbols: Vec<Symbol>,
    /// The row at which each event of the log is known; before them the row at which none is.
    pub(super) line_ends: Vec<usize>,
    /// The rows of the shelf's entries, and how well each one's item fits the history.
    pub(super) fits: Vec<(usize, f32)>,
}

impl Prompt {
    /// The row at which the whole log is known.
    pub(super) fn log_end(&self) -> usize {
        self.line_ends.last().copied().unwrap_or(0)
    }

    fn tokens(&mut self, tokens: &[u32]) {
        self.symbols
            .extend(tokens.iter().map(|&t| Symbol::Token(t)));
    }
}

/// Groups of neighbouring prompts of at most `most` tokens together, at least one prompt each.
pub(super) fn groups(prompts: &[Prompt], most: usize) -> Vec<Range<usize>> {
    let mut out = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (at, p) in prompts.iter().enumerate() {
        if at > start && tokens + p.symbols.len() > most {
            out.push(start..at);
            (start, tokens) = (at, 0);
        }
        tokens += p.symbols.len();
    }
    if start < prompts.len() {
        out.push(start..prompts.len());
    }
    out
}

/// Tokenised parts of all prompts of a data set.
#[derive(Debug, Clone)]
pub(super) struct Phrases {
    before: Vec<u32>,
    after: Vec<u32>,
    header: Vec<u32>,
    line: Vec<u32>,
    shelf: Vec<u32>,
    bar: Vec<u32>,
    ask: Vec<u32>,
    /// What an event of each behaviour is called.
    behaviors: Vec<Vec<u32>>,
    labels: Vec<Vec<u32>>,
    /// The answer that stands for each label.
    letters: Vec<u32>,
    /// Cut titles of items.
    titles: Vec<Vec<u32>>,
    /// Their text.
    shown: Vec<String>,
    end: u32,
    slots: u8,
    behavior_tokens: bool,
}

/// Titles of all items; an item without one is called by its key.
pub(super) fn titles(data: &Dataset) -> Vec<String> {
    (0..data.num_items() as u32)
        .map(|i| {
            let title = data.titles.as_ref().map(|t| t[i as usize].trim());
            match title {
                Some(t) if !t.is_empty() => t.to_owned(),
                _ => format!("item {}", data.items.key(i)),
            }
        })
        .collect()
}

/// All wording, for a tokenizer trained from scratch.
pub(super) fn wording(data: &Dataset) -> Vec<String> {
    let fixed = [HEADER, SHELF, BAR, ASK, "\n", ": ", " "];
    let mut out: Vec<String> = fixed.iter().map(|s| (*s).to_owned()).collect();
    out.extend(data.behaviors.iter().map(|b| past_tense(b)));
    out.extend((0..26).map(label));
    out
}

const HEADER: &str = "A shopper's log, oldest first:\n";
const SHELF: &str = "Shelf: ";
const BAR: &str = " | ";
const ASK: &str = "\nNext purchase:\n";

fn past_tense(behavior: &str) -> String {
    match behavior {
        "view" => "viewed".to_owned(),
        "cart" => "carted".to_owned(),
        "buy" | "purchase" => "bought".to_owned(),
        "like" => "liked".to_owned(),
        "any" => "chose".to_owned(),
        other => other.to_owned(),
    }
}

fn letter(at: usize) -> char {
    char::from(b'A' + at as u8)
}

fn label(at: usize) -> String {
    format!("{}) ", letter(at))
}

impl Phrases {
    pub(super) fn new(
        data: &Dataset,
        llm: &Llm,
        title_tokens: usize,
        slots: u8,
        behavior_tokens: bool,
    ) -> Result<Self> {
        let words = &llm.words;
        let (before, after) = words.frame();
        let encode = |s: &str| words.encode(s);
        let mut cut = Vec::with_capacity(data.num_items());
        let mut shown = Vec::with_capacity(data.num_items());
        for title in titles(data) {
            let mut tokens = encode(&title)?;
            tokens.truncate(title_tokens);
            shown.push(words.decode(&tokens)?.trim().to_owned());
            cut.push(tokens);
        }
        Ok(Self {
            before: encode(before)?,
            after: encode(after)?,
            header: encode(HEADER)?,
            line: encode("\n")?,
            shelf: encode(SHELF)?,
            bar: encode(BAR)?,
            ask: encode(ASK)?,
            behaviors: data
                .behaviors
                .iter()
                .map(|b| encode(&format!("{}: ", past_tense(b))))
                .collect::<Result<_>>()?,
            labels: (0..26).map(|i| encode(&label(i))).collect::<Result<_>>()?,
            letters: (0..26)
                .map(|i| Ok(encode(&letter(i).to_string())?[0]))
                .collect::<Result<_>>()?,
            titles: cut,
            shown,
            end: llm.ends[0],
            slots,
            behavior_tokens,
        })
    }

    /// The word behind a behaviour's token, which starts as its mean.
    pub(super) fn behavior_words(&self, behavior: usize) -> &[u32] {
        &self.behaviors[behavior]
    }

    /// The cut title of an item, as prompts show it.
    pub(super) fn shown(&self, item: u32) -> &str {
        &self.shown[item as usize]
    }

    /// Tokens of the cut title of an item.
    pub(super) fn title(&self, item: u32) -> &[u32] {
        &self.titles[item as usize]
    }

    /// The token that answers with the n-th label.
    pub(super) fn letter(&self, at: usize) -> u32 {
        self.letters[at]
    }

    /// The log of a history, oldest first.
    pub(super) fn log(&self, history: &[HistoryEvent], level: Level) -> Prompt {
        let mut p = Prompt::default();
        p.tokens(&self.before);
        p.tokens(&self.header);
        p.line_ends.push(p.symbols.len() - 1);
        for (at, event) in history.iter().enumerate() {
            let behavior = if self.behavior_tokens {
                event.behavior
            } else {
                0
            };
            if level == Level::Words {
                p.tokens(&self.behaviors[behavior as usize]);
            } else {
                p.symbols.push(Symbol::Behavior(behavior));
            }
            if level != Level::Tokens {
                p.tokens(self.title(event.item));
            }
            if level != Level::Words {
                let at = at as u32;
                let slots = (0..self.slots).map(|slot| Symbol::Event { at, slot });
                p.symbols.extend(slots);
            }
            p.line_ends.push(p.symbols.len() - 1);
            // Without words, the token of the next behaviour is separation enough.
            if level != Level::Tokens {
                p.tokens(&self.line);
            }
        }
        p
    }

    /// Adds the shelf, lettered or not, and the question. `fits` says how well each item fits the history,
    /// or nothing.
    pub(super) fn ask(
        &self,
        p: &mut Prompt,
        shelf: &[u32],
        fits: &[f32],
        level: Level,
        lettered: bool,
    ) {
        if level == Level::Tokens {
            p.tokens(&self.line);
        }
        p.tokens(&self.shelf);
        for (at, &item) in shelf.iter().enumerate() {
            if at > 0 {
                p.tokens(&self.bar);
            }
            let first = p.symbols.len();
            if level != Level::Words {
                let slots = (0..self.slots).map(|slot| Symbol::Item { item, slot });
                p.symbols.extend(slots);
            }
            if lettered {
                p.tokens(&self.labels[at]);
            }
            p.tokens(self.title(item));
            if let Some(&fit) = fits.get(at) {
                p.fits
                    .extend((first..p.symbols.len()).map(|row| (row, fit)));
            }
        }
        p.tokens(&self.ask);
        p.tokens(&self.after);
    }

    /// Answers of all items of a shelf, each with the end token, so that no title is the beginning of
    /// another, and their texts. Equal titles are made different.
    pub(super) fn answers(&self, llm: &Llm, shelf: &[u32]) -> Result<(Vec<Vec<u32>>, Vec<String>)> {
        let shown: Vec<String> = shelf.iter().map(|&i| self.shown(i).to_owned()).collect();
        let titles = distinct_titles(&shown);
        let tokens = shelf
            .iter()
            .zip(&titles)
            .zip(&shown)
            .map(|((&item, title), shown)| {
                let mut tokens = self.title(item).to_vec();
                if let Some(counter) = title.strip_prefix(shown.as_str())
                    && !counter.is_empty()
                {
                    tokens.extend(llm.words.encode(counter)?);
                }
                tokens.push(self.end);
                Ok(tokens)
            })
            .collect::<Result<_>>()?;
        Ok((tokens, titles))
    }
}

/// Titles as a tree of tokens.
#[derive(Debug, Default)]
pub(super) struct Trie {
    next: Vec<(u32, Trie)>,
    leaf: Option<usize>,
}

impl Trie {
    pub(super) fn new(answers: &[Vec<u32>]) -> Self {
        let mut root = Self::default();
        for (at, answer) in answers.iter().enumerate() {
            let mut node = &mut root;
            for &token in answer {
                let found = node.next.iter().position(|(t, _)| *t == token);
                let at = found.unwrap_or_else(|| {
                    node.next.push((token, Self::default()));
                    node.next.len() - 1
                });
                node = &mut node.next[at].1;
            }
            node.leaf.get_or_insert(at);
        }
        root
    }

    /// The node after `tokens`.
    fn walk(&self, tokens: &[u32]) -> Option<&Self> {
        tokens.iter().try_fold(self, |node, token| {
            node.next
                .iter()
                .find(|(t, _)| t == token)
                .map(|(_, node)| node)
        })
    }

    /// The likeliest token that may follow `written`.
    pub(super) fn choose(&self, written: &[u32], scores: &[f32]) -> Option<u32> {
        let node = self.walk(written)?;
        let better = |a: &&(u32, Self), b: &&(u32, Self)| {
            scores[a.0 as usize]
                .total_cmp(&scores[b.0 as usize])
                .then(b.0.cmp(&a.0))
        };
        node.next.iter().max_by(better).map(|(t, _)| *t)
    }

    /// The answer that was written, without its end token.
    pub(super) fn answer(&self, written: &[u32], end: u32) -> Option<usize> {
        self.walk(&[written, &[end]].concat())?.leaf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Oracle T12.
    #[test]
    fn curriculum_matches_oracle() {
        for (p, want) in [
            (0.0, [1.0, 0.0, 0.0]),
            (0.25, [0.5, 0.5, 0.0]),
            (0.5, [0.0, 1.0, 0.0]),
            (0.75, [0.0, 0.5, 0.5]),
            (1.0, [0.0, 0.0, 1.0]),
        ] {
            assert_eq!(curriculum(p), want);
        }
    }

    #[test]
    fn a_trie_writes_one_of_its_titles() {
        let answers = [vec![1, 2, 9], vec![1, 9], vec![3, 9]];
        let trie = Trie::new(&answers);
        let mut scores = vec![0f32; 10];
        scores[5] = 9.0; // not on the shelf
        scores[1] = 2.0;
        scores[9] = 3.0;
        assert_eq!(trie.choose(&[], &scores), Some(1));
        assert_eq!(trie.choose(&[1], &scores), Some(9));
        assert_eq!(trie.answer(&[1], 9), Some(1));
        assert_eq!(trie.answer(&[1, 2], 9), Some(0));
        assert_eq!(trie.answer(&[4], 9), None);
    }
}
