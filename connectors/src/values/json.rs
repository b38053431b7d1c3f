//! One JSON document as a row of tokens.
//!
//! A document is read once from front to back, without recursion, and must be right to its end. Values are not converted
//! here: a number stays the text it was, so no digit is lost, and an object can be had as the text it was.
//!
//! As in Spark, text may stand in single quotes, and `NaN`, `Infinity`, `-Infinity`, `+INF` and their like are numbers.

use std::borrow::Cow;

/// How deep a document may be nested.
pub(crate) const DEPTH_MAX: usize = 1000;

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Object,
    Array,
    Text,
    Number,
    Boolean,
    Null,
}

#[derive(Debug, Clone, Copy)]
struct Token {
    kind: Kind,
    /// Whether it is text with a backslash in it.
    escaped: bool,
    /// Where its text is, without quotes.
    start: usize,
    end: usize,
    /// The token after this value and all that is in it.
    next: usize,
}

/// The tokens of a document; used again for the next one.
#[derive(Debug, Default)]
pub(crate) struct Document {
    tokens: Vec<Token>,
    open: Vec<usize>,
}

/// A value within a document.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Value<'a> {
    text: &'a str,
    tokens: &'a [Token],
    at: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    CommaOrEnd,
}

impl Document {
    /// The value that `text` is, blanks around it aside, or what is wrong with it.
    pub(crate) fn parse<'a>(&'a mut self, text: &'a str) -> Result<Value<'a>, String> {
        self.tokens.clear();
        self.open.clear();
        let bytes = text.as_bytes();
        let (mut at, mut expect) = (0, Expect::Value);
        loop {
            at += bytes.iter().skip(at).take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count();
            let Some(&byte) = bytes.get(at) else { break };
            let done = expect == Expect::CommaOrEnd && self.open.is_empty();
            if done {
                return Err("something follows the JSON object".to_owned());
            }
            let in_object =
                self.open.last().and_then(|open| self.tokens.get(*open)).map(|t| t.kind) == Some(Kind::Object);
            match (expect, byte) {
                (Expect::CommaOrEnd, b',') => {
                    at += 1;
                    expect = if in_object { Expect::Key } else { Expect::Value };
                }
                (Expect::CommaOrEnd | Expect::KeyOrEnd, b'}') if in_object => {
                    at += 1;
                    self.close(at);
                    expect = Expect::CommaOrEnd;
                }
                (Expect::CommaOrEnd | Expect::ValueOrEnd, b']') if !in_object => {
                    at += 1;
                    self.close(at);
                    expect = Expect::CommaOrEnd;
                }
                (Expect::Key | Expect::KeyOrEnd, b'"' | b'\'') => {
                    at = self.quoted(text, at)?;
                    at += bytes.iter().skip(at).take_while(|byte| byte.is_ascii_whitespace()).count();
                    match bytes.get(at) {
                        Some(b':') => at += 1,
                        Some(_) => return Err("a colon is missing".to_owned()),
                        None => break,
                    }
                    expect = Expect::Value;
                }
                (Expect::Value | Expect::ValueOrEnd, b'{' | b'[') => {
                    if self.open.len() >= DEPTH_MAX {
                        return Err(format!("it is nested deeper than {DEPTH_MAX} levels"));
                    }
                    self.open.push(self.tokens.len());
                    let kind = if byte == b'{' { Kind::Object } else { Kind::Array };
                    self.push(kind, false, at, at);
                    at += 1;
                    expect = if byte == b'{' { Expect::KeyOrEnd } else { Expect::ValueOrEnd };
                }
                (Expect::Value | Expect::ValueOrEnd, b'"' | b'\'') => {
                    at = self.quoted(text, at)?;
                    expect = Expect::CommaOrEnd;
                }
                (Expect::Value | Expect::ValueOrEnd, _) => {
                    at = self.word(text, at)?;
                    expect = Expect::CommaOrEnd;
                }
                _ => {
                    let found = text.get(at..).and_then(|rest| rest.chars().next()).unwrap_or_default();
                    return Err(format!("unexpected {found:?}"));
                }
            }
        }
        match (expect, self.open.is_empty()) {
            (Expect::CommaOrEnd, true) => Ok(Value { text, tokens: &self.tokens, at: 0 }),
            (_, true) => Err("it is empty".to_owned()),
            _ => Err("the JSON object does not end".to_owned()),
        }
    }

    fn push(&mut self, kind: Kind, escaped: bool, start: usize, end: usize) {
        let next = self.tokens.len() + 1;
        self.tokens.push(Token { kind, escaped, start, end, next });
    }

    fn close(&mut self, end: usize) {
        let next = self.tokens.len();
        if let Some(token) = self.open.pop().and_then(|open| self.tokens.get_mut(open)) {
            (token.end, token.next) = (end, next);
        }
    }

