//! A sink behind a pointer is a sink: what is known at run time only, as one by its name in SQL, is written to like any other.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Guarantee, Sink, SinkContext, StreamingWrite, WriterContext, WriterFactory};
use crate::error::Result;
use crate::identity::Identity;
use crate::output_mode::OutputMode;

/// Forwards every method: clippy refuses one that is left to its default.
macro_rules! forward {
    ($pointer:ident) => {
        #[deny(clippy::missing_trait_methods)]
        #[async_trait]
        impl<T: Sink + ?Sized> Sink for $pointer<T> {
            fn description(&self) -> String {
                T::description(self)
            }

            fn guarantee(&self) -> Guarantee {
                T::guarantee(self)
            }

            fn supports_output_mode(&self, mode: OutputMode) -> bool {
                T::supports_output_mode(self, mode)
            }

            fn identity(&self) -> Option<Identity> {
                T::identity(self)
            }

            fn has_time_limit(&self) -> bool {
                T::has_time_limit(self)
            }

            async fn open(&self, context: SinkContext) -> Result<Box<dyn StreamingWrite>> {
                T::open(self, context).await
            }

            fn writer_factory(&self, context: WriterContext) -> Result<Option<Arc<dyn WriterFactory>>> {
                T::writer_factory(self, context)
            }
        }
    };
}

forward!(Arc);
forward!(Box);
