//! The words of a statement: without comments, and with what is in those that a server executes.

use std::collections::VecDeque;

use super::super::wording::Quoting;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// A keyword, a name or a number.
    Plain(String),
    /// A name between backticks, or between double quotes, which may also be a text: `ANSI_QUOTES` decides.
    Quoted(String),
    Text,
    Sign(char),
}

impl Word {
    pub(super) fn is(&self, keyword: &str) -> bool {
        match self {
            Self::Plain(word) => word.eq_ignore_ascii_case(keyword),
            Self::Sign(sign) => keyword.chars().eq([*sign]),
            Self::Quoted(_) | Self::Text => false,
        }
    }
}

/// What is left of a statement.
#[derive(Clone, Debug)]
pub(super) struct Words(VecDeque<Word>);

impl Words {
    pub(super) fn of(text: &str) -> Self {
        Self::quoted_as(text, Quoting::default())
    }

    pub(super) fn quoted_as(text: &str, quoting: Quoting) -> Self {
        let mut words = VecDeque::new();
        let mut rest = Rest(text, quoting);
        while let Some(word) = rest.word() {
            words.push_back(word);
        }
        Self(words)
    }

    pub(super) fn rest(&self) -> &VecDeque<Word> {
        &self.0
    }

    pub(super) fn next(&mut self) -> Option<Word> {
        self.0.pop_front()
    }

    /// Takes a keyword or a sign, if it comes next.
    pub(super) fn take(&mut self, keyword: &str) -> bool {
        let is_next = self.0.front().is_some_and(|word| word.is(keyword));
        if is_next {
            self.0.pop_front();
        }
        is_next
    }

    /// Takes keywords, if all of them come next.
    pub(super) fn take_all(&mut self, keywords: &[&str]) -> bool {
        let mut next = self.0.iter();
        let are_next = keywords
            .iter()
            .all(|keyword| next.next().is_some_and(|word| word.is(keyword)));
        if are_next {
            self.0.drain(..keywords.len());
        }
        are_next
    }

    pub(super) fn is_any(&self, keywords: &[&str]) -> bool {
        let next = self.0.front();
        next.is_some_and(|word| keywords.iter().any(|keyword| word.is(keyword)))
    }

    pub(super) fn has_any(&self, keywords: &[&str]) -> bool {
        let mut words = self.0.iter();
        words.any(|word| keywords.iter().any(|keyword| word.is(keyword)))
    }

    /// Takes a word that is not quoted.
    pub(super) fn keyword(&mut self) -> Option<String> {
        match self.0.front() {
            Some(Word::Plain(word)) => {
                let word = word.to_ascii_uppercase();
                self.0.pop_front();
                Some(word)
            }
            _ => None,
        }
    }

    pub(super) fn name(&mut self) -> Option<String> {
        match self.0.front() {
            Some(Word::Plain(name) | Word::Quoted(name)) => {
                let name = name.clone();
                self.0.pop_front();
                Some(name)
            }
            _ => None,
        }
    }

    /// The rest, split at the commas that are in no parentheses.
    pub(super) fn parts(&mut self) -> Vec<Self> {
        let mut parts = vec![Self(VecDeque::new())];
        let mut depth = 0u32;
        for word in self.0.drain(..) {
            match &word {
                Word::Sign('(') => depth += 1,
                Word::Sign(')') => depth = depth.saturating_sub(1),
                Word::Sign(',') if depth == 0 => {
                    parts.push(Self(VecDeque::new()));
                    continue;
                }
                _ => {}
            }
            parts.last_mut().expect("there is one").0.push_back(word);
        }
        parts.retain(|part| !part.0.is_empty());
        parts
    }
}

struct Rest<'a>(&'a str, Quoting);

impl Rest<'_> {
    fn word(&mut self) -> Option<Word> {
        loop {
            self.0 = self
                .0
                .trim_start_matches(|c: char| c.is_whitespace() || c == '\0');
            let rest = self.0;
            let first = rest.chars().next()?;
            if first == '#' || rest.starts_with("--") && rest[2..].starts_with(is_blank) {
                self.0 = rest.split_once('\n').map_or("", |(_, rest)| rest);
            } else if let Some(executed) = ["/*!", "/*M!"]
                .iter()
                .find_map(|begin| rest.strip_prefix(begin))
            {
                // With the oldest version that executes it: the one that wrote it did.
                self.0 = executed.trim_start_matches(|c: char| c.is_ascii_digit());
            } else if rest.starts_with("/*") {
                self.0 = rest.split_once("*/").map_or("", |(_, rest)| rest);
            } else if let Some(after) = rest.strip_prefix("*/") {
                self.0 = after;
            } else {
                return Some(match first {
                    '`' | '"' => Word::Quoted(self.quoted(first)),
                    '\'' => {
                        self.quoted(first);
                        Word::Text
                    }
                    _ if is_of_word(first) => {
                        let end = rest.find(|c| !is_of_word(c)).unwrap_or(rest.len());
                        let (word, after) = rest.split_at(end);
                        self.0 = after;
                        Word::Plain(word.to_owned())
                    }
                    _ => {
                        self.0 = &rest[first.len_utf8()..];
                        Word::Sign(first)
                    }
                });
            }
        }
    }

    /// Up to the quote that is not doubled, nor, in a text, behind a backslash.
    fn quoted(&mut self, quote: char) -> String {
        let of_name = quote == '`' || quote == '"' && self.1.ansi_quotes;
        let escapes = !of_name && !self.1.no_backslash_escapes;
        let mut word = String::new();
        let mut chars = self.0.char_indices().skip(1).peekable();
        while let Some((at, c)) = chars.next() {
            if c == '\\' && escapes {
                word.extend(chars.next().map(|(_, c)| c));
            } else if c != quote {
                word.push(c);
            } else if chars.peek().is_some_and(|(_, next)| *next == quote) {
                word.push(c);
                chars.next();
            } else {
                self.0 = &self.0[at + c.len_utf8()..];
                return word;
            }
        }
        self.0 = "";
        word
    }
}

fn is_blank(c: char) -> bool {
    c.is_whitespace() || c.is_control()
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()
}
