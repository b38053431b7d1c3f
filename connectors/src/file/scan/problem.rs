//! What went wrong while a file was read, in words that name it.

use std::error::Error as StdError;

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use datafusion::parquet::errors::ParquetError;
use tidewater::error::{Error, ErrorKind};

/// What the query may go on without, if configured to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The file is gone.
    Gone,
    /// It is there, and its bytes are not what they should be.
    Corrupt,
    /// Anything else.
    Other,
}

/// `error`, which came up while the file `uri` was read.
pub(super) fn in_file(error: DataFusionError, uri: &str) -> (Error, Trouble) {
    let own = Error::from(error);
    let (own, trouble) = match cause(&own) {
        Some(Cause::Gone) => (gone(own), Trouble::Gone),
        Some(Cause::Torn(why)) => {
            let torn = Error::new(ErrorKind::BadInput, format!("the file is torn or damaged: {why}"))
                .with_hint(
                    "replace it by a whole one of the same name and start again: the batch will be repeated; or set the \
                     option `ignoreCorruptFiles` to go on without what is left of it",
                )
                .with_source(own);
            (torn, Trouble::Corrupt)
        }
        Some(Cause::Storage(why)) => {
            let failed = Error::new(ErrorKind::Unavailable, format!("cannot read the file: {why}"))
                .with_hint("check the rights, the disk and the network, then start again: the batch will be repeated")
                .with_source(own);
            (failed, Trouble::Other)
        }
        None => (own, Trouble::Other),
    };
    (own.with_file(uri), trouble)
}

/// A file is gone that a batch needs.
pub(in crate::file) fn gone(why: impl StdError + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::SourceLostData, "the file is gone, and a batch that was begun needs its rows")
        .with_hint(
            "put it back with the same contents, and let nothing delete input files before they are committed; if it is \
             lost for good, set the option `ignoreMissingFiles` to go on without it",
        )
        .with_source(why)
}

enum Cause {
    /// There is no such file.
    Gone,
    /// It is there and cannot be decompressed or decoded.
    Torn(String),
    /// Storage failed.
    Storage(String),
}

/// Looks underneath `error` for the failure of storage. An own error on the way has said it already.
fn cause(error: &Error) -> Option<Cause> {
    let (mut next, mut torn) = (error.source(), None);
    while let Some(e) = next {
        if let Some(store) = e.downcast_ref::<object_store::Error>() {
            return Some(match store {
                object_store::Error::NotFound { .. } => Cause::Gone,
                _ => Cause::Storage(store.to_string()),
            });
        }
        if let Some(io) = e.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind::{InvalidData, InvalidInput, NotFound, UnexpectedEof};
            // An error of storage may be wrapped as one of IO, to pass through a decompressor.
            if let Some(inner) = io.get_ref() {
                next = Some(inner);
                if !inner.is::<DataFusionError>() && !inner.is::<object_store::Error>() && inner.source().is_none() {
                    return Some(Cause::Torn(io.to_string()));
                }
                continue;
            }
            return Some(match io.kind() {
                NotFound => Cause::Gone,
                InvalidData | InvalidInput | UnexpectedEof => Cause::Torn(io.to_string()),
                _ => Cause::Storage(io.to_string()),
            });
        }
        let is_parquet = e.is::<ParquetError>() || matches!(e.downcast_ref(), Some(ArrowError::ParquetError(_)));
        // Unless storage is to blame underneath.
        if is_parquet && torn.is_none() {
            torn = Some(Cause::Torn(e.to_string()));
        }
        next = e.source();
    }
    torn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_apart() {
        let gone = object_store::Error::NotFound { path: "x".to_owned(), source: "no such file".into() };
        let through_io = std::io::Error::other(DataFusionError::ObjectStore(Box::new(gone)));
        let (error, trouble) = in_file(DataFusionError::IoError(through_io), "file:///x.csv");
        assert_eq!(trouble, Trouble::Gone);
        assert_eq!(error.kind(), ErrorKind::SourceLostData);
        assert_eq!(error.file(), Some("file:///x.csv"));

        let torn = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "unexpected end of file");
        assert_eq!(in_file(DataFusionError::IoError(torn), "x").0.kind(), ErrorKind::BadInput);
        let torn = std::io::Error::from(std::io::ErrorKind::InvalidData);
        assert_eq!(in_file(DataFusionError::IoError(torn), "x").0.kind(), ErrorKind::BadInput);
        let rights = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        assert_eq!(in_file(DataFusionError::IoError(rights), "x").0.kind(), ErrorKind::Unavailable);

        let torn = DataFusionError::ParquetError(Box::new(ParquetError::General("Invalid Parquet file".to_owned())));
        assert_eq!(in_file(torn, "x").1, Trouble::Corrupt);
        let storage = object_store::Error::Generic { store: "s3", source: "no answer".into() };
        let storage = DataFusionError::ParquetError(Box::new(ParquetError::External(storage.into())));
        let (error, trouble) = in_file(storage, "x");
        assert_eq!((error.kind(), trouble), (ErrorKind::Unavailable, Trouble::Other));

        let own = Error::new(ErrorKind::BadInput, "line 3 is malformed");
        assert_eq!(in_file(own.into(), "x").0.message(), "line 3 is malformed");
    }
}
