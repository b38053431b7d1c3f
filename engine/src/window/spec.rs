//! The lengths that windows are made of.

use arrow::datatypes::IntervalMonthDayNano;
use datafusion::scalar::ScalarValue;

use crate::error::{Error, Result};
use crate::interval::{Interval, fixed_us_of};

/// Windows of fixed length. `0 < slide_us <= size_us`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct WindowSpec {
    pub(crate) size_us: i64,
    /// From the start of one window to that of the next.
    pub(crate) slide_us: i64,
    /// How far the starts are moved from multiples of the slide since 1970.
    pub(crate) offset_us: i64,
}

impl WindowSpec {
    /// Each length is an interval, or text that spells one.
    pub(crate) fn try_new(
        size: &ScalarValue,
        slide: Option<&ScalarValue>,
        offset: Option<&ScalarValue>,
    ) -> Result<Self> {
        let size_us = positive_us("a window's size", size)?;
        let slide_us = slide.map_or(Ok(size_us), |slide| positive_us("a window's slide", slide))?;
        let offset_us = offset.map_or(Ok(0), |offset| known_us("a window's offset", offset))?;
        if slide_us > size_us {
            return Err(Error::invalid(
                "a window's slide must not be longer than its size: rows between would be lost",
            ));
        }
        if offset_us.unsigned_abs() >= slide_us.unsigned_abs() {
            return Err(Error::invalid("a window's offset must be shorter than its slide, or its size if it has none")
                .with_hint("an offset of a whole slide changes nothing: take off as many slides as it has"));
        }
        Ok(WindowSpec { size_us, slide_us, offset_us })
    }

    /// From what follows the time in a call of `window`; `None` stands for an argument that is not a literal.
    pub(crate) fn of_arguments(lengths: &[Option<&ScalarValue>]) -> Result<Self> {
        let known = |length: Option<&ScalarValue>| -> Result<()> {
            length.map(|_| ()).ok_or_else(|| {
                Error::invalid("a window's size, slide and offset must be literals")
                    .with_hint("write `window(ts, '10 minutes')`; a length computed per row makes no windows")
            })
        };
        lengths.iter().try_for_each(|length| known(*length))?;
        match lengths {
            [Some(size)] => Self::try_new(size, None, None),
            [Some(size), Some(slide)] => Self::try_new(size, Some(slide), None),
            [Some(size), Some(slide), Some(offset)] => Self::try_new(size, Some(slide), Some(offset)),
            _ => Err(Error::invalid("`window` takes a time, a size and, if need be, a slide and an offset")),
        }
    }

    /// Whether each time has one window.
    pub(crate) fn is_tumbling(&self) -> bool {
        self.slide_us == self.size_us
    }

    /// The start of the last window that holds a time.
    pub(crate) fn last_start(&self, us: i64) -> i64 {
        us.saturating_sub(us.saturating_sub(self.offset_us).rem_euclid(self.slide_us))
    }

    /// The starts of all windows that hold a time, last first.
    pub(crate) fn starts(self, us: i64) -> impl Iterator<Item = i64> {
        std::iter::successors(Some(self.last_start(us)), move |start| start.checked_sub(self.slide_us))
            .take_while(move |start| us < start.saturating_add(self.size_us))
    }
}

/// The gap of sessions, if it is the same for all rows.
pub(crate) fn gap_us(gap: &ScalarValue) -> Result<i64> {
    positive_us("a session's gap", gap)
}

/// The µs of an interval in words.
pub(crate) fn text_us(what: &str, text: &str) -> Result<i64> {
    Interval::from(text).fixed_us(what)
}

/// The µs of an interval.
pub(crate) fn interval_us(what: &str, interval: IntervalMonthDayNano) -> Result<i64> {
    fixed_us_of(what, interval.months, interval.days, interval.nanoseconds)
}

fn positive_us(what: &str, value: &ScalarValue) -> Result<i64> {
    match known_us(what, value)? {
        us if us > 0 => Ok(us),
        _ => Err(Error::invalid(format!("{what} must be longer than zero, not `{value}`"))),
    }
}

fn known_us(what: &str, value: &ScalarValue) -> Result<i64> {
    match value {
        ScalarValue::IntervalMonthDayNano(Some(interval)) => interval_us(what, *interval),
        ScalarValue::IntervalDayTime(Some(interval)) => {
            fixed_us_of(what, 0, interval.days, i64::from(interval.milliseconds) * 1_000_000)
        }
        ScalarValue::IntervalYearMonth(Some(months)) => fixed_us_of(what, *months, 0, 0),
        other => match other.try_as_str() {
            Some(Some(text)) => text_us(what, text),
            _ => Err(Error::invalid(format!("{what} must be an interval, and `{value}` is none"))
                .with_hint("write it as text, such as `'10 minutes'`")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(size_us: i64, slide_us: i64, offset_us: i64) -> WindowSpec {
        WindowSpec { size_us, slide_us, offset_us }
    }

    #[test]
    fn starts_are_floored_before_1970_too() {
        assert_eq!(spec(10, 10, 0).last_start(-1), -10);
        assert_eq!(spec(10, 10, 0).last_start(-10), -10);
        assert_eq!(spec(10, 10, 0).last_start(9), 0);
        assert_eq!(spec(10, 10, 3).last_start(2), -7);
        assert_eq!(spec(10, 10, -2).last_start(8), 8);
    }

    #[test]
    fn every_window_that_holds_the_time_and_no_other() {
        let starts = |spec: WindowSpec, us| spec.starts(us).collect::<Vec<_>>();
        assert_eq!(starts(spec(10, 5, 0), 7), [5, 0]);
        assert_eq!(starts(spec(10, 5, 2), 1), [-3, -8]);
        // The slide does not divide the size: three windows or four.
        assert_eq!(starts(spec(10, 3, 0), 0), [0, -3, -6, -9]);
        assert_eq!(starts(spec(10, 3, 0), 1), [0, -3, -6]);
        assert_eq!(starts(spec(10, 10, 0), -1), [-10]);
    }

    #[test]
    fn intervals_in_both_spellings() {
        let text = WindowSpec::try_new(&ScalarValue::from("1 day 1 second"), None, None).unwrap();
        let interval = ScalarValue::IntervalMonthDayNano(Some(IntervalMonthDayNano::new(0, 1, 1_000_000_000)));
        assert_eq!(WindowSpec::try_new(&interval, None, None).unwrap(), text);
        for wrong in [ScalarValue::from(10), ScalarValue::Utf8(None), ScalarValue::IntervalYearMonth(Some(1))] {
            assert!(WindowSpec::try_new(&wrong, None, None).is_err(), "{wrong}");
        }
        assert!(WindowSpec::of_arguments(&[None]).unwrap_err().to_string().contains("literals"));
        assert!(WindowSpec::of_arguments(&[]).is_err());
    }
}
