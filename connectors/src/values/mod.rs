//! What text says, as values of columns: one reading for files and for messages, by Spark's rules.
//!
//! ```text
//! a field of CSV ──────────────────────▶ Column::append_text ─┐
//! a line, a message ── Document (JSON) ─▶ Column::append_json ─┴─▶ an Arrow array
//! ```
//!
//! A value that does not fit its column becomes null there, and the caller is informed: what that means for the whole row is
//! the caller's matter. So one bad row costs no more than a good one, and its neighbours are not looked at again.
//! Nothing is made to fit: no fraction is cut off a whole number, nothing wraps, no text becomes null.

mod column;

pub(crate) mod json;

mod nested;

mod text;

mod write;

pub(crate) use self::nested::Record;
pub(crate) use self::write::JsonValues;
