//! The logical nodes that Tidewater adds to DataFusion's.

pub(crate) mod deduplicate;

pub(crate) mod watermark;
