//! When backups run: the five fields of a cron.d line, read as Debian's cron reads them.
//!
//! The rule is Debian's source, `entry.c` (fields) and `find_jobs` in `cron.c` (which days run). It
//! is the same in 3.0pl1-137 (Ubuntu 22.04), -162 (Debian 12), -184 (Ubuntu 24.04) and -197 (Debian
//! 13).
//! What is accepted here, all four accept. Refused beyond that is what they accept and then fire
//! never, or not as written. `tests/schedule/` proves it.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use chrono::{DateTime, Datelike, NaiveDateTime, TimeDelta};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::value::Refusal;

/// A schedule that Debian's cron accepts and fires.
///
/// All times are wall-clock times of the host's zone.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct CronSchedule {
    text: String,
    /// In each set, bit N stands for the value N; Sunday is 0.
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// A day must be in `days` and in `weekdays`; otherwise in one of them.
    both: bool,
}

impl CronSchedule {
    /// The five fields with one space between them: safe in a cron.d line as it is.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The five fields as lists of plain numbers, then `both` or `either`, as the two day fields
    /// are combined. With it a program finds the next run without parsing cron's syntax.
    #[must_use]
    pub fn calendar(&self) -> String {
        let fields = [
            self.minutes,
            self.hours,
            self.days,
            self.months,
            self.weekdays,
        ]
        .map(list);
        format!(
            "{} {}",
            fields.join(" "),
            if self.both { "both" } else { "either" }
        )
    }

    /// The first `n` runs later than `after`, in order; all wall-clock times of the host.
    ///
    /// Up to the year 2100, where the crate `cron` ends.
    #[must_use]
    pub fn next_runs(&self, after: NaiveDateTime, n: usize) -> Vec<NaiveDateTime> {
        if after.year() > 2100 {
            return Vec::new();
        }
        let after = after
            .and_utc()
            .max(DateTime::UNIX_EPOCH - TimeDelta::seconds(1));
        let runs = self
            .for_cron()
            .into_iter()
            .flat_map(|schedule| schedule.after(&after).take(n).collect::<Vec<_>>());
        let union: BTreeSet<NaiveDateTime> = runs.map(|run| run.naive_utc()).collect();
        union.into_iter().take(n).collect()
    }

    /// The longest time between a run and the next, in seconds of wall-clock time.
    ///
    /// Over the whole calendar: 8 years for 29 February, since 2100 is no leap year. In the night
    /// when the host's clock is set back, it can be an hour more.
    #[must_use]
    pub fn longest_interval(&self) -> u64 {
        let runs_at = |time: &u64| has(self.hours, time / 60) && has(self.minutes, time % 60);
        let times: Vec<u64> = (0..24 * 60).filter(runs_at).collect();
        let in_a_day = times.windows(2).map(|pair| pair[1] - pair[0]).max();
        let overnight = match (times.first(), times.last()) {
            (Some(first), Some(last)) => self.longest_days() * 24 * 60 + first - last,
            _ => 0,
        };
        overnight.max(in_a_day.unwrap_or(0)) * 60
    }

    /// The longest distance between a day with a run and the next, in days.
    fn longest_days(&self) -> u64 {
        const FIVE_WEEKS: u64 = 1 | 1 << 7 | 1 << 14 | 1 << 21 | 1 << 28 | 1 << 35;
        // The calendar repeats after 400 years, a whole number of weeks. What spans their end has
        // its like 28 years before, since 2400 is a leap year. Day 1 is 1 January 2000, a Saturday.
        let (mut past, mut last, mut longest) = (0, 0, 1);
        for year in 2000..2400 {
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            for month in 1..=12 {
                let length = days_in(month, leap);
                // Bit N is day N; the week, from the weekday of the 1st, over and over.
                let weekdays = ((self.weekdays * FIVE_WEEKS) >> ((past + 6) % 7)) << 1;
                let days = if self.both {
                    self.days & weekdays
                } else {
                    self.days | weekdays
                };
                let days = if has(self.months, month) {
                    days & ((2 << length) - 1)
                } else {
                    0
                };
                // The first and the last of days in a row; between them it is one day each.
                let (mut begins, mut ends) = (days & !(days << 1), days & !(days >> 1));
                while begins != 0 {
                    let begin = past + u64::from(begins.trailing_zeros());
                    longest = longest.max(begin - last);
                    last = past + u64::from(ends.trailing_zeros());
                    (begins, ends) = (begins & (begins - 1), ends & (ends - 1));
                }
                past += length;
            }
        }
        longest
    }

    /// The same for the crate `cron`, which follows Quartz: a day must always be in both sets. So
    /// there are two schedules when one set is enough.
    ///
    /// Lists of plain numbers are the same to Debian and to Quartz, whose Sunday is 1.
    fn for_cron(&self) -> Vec<cron::Schedule> {
        let [minutes, hours, days, months] =
            [self.minutes, self.hours, self.days, self.months].map(list);
        let weekdays = list(self.weekdays << 1);
        let day_fields = if self.both {
            vec![(days.as_str(), weekdays.as_str())]
        } else {
            vec![(days.as_str(), "*"), ("*", weekdays.as_str())]
        };
        let parse = |(days, weekdays)| {
            let text = format!("0 {minutes} {hours} {days} {months} {weekdays}");
            text.parse().expect("lists of numbers that are not empty")
        };
        day_fields.into_iter().map(parse).collect()
    }
}

