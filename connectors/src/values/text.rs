//! What a text says as a number, a date, a time: pure.
//!
//! The spellings are those that Spark's CSV and JSON files have. Each function takes the whole text: what it does not
//! understand to the end, it does not understand.

use std::str::FromStr;

use arrow::array::timezone::Tz;
use arrow::datatypes::{TimeUnit, i256};
use chrono::{Duration, LocalResult, NaiveDate, NaiveDateTime, NaiveTime, Offset, TimeZone};

const SECONDS_PER_HOUR: i64 = 3600;
const NANOS_PER_SECOND: i128 = 1_000_000_000;

/// `true` or `false`, in capitals or not.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text {
        _ if text.eq_ignore_ascii_case("true") => Some(true),
        _ if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// A floating-point number; also `NaN`, `Inf` and `Infinity`. Blanks around it do not matter.
pub(crate) fn float<F: FromStr>(text: &str) -> Option<F> {
    text.trim().parse().ok()
}

/// A decimal number, rounded half up to `scale` places, without its point. Thousands may be separated by commas.
/// `None` too if it has more digits than `precision` allows.
pub(crate) fn decimal(text: &str, precision: u8, scale: i8) -> Option<i256> {
    /// More than a number of any precision has.
    const KEPT: usize = 80;
    let (negative, unsigned) = match text.as_bytes().first()? {
        b'-' => (true, text.get(1..)?),
        b'+' => (false, text.get(1..)?),
        _ => (false, text),
    };
    let (number, exponent) = match unsigned.find(['e', 'E']) {
        Some(at) => (unsigned.get(..at)?, unsigned.get(at + 1..)?.parse::<i32>().ok()?),
        None => (unsigned, 0),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.contains(',') && !is_grouped(whole) {
        return None;
    }
    // The digits that count, and how many of all that count stand before the point.
    let (mut digits, mut count, mut before_point, mut seen) = ([0_u8; KEPT], 0_usize, i64::from(exponent), false);
    for (part, is_whole) in [(whole, true), (fraction, false)] {
        for byte in part.bytes().filter(|byte| !(is_whole && *byte == b',')) {
            if !byte.is_ascii_digit() {
                return None;
            }
            seen = true;
            let counts = count > 0 || byte != b'0';
            if counts {
                if let Some(digit) = digits.get_mut(count) {
                    *digit = byte - b'0';
                }
                count += 1;
            }
            // A zero before the first digit that counts moves the point if it is behind it.
            before_point += match (is_whole, counts) {
                (true, true) => 1,
                (false, false) => -1,
                _ => 0,
            };
        }
    }
    if !seen {
        return None;
    }
    if count == 0 {
        return Some(i256::ZERO);
    }
    let wanted = before_point + i64::from(scale);
    if wanted > i64::from(precision) {
        return None;
    }
    let Ok(wanted) = usize::try_from(wanted) else { return Some(i256::ZERO) };
    let digit = |at: usize| if at < count { digits.get(at).copied().unwrap_or(0) } else { 0 };
    let mut value = i256::ZERO;
    let mut low: i128 = 0;
    for at in 0..wanted {
        // Up to 38 digits fit into the cheaper one.
        if at < 38 {
            low = low * 10 + i128::from(digit(at));
        } else {
            value = if at == 38 { i256::from_i128(low) } else { value };
            value = value.checked_mul(i256::from_i128(10))?.checked_add(i256::from_i128(i128::from(digit(at))))?;
        }
    }
    if wanted <= 38 {
        value = i256::from_i128(low);
    }
    if digit(wanted) >= 5 {
        value = value.checked_add(i256::ONE)?;
    }
    let limit = i256::from_i128(10).checked_pow(u32::from(precision))?;
    (value < limit).then_some(if negative { value.wrapping_neg() } else { value })
}

/// True for `1,234,567`: in front of every comma but the first there are three digits, and at the end.
fn is_grouped(whole: &str) -> bool {
    let mut groups = whole.split(',');
    let first = groups.next().unwrap_or_default();
    (1..=3).contains(&first.len()) && groups.all(|group| group.len() == 3)
}

/// Where a time without an offset is meant.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Zone {
    /// So many seconds east of Greenwich.
    Fixed(i64),
    /// By its rules.
    Region(Tz),
}

