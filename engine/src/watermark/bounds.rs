//! Until when the rows of a join of two streams are kept.

use arrow::datatypes::FieldRef;

/// When the rows of one side are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum SideBound {
    /// Never: they are not evicted.
    None,
    /// Once the time in their join key is at or before the watermark: see [`JoinBounds::key_time`].
    KeyTime,
    /// Once the time in `column` is at or before the watermark plus `offset_us`, which is a multiple of 1000.
    Range { column: usize, offset_us: i64 },
}

impl SideBound {
    /// Rows at or before this are final, in µs, while the watermark is `watermark_us`; `i64::MIN` for none.
    pub(crate) fn evict_us(self, watermark_us: i64) -> i64 {
        match self {
            SideBound::None => i64::MIN,
            SideBound::KeyTime => watermark_us,
            SideBound::Range { offset_us, .. } => watermark_us.saturating_add(offset_us),
        }
    }
}

/// What bounds the state of a join.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct JoinBounds {
    pub(crate) left: SideBound,
    pub(crate) right: SideBound,
    /// The event-time column of each side: rows whose time is behind the watermark are late.
    pub(crate) left_time: Option<usize>,
    pub(crate) right_time: Option<usize>,
    /// The join key that holds a time, if one does.
    pub(crate) key_time: Option<KeyTime>,
}

/// A join key that is an event time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct KeyTime {
    /// Its place among the keys.
    pub(crate) key: usize,
    /// Its type and mark, for reading the time from it.
    pub(crate) field: FieldRef,
    /// Whether it is the event time of the side. Where it is not, rows are late by the key nevertheless: what they could
    /// match is gone.
    pub(crate) left_marked: bool,
    pub(crate) right_marked: bool,
}

impl JoinBounds {
    /// No row that comes out after a batch with the input watermark `input_ms` has an event time at or before this.
    pub(crate) fn output_watermark_ms(&self, input_ms: i64) -> i64 {
        // A side without event time brings none into the output.
        let marked = [(self.left, self.left_time), (self.right, self.right_time)];
        marked.into_iter().filter(|(_, time)| time.is_some()).fold(input_ms, |ms, (bound, _)| match bound {
            SideBound::Range { offset_us, .. } => ms.min(input_ms.saturating_add(offset_us.div_euclid(1000))),
            SideBound::None | SideBound::KeyTime => ms,
        })
    }

    /// Whether a moved watermark makes any row final.
    pub(crate) fn any(&self) -> bool {
        self.left != SideBound::None || self.right != SideBound::None
    }
}
