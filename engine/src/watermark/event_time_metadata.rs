//! The marks by which a column is known as event time: metadata of its field.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{Field, FieldRef};

/// The key of the mark in a field's metadata. Its value is always the same, so that it survives a union of inputs whose
/// delays differ.
const EVENT_TIME: &str = "tidewater.event_time";

/// Whether a column is event time.
pub(crate) fn is_event_time(field: &Field) -> bool {
    field.metadata().contains_key(EVENT_TIME)
}

/// The metadata of an event-time column.
pub(crate) fn event_time_marker() -> HashMap<String, String> {
    HashMap::from([(EVENT_TIME.to_owned(), "true".to_owned())])
}

/// The event-time metadata of a column computed from `field`: that of `field`, empty if `field` is not event time.
pub(crate) fn marks_of(field: &Field) -> HashMap<String, String> {
    if is_event_time(field) { event_time_marker() } else { HashMap::new() }
}

/// The field without marks.
pub(crate) fn without_marks(field: &FieldRef) -> FieldRef {
    let mut metadata = field.metadata().clone();
    let marks = [EVENT_TIME, WINDOW_US, SIZE_US].into_iter().filter_map(|mark| metadata.remove(mark)).count();
    if marks == 0 { Arc::clone(field) } else { Arc::new(field.as_ref().clone().with_metadata(metadata)) }
}

/// The field, marked as event time and nothing more.
pub(crate) fn plainly_marked(field: &FieldRef) -> FieldRef {
    let mut metadata = without_marks(field).metadata().clone();
    metadata.extend(event_time_marker());
    Arc::new(field.as_ref().clone().with_metadata(metadata))
}

/// The key of a further mark: the column is the start of a window of so many µs, and its time is the window's end.
pub(crate) const WINDOW_US: &str = "tidewater.event_time.window_us";

/// The length of the window that a marked column is the start of.
pub(crate) fn window_us(field: &Field) -> Option<i64> {
    field.metadata().get(WINDOW_US)?.parse().ok()
}

/// The key of a further mark: the column is a window of so many µs. Its time is its end; this says what the start is worth
/// by itself.
pub(crate) const SIZE_US: &str = "tidewater.event_time.size_us";

/// The length of the windows in a marked column, where all have the same.
pub(crate) fn size_us(field: &Field) -> Option<i64> {
    field.metadata().get(SIZE_US)?.parse().ok()
}

/// The marks that a bound of the windows in this column takes over: its end is as good as the window, its start if the
/// length is known.
pub(crate) fn marks_of_bound(window: &Field, start: bool) -> HashMap<String, String> {
    let mut own = marks_of(window);
    match (start, size_us(window)) {
        (true, Some(size)) if !own.is_empty() => {
            own.insert(WINDOW_US.to_owned(), size.to_string());
        }
        (true, _) => own.clear(),
        (false, _) => {}
    }
    own
}