impl Zone {
    pub(crate) const UTC: Zone = Zone::Fixed(0);

    /// `Z`, `UTC`, `GMT+1`, `+01:00`, `+0100`, `Europe/Berlin`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let named = ["UTC", "GMT", "UT"].iter().find_map(|name| text.strip_prefix(name));
        match named.unwrap_or(text) {
            "" if named.is_some() => return Some(Zone::UTC),
            "Z" | "z" => return Some(Zone::UTC),
            offset if offset.starts_with(['+', '-']) => return fixed_offset(offset).map(Zone::Fixed),
            _ => {}
        }
        Tz::from_str(text).ok().map(Zone::Region)
    }

    /// Seconds since 1970 of a local time. One that occurs twice is the earlier; one that a clock set forward has left
    /// out is moved forward with the clock.
    fn seconds(&self, local: NaiveDateTime) -> Option<i64> {
        let as_utc = local.and_utc().timestamp();
        match self {
            Zone::Fixed(offset) => as_utc.checked_sub(*offset),
            Zone::Region(zone) => match zone.from_local_datetime(&local) {
                LocalResult::Single(time) | LocalResult::Ambiguous(time, _) => Some(time.timestamp()),
                LocalResult::None => {
                    let before = zone.offset_from_utc_datetime(&local.checked_sub_signed(Duration::days(1))?).fix();
                    as_utc.checked_sub(i64::from(before.local_minus_utc()))
                }
            },
        }
    }
}

/// `+1`, `+01`, `+0130`, `+01:30`, `-01:30:15` in seconds.
fn fixed_offset(text: &str) -> Option<i64> {
    let mut rest = Rest(text.as_bytes());
    let sign = if rest.take(b'-') { -1 } else { i64::from(rest.take(b'+')) };
    let hours = rest.number(1, 2)?;
    let separated = rest.take(b':');
    let minutes = if separated || !rest.0.is_empty() { rest.number(if separated { 1 } else { 2 }, 2)? } else { 0 };
    let seconds = if separated && rest.take(b':') { rest.number(2, 2)? } else { 0 };
    let in_range = rest.0.is_empty() && sign != 0 && hours <= 18 && minutes < 60 && seconds < 60;
    in_range.then_some(sign * (hours * SECONDS_PER_HOUR + minutes * 60 + seconds))
}

