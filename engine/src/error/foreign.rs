//! Errors of DataFusion and Arrow, as ours.

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;

use super::{Error, ErrorKind};

impl From<DataFusionError> for Error {
    /// Finds a Tidewater error that travelled through a DataFusion stream; anything else keeps DataFusion's words.
    fn from(error: DataFusionError) -> Self {
        if let Some(own) = find_own(&error) {
            return own.clone();
        }
        let kind = match error.find_root() {
            DataFusionError::Plan(_) | DataFusionError::SchemaError(..) | DataFusionError::SQL(..) => {
                ErrorKind::InvalidQuery
            }
            DataFusionError::NotImplemented(_) => ErrorKind::Unsupported,
            DataFusionError::ObjectStore(_) | DataFusionError::IoError(_) => ErrorKind::Unavailable,
            DataFusionError::ResourcesExhausted(_) => ErrorKind::OutOfMemory,
            DataFusionError::External(inner) => kind_of_foreign(inner.as_ref()),
            DataFusionError::ArrowError(inner, _) => match inner.as_ref() {
                ArrowError::MemoryError(_) => ErrorKind::OutOfMemory,
                ArrowError::ExternalError(inner) => kind_of_foreign(inner.as_ref()),
                ArrowError::IoError(_, inner) if !is_about_contents(inner) => ErrorKind::Unavailable,
                _ => ErrorKind::BadInput,
            },
            DataFusionError::ParquetError(inner) if is_of_storage(inner.as_ref()) => ErrorKind::Unavailable,
            DataFusionError::Internal(_) => ErrorKind::Internal,
            _ => ErrorKind::BadInput,
        };
        Error::new(kind, error.strip_backtrace()).with_source(error)
    }
}

/// An error that neither DataFusion nor Arrow made: of storage, or of the query's own functions and tables.
fn kind_of_foreign(error: &(dyn std::error::Error + 'static)) -> ErrorKind {
    if is_of_storage(error) { ErrorKind::Unavailable } else { ErrorKind::UserCode }
}

/// Whether storage is at the bottom of it.
fn is_of_storage(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(e) = next {
        if e.is::<object_store::Error>() || e.is::<std::io::Error>() {
            return true;
        }
        next = e.source();
    }
    false
}

/// Whether a reader says by it that the bytes are not what they should be, and not that there are none.
fn is_about_contents(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof)
}

/// Looks through the layers that DataFusion and Arrow put around an external error.
fn find_own(error: &DataFusionError) -> Option<&Error> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = next {
        if let Some(own) = e.downcast_ref::<Error>() {
            return Some(own);
        }
        if let Some(DataFusionError::Shared(inner)) = e.downcast_ref::<DataFusionError>() {
            return find_own(inner);
        }
        next = e.source();
    }
    None
}

impl From<Error> for DataFusionError {
    fn from(error: Error) -> Self {
        DataFusionError::External(Box::new(error))
    }
}

impl From<ArrowError> for Error {
    fn from(error: ArrowError) -> Self {
        DataFusionError::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::BatchId;

    #[test]
    fn own_errors_survive_the_way_through_datafusion() {
        let own = Error::new(ErrorKind::Fenced, "batch 3 was written by another run").with_batch(BatchId(3));
        let outer = DataFusionError::Context("while writing".into(), Box::new(own.into()));
        let back = Error::from(outer);
        assert_eq!(back.kind(), ErrorKind::Fenced);
        assert_eq!(back.batch(), Some(BatchId(3)));
    }

    /// A sink whose folder is gone has not lost the input of a source.
    #[test]
    fn what_a_store_answers_is_of_the_kind_that_it_is() {
        let gone = || object_store::Error::NotFound { path: "out/a".to_owned(), source: "no such key".into() };
        let error = Error::store("write the file", "s3://b/out/a", gone());
        assert_eq!((error.kind(), error.file()), (ErrorKind::Unavailable, Some("s3://b/out/a")));
        assert_eq!(Error::from(DataFusionError::ObjectStore(Box::new(gone()))).kind(), ErrorKind::Unavailable);
        let through_arrow = ArrowError::ExternalError(Box::new(gone()));
        assert_eq!(Error::from(through_arrow).kind(), ErrorKind::Unavailable);
        let disk = |kind| ArrowError::IoError("reading".to_owned(), std::io::Error::from(kind));
        assert_eq!(Error::from(disk(std::io::ErrorKind::TimedOut)).kind(), ErrorKind::Unavailable);
        assert_eq!(Error::from(disk(std::io::ErrorKind::UnexpectedEof)).kind(), ErrorKind::BadInput);
        assert_eq!(Error::from(ArrowError::CastError("x".to_owned())).kind(), ErrorKind::BadInput);
    }
}
