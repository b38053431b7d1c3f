//! Where the records of a CSV file begin and end, and their fields: pure.
//!
//! A field in quotes ends at a quote that a delimiter or the end of the line follows. A quote inside is doubled or
//! escaped. As in Spark, a field that begins like one in quotes and goes on behind the closing quote is the text it is,
//! quotes included. A line ends with a line feed, a carriage return, or both.

use std::borrow::Cow;

use crate::file::format::CsvFormat;

/// A field: where in the text it is, without quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    start: usize,
    end: usize,
    pub(super) quoted: bool,
    escaped: bool,
}

/// What stands at the beginning of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// An empty line or a comment of so many bytes.
    Nothing(usize),
    /// A record of so many bytes, line end included.
    Record { bytes: usize, has_line_break: bool },
    /// A line of so many bytes that opens a quote which no line closes.
    Unclosed(usize),
    /// A record that goes on behind the text.
    Unfinished,
}

enum Closing {
    At {
        quote: usize,
        escaped: bool,
    },
    /// There is a quote that closes nothing.
    Stray(usize),
    Never,
}

impl CsvFormat {
    /// What stands at the beginning of `text`, which ends with the end of a line and is not empty; with its `fields` if it
    /// is a record. `is_last` if nothing follows the text.
    pub(super) fn record(&self, text: &[u8], is_last: bool, fields: &mut Vec<Span>) -> Found {
        fields.clear();
        let line = line_end(text, 0);
        let content = text.get(..line).unwrap_or_default();
        let is_blank = content.iter().all(|byte| matches!(byte, b' ' | b'\t') && *byte != self.delimiter);
        if is_blank || (self.comment.is_some() && content.first().copied() == self.comment) {
            return Found::Nothing(behind_line_end(text, line));
        }
        let (mut at, mut has_line_break) = (0, false);
        loop {
            let closing = if text.get(at) == Some(&self.quote) { Some(self.closing(text, at + 1)) } else { None };
            let line = line_end(text, at);
            match closing {
                Some(Closing::At { quote, escaped }) => {
                    fields.push(Span { start: at + 1, end: quote, quoted: true, escaped });
                    has_line_break |= quote > line;
                    at = quote + 1;
                }
                Some(Closing::Never) if !is_last => return Found::Unfinished,
                Some(Closing::Stray(quote)) if quote < line => {
                    let end = self.field_end(text, quote);
                    fields.push(Span { start: at, end, quoted: false, escaped: false });
                    at = end;
                }
                Some(Closing::Never | Closing::Stray(_)) => return Found::Unclosed(behind_line_end(text, line)),
                None => {
                    let end = self.field_end(text, at);
                    fields.push(Span { start: at, end, quoted: false, escaped: false });
                    at = end;
                }
            }
            if text.get(at) != Some(&self.delimiter) {
                return Found::Record { bytes: behind_line_end(text, at), has_line_break };
            }
            at += 1;
        }
    }

    /// The quote that closes a field in quotes whose text begins at `at`.
    fn closing(&self, text: &[u8], mut at: usize) -> Closing {
        let mut escaped = false;
        while let Some(byte) = text.get(at) {
            let next = text.get(at + 1);
            let by_escape = *byte == self.escape
                && self.escape != self.quote
                && matches!(next, Some(b) if *b == self.quote || *b == self.escape);
            if by_escape || (*byte == self.quote && next == Some(&self.quote)) {
                escaped = true;
                at += 2;
            } else if *byte == self.quote {
                return match next {
                    Some(next) if *next == self.delimiter || matches!(next, b'\n' | b'\r') => {
                        Closing::At { quote: at, escaped }
                    }
                    _ => Closing::Stray(at),
                };
            } else {
                at += 1;
            }
        }
        Closing::Never
    }

    fn field_end(&self, text: &[u8], at: usize) -> usize {
        let is_end = |byte: &u8| *byte == self.delimiter || matches!(byte, b'\n' | b'\r');
        at + text.iter().skip(at).position(is_end).unwrap_or(text.len().saturating_sub(at))
    }

    /// The text of a field. `record` is the text in which it was found.
    pub(super) fn field<'a>(&self, record: &'a str, span: Span) -> Cow<'a, str> {
        let text = record.get(span.start..span.end).unwrap_or_default();
        if !span.escaped {
            return Cow::Borrowed(text);
        }
        let (quote, escape) = (char::from(self.quote), char::from(self.escape));
        let mut chars = text.chars().peekable();
        let mut plain = String::with_capacity(text.len());
        while let Some(c) = chars.next() {
            let second = chars
                .next_if(|next| (c == quote && *next == quote) || (c == escape && (*next == quote || *next == escape)));
            plain.push(second.unwrap_or(c));
        }
        Cow::Owned(plain)
    }
}

/// Where the line that `at` is in ends.
pub(super) fn line_end(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    at + rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(rest.len())
}

/// The place behind the line end at `at`.
pub(super) fn behind_line_end(text: &[u8], at: usize) -> usize {
    match (text.get(at), text.get(at + 1)) {
        (Some(b'\r'), Some(b'\n')) => at + 2,
        (Some(_), _) => at + 1,
        (None, _) => text.len(),
    }
}