impl FromStr for CronSchedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        if let Some(bad) = text
            .chars()
            .find(|c| *c == '%' || c.is_control() || !c.is_ascii())
        {
            return Err(ScheduleError::Character(bad));
        }
        let fields: Vec<&str> = text.split(' ').filter(|field| !field.is_empty()).collect();
        match fields[..] {
            [word, ..] if word.starts_with('@') => {
                return Err(ScheduleError::Nickname(word.to_owned()));
            }
            [word] if word.bytes().all(|byte| byte.is_ascii_alphabetic()) => {
                return Err(ScheduleError::Nickname(word.to_owned()));
            }
            [time] => {
                if let Some((hour, minute)) = clock_time(time) {
                    return Err(ScheduleError::ClockTime { hour, minute });
                }
            }
            _ => {}
        }
        let &[minute, hour, day, month, weekday] = fields.as_slice() else {
            return Err(ScheduleError::FieldCount(fields.len()));
        };
        let mut schedule = Self {
            text: fields.join(" "),
            minutes: MINUTE.parse(minute)?,
            hours: HOUR.parse(hour)?,
            days: DAY.parse(day)?,
            months: MONTH.parse(month)?,
            weekdays: WEEKDAY.parse(weekday)?,
            // load_entry looks at the first character alone: `*/2` and `*,1` count as `*`.
            both: day.starts_with('*') || weekday.starts_with('*'),
        };
        schedule.weekdays = (schedule.weekdays | (schedule.weekdays >> 7)) & 0x7f;
        let exists = |(month, day)| has(schedule.months, month) && has(schedule.days, day);
        let mut dates =
            (1..=12).flat_map(|month| (1..=days_in(month, true)).map(move |day| (month, day)));
        if schedule.both && !dates.any(exists) {
            return Err(ScheduleError::NeverFires);
        }
        Ok(schedule)
    }
}

impl TryFrom<String> for CronSchedule {
    type Error = Refusal;

    fn try_from(text: String) -> Result<Self, Refusal> {
        text.parse().map_err(|error: ScheduleError| Refusal {
            allowed: format!("five fields as cron reads them ({error})"),
            fix: error.hint(),
        })
    }
}

impl From<CronSchedule> for String {
    fn from(schedule: CronSchedule) -> Self {
        schedule.text
    }
}

