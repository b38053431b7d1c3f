//! Nodes of our own in DataFusion's logical plan.

pub(crate) mod deduplicate;

pub(crate) mod join;

pub(crate) mod limit;

pub(crate) mod session;

pub(crate) mod watermark;
