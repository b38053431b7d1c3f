//! A source behind a pointer is a source: what is known at run time only, as one by its name in SQL, is read like any other.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;

use super::{MicroBatchStream, ScanContext, Source, SourceContext, SourceScanner};
use crate::error::Result;
use crate::identity::Identity;

/// Forwards every method: clippy refuses one that is left to its default.
macro_rules! forward {
    ($pointer:ident) => {
        #[deny(clippy::missing_trait_methods)]
        #[async_trait]
        impl<T: Source + ?Sized> Source for $pointer<T> {
            fn description(&self) -> String {
                T::description(self)
            }

            fn schema(&self) -> SchemaRef {
                T::schema(self)
            }

            fn emits_dead_letters(&self) -> bool {
                T::emits_dead_letters(self)
            }

            fn knows_file_names(&self) -> bool {
                T::knows_file_names(self)
            }

            fn identity(&self) -> Option<Identity> {
                T::identity(self)
            }

            fn reads_from(&self, sink: &Identity) -> Result<bool> {
                T::reads_from(self, sink)
            }

            async fn open(&self, context: SourceContext) -> Result<Box<dyn MicroBatchStream>> {
                T::open(self, context).await
            }

            fn scanner(&self, context: ScanContext) -> Result<Option<Arc<dyn SourceScanner>>> {
                T::scanner(self, context)
            }
        }
    };
}

forward!(Arc);
forward!(Box);