impl fmt::Display for CronSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One of the five fields: its name, its values, and their names, from the first value upwards.
struct Field(&'static str, RangeInclusive<u64>, &'static [&'static str]);

const MINUTE: Field = Field("minute", 0..=59, &[]);
const HOUR: Field = Field("hour", 0..=23, &[]);
const DAY: Field = Field("day of month", 1..=31, &[]);
const MONTH: Field = Field("month", 1..=12, &MONTHS);
const MONTHS: [&str; 12] = [
    "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
];
const WEEKDAY: Field = Field("day of week", 0..=7, &WEEKDAYS);
const WEEKDAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

impl Field {
    /// A list, as the set of its values: `get_list` of entry.c.
    fn parse(&self, list: &str) -> Result<u64, ScheduleError> {
        list.split(',')
            .try_fold(0, |set, item| match self.item(item) {
                Ok(values) => Ok(set | values),
                Err(problem) => Err(ScheduleError::Item {
                    field: self.0,
                    item: item.to_owned(),
                    problem,
                }),
            })
    }

    /// `*` or a range, with or without a step, or a single value: `get_range`. What follows these
    /// it skips silently; we refuse.
    fn item(&self, item: &str) -> Result<u64, ItemProblem> {
        let value = |text| {
            self.value(text)
                .ok_or_else(|| ItemProblem::Value(self.allowed()))
        };
        let (span, step) = match item.split_once('/') {
            Some((span, step)) => (span, Some(number(step))),
            None => (item, None),
        };
        let (low, high) = match span.split_once('-') {
            Some((low, high)) => (value(low)?, value(high)?),
            None if span == "*" => (*self.1.start(), *self.1.end()),
            None if step.is_none() => return Ok(1 << value(span)?),
            None => return value(span).and(Err(ItemProblem::StepOfOne)),
        };
        if low > high {
            return Err(ItemProblem::Backwards);
        }
        let most = (high - low).max(1);
        match step
            .unwrap_or(Some(1))
            .filter(|step| (1..=most).contains(step))
        {
            None => Err(ItemProblem::Step(most)),
            Some(step) => Ok((low..=high)
                .filter(|value| (value - low) % step == 0)
                .fold(0, |set, value| set | (1 << value))),
        }
    }

    /// A number or a name in any case: `get_number`.
    fn value(&self, text: &str) -> Option<u64> {
        let mut named = self.1.clone().zip(self.2);
        match named.find(|(_, name)| name.eq_ignore_ascii_case(text)) {
            Some((value, _)) => Some(value),
            None => number(text).filter(|value| self.1.contains(value)),
        }
    }

    fn allowed(&self) -> String {
        let numbers = format!("{} to {}", self.1.start(), self.1.end());
        match self.2 {
            [first, .., last] => format!("{numbers}, {first} to {last}"),
            _ => numbers,
        }
    }
}

/// The hour and the minute of a text such as `03:00`.
fn clock_time(text: &str) -> Option<(u64, u64)> {
    let (hour, minute) = text.split_once(':')?;
    let (hour, minute) = (HOUR.value(hour)?, MINUTE.value(minute)?);
    Some((hour, minute))
}

/// Digits, decimal even after a zero. entry.c refuses 1000 characters.
fn number(text: &str) -> Option<u64> {
    let is_number = text.len() < 1000 && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

fn has(set: u64, value: u64) -> bool {
    (set >> value) & 1 == 1
}

fn list(set: u64) -> String {
    let values = (0..64)
        .filter(|value| has(set, *value))
        .map(|value: u64| value.to_string());
    values.collect::<Vec<_>>().join(",")
}

fn days_in(month: u64, leap_year: bool) -> u64 {
    match month {
        2 => 28 + u64::from(leap_year),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Why a schedule is refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// A character that never stands in a schedule; `%` and a newline would change the cron.d line.
    #[error("{0:?} cannot stand in a schedule, only digits, names, `*` `,` `-` `/` and spaces can")]
    Character(char),
    /// `@daily` and the like.
    #[error("`{0}` is not five fields: minute, hour, day of month, month, day of week")]
    Nickname(String),
    /// `03:00`.
    #[error("a time of the day is not five fields: minute, hour, day of month, month, day of week")]
    #[allow(missing_docs)]
    ClockTime { hour: u64, minute: u64 },
    /// Not five fields.
    #[error("not five fields, but {0}: minute, hour, day of month, month, day of week")]
    FieldCount(usize),
    /// One item of one field's list.
    #[error("{field}: `{item}` {problem}")]
    Item {
        /// The field's name, in words.
        field: &'static str,
        /// The item as it was found.
        item: String,
        /// What is wrong with it.
        problem: ItemProblem,
    },
    /// 30 February.
    #[error("never fires: none of its months has one of its days of the month")]
    NeverFires,
}

/// What is wrong with an item of a field's list.
#[derive(Debug, Error)]
pub enum ItemProblem {
    /// Something else than a value of the field, which is given, or a range of two.
    #[error("is not allowed; allowed are {0}, `*`, and ranges, steps and lists of these")]
    Value(String),
    /// A range such as `10-5`, which Debian accepts and never fires.
    #[error("runs backwards, and cron would never fire it")]
    Backwards,
    /// `5/15`.
    #[error("has a step but no range")]
    StepOfOne,
    /// A step of 0, or one over the range, whose largest useful step is given.
    #[error("has a step that is not from 1 to {0}")]
    Step(u64),
}

impl ScheduleError {
    /// How to fix it.
    #[must_use]
    pub fn hint(&self) -> String {
        let hint = match self {
            Self::ClockTime { hour, minute } => {
                return format!("write `{minute} {hour} * * *` for every day at that time");
            }
            Self::Character('\t' | '\n' | '\r') => "put spaces between the fields, on one line",
            Self::Nickname(nickname) => match nickname.to_ascii_lowercase().trim_start_matches('@')
            {
                "yearly" | "annually" => "write `0 0 1 1 *`",
                "monthly" => "write `0 0 1 * *`",
                "weekly" => "write `0 0 * * 0`",
                "daily" | "midnight" => "write `0 0 * * *`",
                "hourly" => "write `0 * * * *`",
                _ => FIVE_FIELDS,
            },
            Self::Character(_) | Self::FieldCount(0..5) => FIVE_FIELDS,
            Self::FieldCount(_) => "leave out seconds, year, user and command",
            Self::Item { item, problem, .. } => problem.hint(item),
            Self::NeverFires => {
                "take a day that the month has; for days of the month or of the week, \
                 let neither begin with `*`"
            }
        };
        hint.to_owned()
    }
}

const FIVE_FIELDS: &str = "write five fields, such as `0 3 * * *` for 3:00 every day";

impl ItemProblem {
    fn hint(&self, item: &str) -> &'static str {
        match self {
            Self::Value(_) if item.is_empty() => "remove the comma that nothing stands beside",
            Self::Value(_) if item.starts_with('*') => {
                "write `*` alone or with a step, such as `*/5`"
            }
            Self::Value(_) => {
                "write `5`, `1-5`, `*/2`, `2-10/4` or a list of such; \
                 names have three letters; `?`, `L`, `W`, `#` and `~` are not Debian's"
            }
            Self::Backwards => {
                "write two ranges, such as `22-23,0-5`; \
                 Sunday at the end of a range is 7, as in `FRI-7`"
            }
            Self::StepOfOne => "give the range too, such as `5-59/15`, or write `*/15`",
            Self::Step(_) => "take a smaller step, or name the values without one",
        }
    }
}