/// What is not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, byte: u8) -> bool {
        match self.0.split_first() {
            Some((first, rest)) if *first == byte => {
                self.0 = rest;
                true
            }
            _ => false,
        }
    }

    /// All digits that follow.
    fn digits(&mut self) -> &'a [u8] {
        let count = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, rest) = self.0.split_at(count);
        self.0 = rest;
        digits
    }

    /// A number of so many digits, as long as there are.
    fn number(&mut self, least: usize, most: usize) -> Option<i64> {
        let available = self.0.iter().take(most).take_while(|byte| byte.is_ascii_digit()).count();
        if available < least {
            return None;
        }
        let (digits, rest) = self.0.split_at(available);
        self.0 = rest;
        Some(digits.iter().fold(0, |number, digit| number * 10 + i64::from(digit - b'0')))
    }

    /// `2024-01-02`, `2024-1-2`, `2024-01` (its first day) or `2024`. True if a day was named.
    fn date(&mut self) -> Option<(NaiveDate, bool)> {
        let negative = self.take(b'-');
        if !negative {
            self.take(b'+');
        }
        let year = self.number(4, 7)? * if negative { -1 } else { 1 };
        let month = if self.take(b'-') { Some(self.number(1, 2)?) } else { None };
        let day = if month.is_some() && self.take(b'-') { Some(self.number(1, 2)?) } else { None };
        let part = |part: Option<i64>| u32::try_from(part.unwrap_or(1)).ok();
        let date = NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, part(month)?, part(day)?)?;
        Some((date, day.is_some()))
    }

    /// `3`, `03:04`, `03:04:05` or `03:04:05.123456789`; digits after the ninth of the fraction are cut off.
    fn time(&mut self) -> Option<NaiveTime> {
        let hour = self.number(1, 2)?;
        let minute = if self.take(b':') { Some(self.number(1, 2)?) } else { None };
        let second = if minute.is_some() && self.take(b':') { Some(self.number(1, 2)?) } else { None };
        let mut nanos = 0;
        if second.is_some() && self.take(b'.') {
            let mut digits = self.digits().iter();
            for _ in 0..9 {
                nanos = nanos * 10 + digits.next().map_or(0, |digit| u32::from(digit - b'0'));
            }
        }
        let part = |part: Option<i64>| u32::try_from(part.unwrap_or(0)).ok();
        NaiveTime::from_hms_nano_opt(part(Some(hour))?, part(minute)?, part(second)?, nanos)
    }

    fn text(&self) -> Option<&'a str> {
        std::str::from_utf8(self.0).ok()
    }
}

/// A point in time: seconds since 1970, and nanoseconds.
pub(crate) type Instant = (i64, u32);

/// A date with a time, if any, in ISO's manner: a `T` or a blank between them, then an offset or the name of a zone, if
/// any. Without, it is meant in `zone`. Also returns whether a zone was named.
pub(crate) fn timestamp(text: &str, zone: Zone) -> Option<(Instant, bool)> {
    let mut rest = Rest(text.trim().as_bytes());
    let (date, has_day) = rest.date()?;
    if rest.0.is_empty() {
        return Some(((zone.seconds(date.and_time(NaiveTime::MIN))?, 0), false));
    }
    if !has_day || !(rest.take(b'T') || rest.take(b' ')) {
        return None;
    }
    let time = rest.time()?;
    let named = rest.text()?.trim_start();
    let zone = if named.is_empty() { zone } else { Zone::parse(named)? };
    let nanos = chrono::Timelike::nanosecond(&time);
    Some(((zone.seconds(date.and_time(time))?, nanos), !named.is_empty()))
}

/// A day, counted from 1970. A time behind it does not matter, but must be one.
pub(crate) fn date(text: &str) -> Option<i32> {
    let mut rest = Rest(text.trim().as_bytes());
    let (date, _) = rest.date()?;
    if !rest.0.is_empty() {
        timestamp(text, Zone::UTC)?;
    }
    i32::try_from(date.signed_duration_since(NaiveDate::default()).num_days()).ok()
}

/// A time of day: hours, minutes, and seconds if any. In nanoseconds since midnight.
pub(crate) fn time_of_day(text: &str) -> Option<i64> {
    let mut rest = Rest(text.trim().as_bytes());
    let time = rest.time()?;
    let complete = rest.0.is_empty() && text.contains(':');
    complete.then(|| time.signed_duration_since(NaiveTime::MIN).num_nanoseconds()).flatten()
}

