//! Errors for the person who must act.
//!
//! An [`Error`] says what happened, where (query, batch, partition, file), and what to do next. The [`ErrorKind`]
//! is for programs: there are few, and each asks for a different reaction. An error can be serialised: of what is beneath it
//! the words remain.

mod causes;

mod foreign;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures::FutureExt;
use serde::{Deserialize, Serialize};

use crate::id::{BatchId, PartitionId, QueryId};

/// A `Result` whose error is Tidewater's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of reaction an [`Error`] asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The query, an option or a call is wrong: change it. Nothing was read or written.
    InvalidQuery,
    /// A stream cannot answer this, now or ever, in this output mode, or DataFusion cannot at all: the message says which, and
    /// where there is a way out, the hint names it.
    Unsupported,
    /// The checkpoint belongs to another query, or was written by a newer version.
    IncompatibleCheckpoint,
    /// A file of the checkpoint or of a sink's log is missing, torn or contradicts another.
    DamagedCheckpoint,
    /// The source no longer has rows that a logged batch needs.
    SourceLostData,
    /// A record or file of the input cannot be read as what it is declared to be.
    BadInput,
    /// Storage or network did not answer, or refused. Starting the query again is safe.
    Unavailable,
    /// The query needs more memory than its session may use. Started again as it is, it will need it again.
    OutOfMemory,
    /// Another run of the same query took over; this one wrote nothing after that.
    Fenced,
    /// The query was asked to stop, or its runtime was shut down, and it left its batch unfinished; the next start repeats
    /// it.
    Stopped,
    /// Code of the user (a sink function, a UDF) failed or panicked.
    UserCode,
    /// Something that should be impossible. Please report it.
    Internal,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ErrorKind::InvalidQuery => "invalid query",
            ErrorKind::Unsupported => "not supported",
            ErrorKind::IncompatibleCheckpoint => "incompatible checkpoint",
            ErrorKind::DamagedCheckpoint => "damaged checkpoint",
            ErrorKind::SourceLostData => "source lost data",
            ErrorKind::BadInput => "bad input",
            ErrorKind::Unavailable => "storage unavailable",
            ErrorKind::OutOfMemory => "out of memory",
            ErrorKind::Fenced => "fenced by another run",
            ErrorKind::Stopped => "stopped",
            ErrorKind::UserCode => "user code failed",
            ErrorKind::Internal => "internal error",
        })
    }
}