    /// Takes text in quotes; gives the place behind it.
    fn quoted(&mut self, text: &str, at: usize) -> Result<usize, String> {
        let bytes = text.as_bytes();
        let quote = bytes.get(at).copied().unwrap_or(b'"');
        let start = at + 1;
        let (mut at, mut escaped) = (start, false);
        loop {
            match bytes.get(at) {
                None => return Err("the JSON object does not end".to_owned()),
                Some(byte) if *byte == quote => break,
                Some(b'\\') => {
                    escaped = true;
                    let (_, length) = unescaped(bytes.get(at + 1..).unwrap_or_default())
                        .ok_or_else(|| "a backslash in text has no meaning".to_owned())?;
                    at += 1 + length;
                }
                Some(byte) if *byte < b' ' => return Err("text holds a control character".to_owned()),
                Some(_) => at += 1,
            }
        }
        self.push(Kind::Text, escaped, start, at);
        Ok(at + 1)
    }

    /// Takes a number or a name; gives the place behind it.
    fn word(&mut self, text: &str, start: usize) -> Result<usize, String> {
        let rest = text.get(start..).unwrap_or_default();
        let is_end = |c: char| matches!(c, ',' | '}' | ']' | ':' | '{' | '[' | '"' | '\'') || c.is_ascii_whitespace();
        let word = rest.split(is_end).next().unwrap_or_default();
        let kind = match word {
            "true" | "false" => Kind::Boolean,
            "null" => Kind::Null,
            "NaN" | "Infinity" | "-Infinity" | "+Infinity" | "INF" | "-INF" | "+INF" => Kind::Number,
            _ if is_number(word) => Kind::Number,
            "" => return Err(format!("unexpected {:?}", rest.chars().next().unwrap_or_default())),
            _ => return Err(format!("{} is not a JSON value", quote(word))),
        };
        self.push(kind, false, start, start + word.len());
        Ok(start + word.len())
    }
}

fn is_number(word: &str) -> bool {
    let unsigned = word.strip_prefix('-').unwrap_or(word);
    let (number, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, exponent.strip_prefix(['+', '-']).unwrap_or(exponent)),
        None => (unsigned, "0"),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits(whole) && digits(fraction) && digits(exponent) && (whole == "0" || !whole.starts_with('0'))
}

/// The character that stands behind a backslash, and how many bytes it takes there.
fn unescaped(rest: &[u8]) -> Option<(char, usize)> {
    let hex = |at: usize| -> Option<u32> {
        let digits = rest.get(at..at + 4)?;
        digits.iter().try_fold(0, |code, digit| Some(code * 16 + char::from(*digit).to_digit(16)?))
    };
    Some(match rest.first()? {
        b'n' => ('\n', 1),
        b't' => ('\t', 1),
        b'r' => ('\r', 1),
        b'b' => ('\u{8}', 1),
        b'f' => ('\u{c}', 1),
        same @ (b'"' | b'\'' | b'\\' | b'/') => (char::from(*same), 1),
        b'u' => match hex(1)? {
            high @ 0xD800..0xDC00 => {
                let low =
                    hex(7).filter(|low| rest.get(5..7) == Some(b"\\u".as_slice()) && (0xDC00..0xE000).contains(low))?;
                (char::from_u32(0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00))?, 11)
            }
            code => (char::from_u32(code)?, 5),
        },
        _ => return None,
    })
}

/// `text` in quotes, shortened.
pub(crate) fn quote(text: &str) -> String {
    const CHARS: usize = 60;
    match text.char_indices().nth(CHARS) {
        Some((end, _)) => format!("'{}…'", text.get(..end).unwrap_or_default()),
        None => format!("'{text}'"),
    }
}

impl<'a> Value<'a> {
    fn token(&self) -> Token {
        let none = Token { kind: Kind::Null, escaped: false, start: 0, end: 0, next: self.at + 1 };
        self.tokens.get(self.at).copied().unwrap_or(none)
    }

    pub(crate) fn kind(&self) -> Kind {
        self.token().kind
    }

    /// Its text as it stands in the document; text without its quotes.
    pub(crate) fn raw(&self) -> &'a str {
        let token = self.token();
        self.text.get(token.start..token.end).unwrap_or_default()
    }

    /// What it says as text: text itself, or the JSON text of anything else.
    pub(crate) fn as_text(&self) -> Cow<'a, str> {
        let raw = self.raw();
        if !self.token().escaped {
            return Cow::Borrowed(raw);
        }
        let (mut text, mut rest) = (String::with_capacity(raw.len()), raw);
        while let Some((before, after)) = rest.split_once('\\') {
            text.push_str(before);
            let (c, length) = unescaped(after.as_bytes()).unwrap_or(('\\', 0));
            text.push(c);
            rest = after.get(length..).unwrap_or_default();
        }
        text.push_str(rest);
        Cow::Owned(text)
    }

    /// What is in an array; in an object, keys and values by turns.
    pub(crate) fn children(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (text, tokens, end, mut at) = (self.text, self.tokens, self.token().next, self.at + 1);
        std::iter::from_fn(move || {
            let child = Value { text, tokens, at };
            (at < end).then(|| {
                at = child.token().next;
                child
            })
        })
    }

    /// The keys of an object and their values.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (Value<'a>, Value<'a>)> + use<'a> {
        let mut children = self.children();
        std::iter::from_fn(move || Some((children.next()?, children.next()?)))
    }
}
