//! What went wrong while a file was read, in words that name it.

use std::error::Error as StdError;

use datafusion::error::DataFusionError;
use tidewater::error::{Error, ErrorKind};

/// `error`, which came up while the file `uri` was read.
pub(super) fn in_file(error: DataFusionError, uri: &str) -> Error {
    let own = Error::from(error);
    let own = match cause(&own) {
        Some(Cause::Gone) => Error::new(ErrorKind::SourceLostData, "the file is gone, and a batch needs its rows")
            .hint("put it back with the same contents, and let nothing delete input files before they are committed")
            .caused_by(own),
        Some(Cause::Torn(why)) => Error::new(ErrorKind::BadInput, format!("the file is torn or damaged: {why}"))
            .hint("replace it by a whole one of the same name and start again: the batch will be repeated")
            .caused_by(own),
        Some(Cause::Storage(why)) => Error::new(ErrorKind::Unavailable, format!("cannot read the file: {why}"))
            .hint("check the rights, the disk and the network, then start again: the batch will be repeated")
            .caused_by(own),
        None => own,
    };
    own.file(uri)
}

enum Cause {
    /// There is no such file.
    Gone,
    /// It is there and cannot be decompressed.
    Torn(String),
    /// Storage failed.
    Storage(String),
}

/// Looks underneath `error` for the failure of storage. An own error on the way has said it already.
fn cause(error: &Error) -> Option<Cause> {
    let mut next = error.source();
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
        next = e.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_apart() {
        let gone = object_store::Error::NotFound { path: "x".to_owned(), source: "no such file".into() };
        let through_io = std::io::Error::other(DataFusionError::ObjectStore(Box::new(gone)));
        let error = in_file(DataFusionError::IoError(through_io), "file:///x.csv");
        assert_eq!(error.kind(), ErrorKind::SourceLostData);
        assert_eq!(error.file_name(), Some("file:///x.csv"));

        let torn = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "unexpected end of file");
        assert_eq!(in_file(DataFusionError::IoError(torn), "x").kind(), ErrorKind::BadInput);
        let torn = std::io::Error::from(std::io::ErrorKind::InvalidData);
        assert_eq!(in_file(DataFusionError::IoError(torn), "x").kind(), ErrorKind::BadInput);
        let rights = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        assert_eq!(in_file(DataFusionError::IoError(rights), "x").kind(), ErrorKind::Unavailable);

        let own = Error::new(ErrorKind::BadInput, "line 3 is malformed");
        assert_eq!(in_file(own.into(), "x").message(), "line 3 is malformed");
    }
}