/// What happened, where, and what to do next.
///
/// Cloning is cheap: a failed query hands the same error to everyone who asks.
///
/// ```
/// use tidewater::error::{Error, ErrorKind};
///
/// let error = Error::new(ErrorKind::BadInput, "line 3 is not JSON")
///     .with_file("in/part-7.json")
///     .with_hint("fix the line and start the query again");
/// assert_eq!(
///     error.to_string(),
///     "bad input: line 3 is not JSON [file in/part-7.json]. What to do: fix the line and start the query again"
/// );
/// ```
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Error(Box<Inner>);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Inner {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    query: Option<QueryId>,
    batch: Option<BatchId>,
    partition: Option<PartitionId>,
    file: Option<String>,
    #[serde(with = "causes")]
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of this kind. The message starts in lower case and has no full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            kind,
            message: message.into(),
            hint: None,
            query: None,
            batch: None,
            partition: None,
            file: None,
            source: None,
        }))
    }

    /// The call or the query is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidQuery, message)
    }

    /// A stream cannot answer this.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// A file of the checkpoint or of a sink's log is not what it must be.
    pub fn damaged(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::DamagedCheckpoint, message)
    }

    /// Should be impossible.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// There is no `name` among the `known` ones. `kind` is what it should name ("option"), `whose` is who was asked ("the file
    /// source"). The message offers the names that are spelled much like it; the hint lists all.
    ///
    /// ```
    /// use tidewater::error::Error;
    ///
    /// let error = Error::unknown("option", "heder", "the file source", &["header", "quote"]);
    /// assert_eq!(error.message(), "unknown option `heder` of the file source: did you mean `header`?");
    /// ```
    pub fn unknown(kind: &str, name: &str, whose: &str, known: &[&str]) -> Self {
        let near = near(name, known);
        let guess = if near.is_empty() { String::new() } else { format!(": did you mean {}?", near.join(" or ")) };
        let hint = if known.is_empty() { "it knows none".to_owned() } else { format!("it knows {}", known.join(", ")) };
        Self::invalid(format!("unknown {kind} `{name}` of {whose}{guess}")).with_hint(hint)
    }

    /// Reading or writing `file` failed; the kind follows from the IO error.
    pub fn io(action: &str, file: impl Into<String>, source: std::io::Error) -> Self {
        let hint = match source.kind() {
            std::io::ErrorKind::PermissionDenied => "give the process the right to this path, then start again",
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                "free space on the disk, then start again: the batch will be repeated"
            }
            std::io::ErrorKind::NotFound => "check that the path exists and nothing else deletes files there",
            _ => "check the disk and the path, then start again",
        };
        Self::new(ErrorKind::Unavailable, format!("cannot {action}: {source}"))
            .with_file(file)
            .with_hint(hint)
            .with_source(source)
    }

    /// Reading or writing `file` in an object store failed. Whether a file that is not there is lost input, or just not there, is
    /// known to who asked for it: here it is [`Unavailable`](ErrorKind::Unavailable), as all that a store answers but that
    /// it does not support the operation.
    pub fn store(action: &str, file: impl Into<String>, source: object_store::Error) -> Self {
        use object_store::Error as Store;
        let (kind, hint) = match &source {
            Store::NotSupported { .. } | Store::NotImplemented { .. } => {
                (ErrorKind::Unsupported, "use another object store")
            }
            Store::NotFound { .. } => {
                (ErrorKind::Unavailable, "check that the path exists and nothing else deletes files there")
            }
            Store::PermissionDenied { .. } | Store::Unauthenticated { .. } => {
                (ErrorKind::Unavailable, "give the process the right to this path, then start again")
            }
            _ => (ErrorKind::Unavailable, "check the store, its credentials and the network, then start again"),
        };
        Self::new(kind, format!("cannot {action}: {source}")).with_file(file).with_hint(hint).with_source(source)
    }

    /// Code of the user panicked: `whose` says which. The panic ended what called it, not the process.
    pub(crate) fn panicked(whose: &str, panic: &(dyn std::any::Any + Send)) -> Self {
        Self::new(ErrorKind::UserCode, format!("{whose} panicked: {}", words_of_panic(panic)))
    }

    /// The same error of another kind, once more is known of it.
    pub(crate) fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// The same error in other words.
    pub(crate) fn reworded(mut self, words: impl Fn(&str) -> String) -> Self {
        self.0.message = words(&self.0.message);
        self.0.hint = self.0.hint.as_deref().map(words);
        self
    }

    /// Adds what to do next.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds the query, unless one is named already.
    #[must_use]
    pub fn with_query(mut self, query: QueryId) -> Self {
        self.0.query.get_or_insert(query);
        self
    }

    /// Adds the batch, unless one is named already.
    #[must_use]
    pub fn with_batch(mut self, batch: BatchId) -> Self {
        self.0.batch.get_or_insert(batch);
        self
    }

    /// Adds the partition, unless one is named already.
    #[must_use]
    pub fn with_partition(mut self, partition: PartitionId) -> Self {
        self.0.partition.get_or_insert(partition);
        self
    }

    /// Adds the file, unless one is named already.
    #[must_use]
    pub fn with_file(mut self, file: impl Into<String>) -> Self {
        self.0.file.get_or_insert_with(|| file.into());
        self
    }

    /// Adds the error underneath.
    #[must_use]
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Arc::new(source));
        self
    }

    /// What reaction this asks for.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same may succeed later, with nothing changed: storage or network did not answer.
    pub fn is_retryable(&self) -> bool {
        self.0.kind == ErrorKind::Unavailable
    }

    /// What happened, without place and hint.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What to do next, if there is more to say than the message does.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The query it happened in, if known.
    pub fn query(&self) -> Option<QueryId> {
        self.0.query
    }

    /// The partition it happened in, if known.
    pub fn partition(&self) -> Option<PartitionId> {
        self.0.partition
    }

    /// The batch that failed, if one was running.
    pub fn batch(&self) -> Option<BatchId> {
        self.0.batch
    }

    /// The file at fault, if there is one.
    pub fn file(&self) -> Option<&str> {
        self.0.file.as_deref()
    }
}