/// A span of time in ISO's manner, of days and seconds (`P1DT2.5S`), in nanoseconds.
pub(crate) fn duration(text: &str) -> Option<i128> {
    let (sign, rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    let rest = rest.strip_prefix('P')?;
    let (days, seconds) = rest.split_once('T').unwrap_or((rest, ""));
    let days: i128 = match days {
        "" if !seconds.is_empty() => 0,
        _ => days.strip_suffix('D')?.parse().ok()?,
    };
    let mut nanos = 0;
    if !seconds.is_empty() {
        let seconds = seconds.strip_suffix('S')?;
        nanos = decimal(seconds, 38, 9)?.to_i128()?;
    }
    Some(sign * (days.checked_mul(86_400 * NANOS_PER_SECOND)?.checked_add(nanos)?))
}

/// `nanos` in this unit, what is finer cut off; `None` if they do not fit.
pub(crate) fn in_unit(nanos: i128, unit: TimeUnit) -> Option<i64> {
    i64::try_from(nanos.div_euclid(NANOS_PER_SECOND / i128::from(per_second(unit)))).ok()
}

/// An instant in this unit; `None` if it is out of its range.
pub(crate) fn instant_in_unit((seconds, nanos): Instant, unit: TimeUnit) -> Option<i64> {
    in_unit(i128::from(seconds) * NANOS_PER_SECOND + i128::from(nanos), unit)
}

/// How many of the unit a second has.
pub(crate) fn per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str) -> Option<i64> {
        timestamp(text, Zone::UTC).map(|((seconds, _), _)| seconds)
    }

    #[test]
    fn decimals_are_rounded_half_up_and_never_cut() {
        let d = |text: &str| decimal(text, 10, 2).map(|value| value.to_i128().unwrap());
        for (text, value) in [
            ("1.235", 124),
            ("1.225", 123),
            ("-1.235", -124),
            ("1.5e2", 15_000),
            ("1,234.5", 123_450),
            ("12345678.999", 1_234_567_900),
            ("1.", 100),
            ("+2", 200),
            (".5", 50),
            ("0.004", 0),
            ("0.005", 1),
            ("0.0049", 0),
            ("-0", 0),
            ("00012.30", 1230),
            ("5e-3", 1),
            ("5e-4", 0),
            ("9e-999", 0),
            ("0e99999", 0),
            (
                "99999999.994999999999999999999999999999999999999999999999999999999999999999999999999999999",
                9_999_999_999,
            ),
        ] {
            assert_eq!(d(text), Some(value), "{text}");
        }
        for text in [
            "",
            ".",
            "-",
            "abc",
            "$5",
            "1e",
            "1e1e1",
            "1 2",
            " 1",
            "1,5",
            "1,23,456",
            "12,,345",
            "99999999.995",
            "123456789.1",
            "1e9",
            "1e999999999",
            "--1",
            "1.2.3",
            "NaN",
        ] {
            assert_eq!(d(text), None, "{text}");
        }
        assert_eq!(decimal("1250", 3, -2).and_then(i256::to_i128), Some(13));
        let nines = "9".repeat(76);
        assert_eq!(decimal(&nines, 76, 0).unwrap().to_string(), nines);
        assert_eq!(decimal(&nines, 38, 0), None);
        let wide = format!("{}.5", "1".repeat(40));
        assert_eq!(decimal(&wide, 50, 0).unwrap().to_string(), format!("{}2", "1".repeat(39)));
    }

    #[test]
    fn floats_booleans() {
        for (text, value) in [("1", 1.0), (" 1.5 ", 1.5), (".5", 0.5), ("5.", 5.0), ("Inf", f64::INFINITY)] {
            assert_eq!(float(text), Some(value), "{text}");
        }
        assert_eq!(float("-Infinity"), Some(f64::NEG_INFINITY));
        assert!(float::<f64>("NaN").unwrap().is_nan());
        for text in ["", "1d", "0x1p3", "1_0", "1,5", "x"] {
            assert_eq!(float::<f64>(text), None, "{text}");
        }
        assert_eq!((boolean("TRUE"), boolean("False")), (Some(true), Some(false)));
        for text in ["t", "1", "yes", "F", "", " true"] {
            assert_eq!(boolean(text), None, "{text}");
        }
    }

    #[test]
    fn timestamps_are_what_spark_takes_for_one() {
        let base = 1_704_164_645;
        for (text, value) in [
            ("2024-01-02 03:04:05", base),
            ("2024-01-02T03:04:05Z", base),
            ("2024-01-02T03:04:05.", base),
            ("2024-01-02 3:4:5", base),
            (" 2024-01-02 03:04:05 ", base),
            ("2024-01-02 03:04:05 UTC", base),
            ("2024-01-02 03:04:05+01:00", base - 3600),
            ("2024-01-02 03:04:05+0100", base - 3600),
            ("2024-01-02T03:04:05+1", base - 3600),
            ("2024-01-02 03:04:05 +01:00", base - 3600),
            ("2024-01-02T03:04:05GMT+1", base - 3600),
            ("2024-01-02 03:04:05-00:30:15", base + 1815),
            ("2024-01-02 03:04:05 America/New_York", base + 5 * 3600),
            ("2024-01-02T03:04", base - 5),
            ("2024-01-02T03", base - 245),
            ("2024-01-02", base - 11_045),
            ("2024-01", 1_704_067_200),
            ("2024", 1_704_067_200),
            ("0000-01-01", -62_167_219_200),
        ] {
            assert_eq!(seconds(text), Some(value), "{text}");
        }
        for text in [
            "",
            "soon",
            "10:30:00",
            "1704067200",
            "2024-02-30 00:00:00",
            "2024-01-01 24:00:00",
            "2024-01-02T",
            "2024-01-02T23:59:60",
            "024-01-01",
            "2024-01-02  03:04:05",
            "2024-01-02Z",
            "2024-01-02T03:04:05Z[UTC]",
            "2024-01-02T03:04:05+19:00",
            "2024-01-02T03:04:05 Nowhere/Land",
            "2024-01-02T03:04:05x",
            "20240102",
            "2024-13-01",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
        assert_eq!(timestamp("2024-01-02T03:04:05.123456789999", Zone::UTC).unwrap().0.1, 123_456_789);
        assert_eq!(instant_in_unit((-1, 500_000_000), TimeUnit::Millisecond), Some(-500));
        assert_eq!(instant_in_unit((i64::MAX / 1000, 0), TimeUnit::Nanosecond), None);
    }

    #[test]
    fn local_times_that_occur_twice_or_never() {
        let berlin = Zone::parse("Europe/Berlin").unwrap();
        let at = |text: &str| timestamp(text, berlin).unwrap().0.0 - seconds("2024-01-01").unwrap();
        let utc = |text: &str| seconds(text).unwrap() - seconds("2024-01-01").unwrap();
        assert_eq!(at("2024-10-27 02:30:00"), utc("2024-10-27 00:30:00"));
        assert_eq!(at("2024-03-31 02:30:00"), utc("2024-03-31 01:30:00"));
        assert_eq!(at("2024-03-31 03:30:00"), utc("2024-03-31 01:30:00"));
    }

    #[test]
    fn dates_times_and_spans() {
        assert_eq!(date("1970-01-02"), Some(1));
        assert_eq!(date("1970-1-2T10:00:00+05:00"), Some(1));
        assert_eq!(date(" -0001-01-01 "), Some(-719_893));
        for text in ["1970-01-02 garbage", "01/02/2024", "5", "1970-01-02Z", ""] {
            assert_eq!(date(text), None, "{text}");
        }
        assert_eq!(time_of_day("10:30"), Some(37_800_000_000_000));
        assert_eq!(time_of_day("00:00:00.000000001"), Some(1));
        assert_eq!((time_of_day("24:00:00"), time_of_day("10"), time_of_day("10:30 UTC")), (None, None, None));
        assert_eq!(duration("PT1.5S"), Some(1_500_000_000));
        assert_eq!(duration("-P1DT0.000000001S"), Some(-86_400_000_000_001));
        assert_eq!(duration("P0D"), Some(0));
        assert_eq!((duration("P"), duration("PT"), duration("1 day"), duration("PT1H")), (None, None, None, None));
    }
}
