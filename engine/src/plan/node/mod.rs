//! Nodes of our own in DataFusion's logical plan.

pub(crate) mod deduplicate;

pub(crate) mod join;

pub(crate) mod limit;

pub(crate) mod number_rows;

pub(crate) mod session;

pub(crate) mod single_row;

pub(crate) mod standing_filter;

pub(crate) mod watermark;
