//! What is beneath an error that is serialised: from the outermost to the innermost, in words.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

type Source = Arc<dyn Error + Send + Sync>;

/// A cause of which the words are left.
#[derive(Debug)]
struct Words {
    words: String,
    beneath: Option<Box<Words>>,
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl Error for Words {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.beneath.as_deref().map(|beneath| beneath as _)
    }
}

pub(super) fn serialize<S: Serializer>(source: &Option<Source>, serializer: S) -> Result<S::Ok, S::Error> {
    words(source.as_deref().map(|source| source as _)).serialize(serializer)
}

fn words(mut next: Option<&(dyn Error + 'static)>) -> Vec<String> {
    let mut words = vec![];
    while let Some(error) = next {
        words.push(error.to_string());
        next = error.source();
    }
    words
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Source>, D::Error> {
    let words = Vec::<String>::deserialize(deserializer)?;
    let beneath = |beneath, words| Some(Box::new(Words { words, beneath }));
    let outermost: Option<Box<Words>> = words.into_iter().rev().fold(None, beneath);
    Ok(outermost.map(|outermost| Arc::from(outermost as Box<dyn Error + Send + Sync>)))
}

#[cfg(test)]
mod tests {
    use super::super::{Error, ErrorKind};
    use super::words;

    #[test]
    fn an_error_is_the_same_on_the_other_side() {
        let inner = Error::new(ErrorKind::BadInput, "line 3 is not JSON").with_source(std::io::Error::other("a brace"));
        let error =
            Error::new(ErrorKind::Unavailable, "cannot read").with_file("in/a").with_hint("wait").with_source(inner);
        for error in [error, Error::internal("alone")] {
            let there: Error = serde_json::from_str(&serde_json::to_string(&error).unwrap()).unwrap();
            assert_eq!((there.kind(), there.to_string()), (error.kind(), error.to_string()));
            let causes = |error: &Error| words(std::error::Error::source(error));
            assert_eq!(causes(&there), causes(&error));
        }
    }
}