/// Up to three of `known` that are spelled much like `name`, nearest first.
fn near(name: &str, known: &[&str]) -> Vec<String> {
    const ALIKE: f64 = 0.8;
    let name = name.to_ascii_lowercase();
    let mut scored: Vec<(f64, &str)> = known
        .iter()
        .map(|k| (strsim::jaro_winkler(&name, &k.to_ascii_lowercase()), *k))
        .filter(|(score, _)| *score >= ALIKE)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.into_iter().take(3).map(|(_, k)| format!("`{k}`")).collect()
}

/// What a panic said.
pub(crate) fn words_of_panic(panic: &(dyn std::any::Any + Send)) -> &str {
    let words = panic.downcast_ref::<String>().map(String::as_str);
    words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}

/// What code of the user makes of a call; a panic in it becomes an error.
pub(crate) fn guarded<T>(whose: impl FnOnce() -> String, work: impl FnOnce() -> Result<T>) -> Result<T> {
    // After a panic the run ends, and what panicked is only dropped.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked_in_a_call(whose, panic.as_ref())))
}

/// The same for an asynchronous call.
pub(crate) async fn guarded_call<T>(
    whose: impl FnOnce() -> String,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    done.unwrap_or_else(|panic| Err(panicked_in_a_call(whose, panic.as_ref())))
}

fn panicked_in_a_call(whose: impl FnOnce() -> String, panic: &(dyn std::any::Any + Send)) -> Error {
    Error::panicked(&whose(), panic).with_hint("fix the cause and start again: the batch is repeated")
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let e = &self.0;
        write!(f, "{}: {}", e.kind, e.message)?;
        let place: Vec<String> = [
            e.query.map(|q| format!("query {q}")),
            e.batch.map(|b| format!("batch {b}")),
            e.partition.map(|p| format!("partition {p}")),
            e.file.as_ref().map(|p| format!("file {p}")),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !place.is_empty() {
            write!(f, " [{}]", place.join(", "))?;
        }
        if let Some(hint) = &e.hint {
            write!(f, ". What to do: {hint}")?;
        }
        Ok(())
    }
}

/// As it reads, and below it, line by line, the errors underneath that say more: a `main` that returns this error prints it with
/// `Debug`.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.to_string();
        f.write_str(&said)?;
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            let words = cause.to_string();
            // Many errors repeat what is underneath.
            if !said.contains(&words) {
                write!(f, "\n  caused by: {words}")?;
                said.push_str(&words);
            }
            next = cause.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|s| s.as_ref() as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_is_named_by_whoever_knew_it_first() {
        let error = Error::internal("x").with_partition(PartitionId(1)).with_partition(PartitionId(2));
        assert!(error.to_string().contains("partition 1"));
    }

    #[test]
    fn debug_shows_each_cause_that_says_more() {
        let disk = std::io::Error::other("the disk answers no more");
        let inner = Error::new(ErrorKind::Unavailable, "cannot read the index").with_source(disk);
        let error = Error::new(ErrorKind::Unavailable, "cannot load state").with_hint("wait").with_source(inner);
        assert_eq!(
            format!("{error:?}"),
            "storage unavailable: cannot load state. What to do: wait\n  \
             caused by: storage unavailable: cannot read the index\n  caused by: the disk answers no more"
        );
        let repeated = Error::io("read", "f", std::io::Error::other("no answer"));
        assert_eq!(format!("{repeated:?}"), repeated.to_string());
    }
}
