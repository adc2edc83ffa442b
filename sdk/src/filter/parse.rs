//! The text form of filters.

use std::ops::Bound;

use super::{Filter, MAX_FILTER_BYTES, MAX_FILTER_DEPTH, MAX_FILTER_TERMS, number};
use crate::error::{Error, Result};

/// See [`Filter::parse`].
pub(super) fn parse(text: &str) -> Result<Filter> {
    if text.len() > MAX_FILTER_BYTES {
        return Err(Error::FilterSyntax {
            position: 1,
            expected: format!("at most {MAX_FILTER_BYTES} bytes"),
            found: format!("{} bytes", text.len()),
        });
    }
    let mut parser = Parser::new(text)?;
    let filter = parser.disjunction(0)?;
    match parser.next {
        Token::End => Ok(filter),
        _ => Err(parser.expected("`and`, `or` or the end")),
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    End,
    Open,
    Close,
    Comma,
    /// `=`, `!=`, `<`, `<=`, `>` or `>=`.
    Compare(&'static str),
    /// Bare words can be keywords, quoted ones cannot.
    Word {
        text: String,
        quoted: bool,
    },
}

/// Recursive descent; the depth is counted, so that the text cannot exhaust the stack.
struct Parser<'a> {
    text: &'a str,
    /// Byte offset behind `next`.
    at: usize,
    next: Token,
    /// Byte offset of `next`.
    start: usize,
    terms: usize,
}

const SYMBOLS: [(&str, &str); 8] = [
    ("==", "="),
    ("!=", "!="),
    ("<>", "!="),
    ("<=", "<="),
    (">=", ">="),
    ("=", "="),
    ("<", "<"),
    (">", ">"),
];

fn is_bare(c: char) -> bool {
    !c.is_whitespace() && !c.is_control() && !"()<>=!,\"'".contains(c)
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self> {
        let mut parser = Parser {
            text,
            at: 0,
            next: Token::End,
            start: 0,
            terms: 0,
        };
        parser.advance()?;
        Ok(parser)
    }

    fn error(&self, at: usize, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::FilterSyntax {
            position: self.text[..at].chars().count() + 1,
            expected: expected.into(),
            found: found.into(),
        }
    }

    /// An error at the next token.
    fn expected(&self, what: impl Into<String>) -> Error {
        let found: String = self.text[self.start..self.at].chars().take(32).collect();
        let found = match self.next {
            Token::End => "the end".into(),
            _ => format!("`{found}`"),
        };
        self.error(self.start, what, found)
    }

    /// Moves on and returns the token passed over.
    fn advance(&mut self) -> Result<Token> {
        let rest = self.text[self.at..].trim_start();
        self.start = self.text.len() - rest.len();
        let (token, length) = self.token(rest)?;
        self.at = self.start + length;
        Ok(std::mem::replace(&mut self.next, token))
    }

    /// The token at the beginning of `rest` and its length in bytes.
    fn token(&self, rest: &str) -> Result<(Token, usize)> {
        let Some(first) = rest.chars().next() else {
            return Ok((Token::End, 0));
        };
        match first {
            '(' => return Ok((Token::Open, 1)),
            ')' => return Ok((Token::Close, 1)),
            ',' => return Ok((Token::Comma, 1)),
            '"' | '\'' => return self.quoted(rest, first),
            _ => {}
        }
        if let Some((text, meaning)) = SYMBOLS.iter().find(|(text, _)| rest.starts_with(text)) {
            return Ok((Token::Compare(meaning), text.len()));
        }
        let length = rest.find(|c| !is_bare(c)).unwrap_or(rest.len());
        if length == 0 {
            let found = format!("`{}`", first.escape_debug());
            return Err(self.error(self.start, "a word, a quote or an operator", found));
        }
        let text = rest[..length].to_string();
        let quoted = false;
        Ok((Token::Word { text, quoted }, length))
    }

    fn quoted(&self, rest: &str, quote: char) -> Result<(Token, usize)> {
        let mut text = String::new();
        let mut chars = rest.char_indices().skip(1);
        while let Some((i, c)) = chars.next() {
            match c {
                '\\' => match chars.next() {
                    Some((_, c @ ('"' | '\'' | '\\'))) => text.push(c),
                    _ => {
                        let expected = "a quote or backslash after `\\`";
                        return Err(self.error(self.start + i, expected, "something else"));
                    }
                },
                c if c == quote => return Ok((Token::Word { text, quoted: true }, i + 1)),
                c => text.push(c),
            }
        }
        Err(self.error(self.text.len(), format!("a closing `{quote}`"), "the end"))
    }

    fn is_keyword(&self, word: &str) -> bool {
        matches!(&self.next, Token::Word { text, quoted: false } if text.eq_ignore_ascii_case(word))
    }

    /// Passes over `word` if it is next.
    fn keyword(&mut self, word: &str) -> Result<bool> {
        let found = self.is_keyword(word);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    fn symbol(&mut self, token: Token, expected: &str) -> Result<()> {
        if self.next != token {
            return Err(self.expected(expected));
        }
        self.advance()?;
        Ok(())
    }

    fn disjunction(&mut self, depth: usize) -> Result<Filter> {
        let mut parts = vec![self.conjunction(depth)?];
        while self.keyword("or")? {
            parts.push(self.conjunction(depth)?);
        }
        Ok(Filter::any(parts))
    }

    fn conjunction(&mut self, depth: usize) -> Result<Filter> {
        let mut parts = vec![self.factor(depth)?];
        while self.keyword("and")? {
            parts.push(self.factor(depth)?);
        }
        Ok(Filter::all(parts))
    }

    fn factor(&mut self, depth: usize) -> Result<Filter> {
        let nests = self.next == Token::Open || self.is_keyword("not");
        if nests && depth >= MAX_FILTER_DEPTH {
            return Err(self.expected(format!("at most {MAX_FILTER_DEPTH} levels of nesting")));
        }
        if self.keyword("not")? {
            return Ok(Filter::not(self.factor(depth + 1)?));
        }
        if self.next == Token::Open {
            self.advance()?;
            let filter = self.disjunction(depth + 1)?;
            self.symbol(Token::Close, "`and`, `or` or `)`")?;
            return Ok(filter);
        }
        self.terms += 1;
        if self.terms > MAX_FILTER_TERMS {
            return Err(self.expected(format!("at most {MAX_FILTER_TERMS} conditions")));
        }
        if self.keyword("has")? {
            let bracket = self.next == Token::Open;
            if bracket {
                self.advance()?;
            }
            let attribute = self.word("the name of an attribute")?;
            if bracket {
                self.symbol(Token::Close, "`)`")?;
            }
            return Ok(Filter::has(&attribute));
        }
        self.test()
    }

    fn test(&mut self) -> Result<Filter> {
        let attribute = self.word("an attribute, `not`, `has` or `(`")?;
        if self.keyword("not")? {
            if !self.keyword("in")? {
                return Err(self.expected("`in`"));
            }
            return Ok(Filter::not_in(&attribute, self.list()?));
        }
        if self.keyword("in")? {
            return Ok(Filter::is_in(&attribute, self.list()?));
        }
        let Token::Compare(operator) = self.next else {
            return Err(self.expected("`in`, `not in` or one of = != < <= > >="));
        };
        self.advance()?;
        Ok(match operator {
            "=" => Filter::is_in(&attribute, [self.word("a value")?]),
            "!=" => Filter::not_in(&attribute, [self.word("a value")?]),
            "<" => Filter::range(&attribute, ..self.number()?),
            "<=" => Filter::range(&attribute, ..=self.number()?),
            ">" => Filter::range(
                &attribute,
                (Bound::Excluded(self.number()?), Bound::Unbounded),
            ),
            _ => Filter::range(&attribute, self.number()?..),
        })
    }

    fn list(&mut self) -> Result<Vec<String>> {
        self.symbol(Token::Open, "`(` before the values")?;
        let mut values = vec![self.word("a value")?];
        while self.next == Token::Comma {
            self.advance()?;
            values.push(self.word("a value")?);
        }
        self.symbol(Token::Close, "`,` or `)`")?;
        Ok(values)
    }

    fn word(&mut self, expected: &str) -> Result<String> {
        let keyword = ["and", "or", "not", "in", "has"];
        if keyword.iter().any(|k| self.is_keyword(k)) {
            return Err(self.expected(format!("{expected} (quote it if it is one of these words)")));
        }
        match &self.next {
            Token::Word { .. } => {}
            _ => return Err(self.expected(expected)),
        }
        Ok(match self.advance()? {
            Token::Word { text, .. } => text,
            _ => String::new(),
        })
    }

    fn number(&mut self) -> Result<f64> {
        let value = match &self.next {
            Token::Word { text, .. } => number(text.as_bytes()),
            _ => None,
        };
        let value = value.ok_or_else(|| self.expected("a number"))?;
        self.advance()?;
        Ok(value)
    }
}
