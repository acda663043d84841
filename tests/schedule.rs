//! The schedule against Debian's parser, croniter, and a minute-by-minute reading of cron's source.
//!
//! `schedule/table.tsv` has the expressions. `schedule/check-debian` asks a real `crontab -n` about
//! them, `schedule/expected.py` asks croniter for the next runs.

use chrono::{Datelike, NaiveDate, NaiveDateTime, TimeDelta};
use gen_backup_bundle::schedule::CronSchedule;
use proptest::prelude::*;
use proptest::sample::select;

const TABLE: &str = include_str!("schedule/table.tsv");
const EXPECTED: &str = include_str!("schedule/expected.tsv");

/// The lines of a table, without its comments.
fn rows(table: &str) -> Vec<Vec<&str>> {
    let lines = table.lines().filter(|line| !line.starts_with("# "));
    lines.map(|line| line.split('\t').collect()).collect()
}

fn accepted() -> Vec<&'static str> {
    rows(TABLE)
        .iter()
        .filter(|row| row[0] == "run")
        .map(|row| row[1])
        .collect()
}

fn parse(text: &str) -> CronSchedule {
    text.parse()
        .unwrap_or_else(|error| panic!("`{text}`: {error}"))
}

fn time(text: &str) -> NaiveDateTime {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn accepts_and_refuses_as_the_table_says() {
    let rows = rows(TABLE);
    assert!(rows.len() >= 60);
    for row in rows {
        let (verdict, text) = (row[0], row[1]);
        let ours = text.parse::<CronSchedule>();
        assert_eq!(ours.is_ok(), verdict == "run", "`{text}`: {ours:?}");
        assert_eq!(
            debian::Entry::load(text).is_some(),
            verdict != "refuse",
            "`{text}`"
        );
        if let Err(error) = ours {
            assert!(
                !error.to_string().is_empty() && !error.hint().is_empty(),
                "`{text}`"
            );
        }
    }
}

#[test]
fn a_number_may_be_as_long_as_the_buffer_of_cron() {
    for (zeros, accepted) in [(998, true), (999, false)] {
        let text = format!("{}3 * * * *", "0".repeat(zeros));
        assert_eq!(text.parse::<CronSchedule>().is_ok(), accepted);
        assert_eq!(debian::Entry::load(&text).is_some(), accepted);
    }
}

#[test]
fn next_five_runs_are_what_croniter_says() {
    let rows = rows(EXPECTED);
    for row in &rows {
        let after = time(row[1]);
        let runs: Vec<NaiveDateTime> = row[2..].iter().map(|run| time(run)).collect();
        assert_eq!(runs.len(), 5);
        assert_eq!(
            parse(row[0]).next_runs(after, 5),
            runs,
            "`{}` after {after}",
            row[0]
        );
    }
    let mut tested: Vec<&str> = rows.iter().map(|row| row[0]).collect();
    tested.dedup();
    assert_eq!(tested, accepted(), "run tests/schedule/expected.py");
}

#[test]
fn next_five_runs_are_what_the_source_of_cron_says() {
    for text in accepted() {
        for after in [
            "1970-01-01T00:00:00",
            "2027-12-31T23:59:59",
            "2096-02-29T00:00:00",
        ]
        .map(time)
        {
            let expected = debian::Entry::load(text)
                .expect("accepted")
                .next_runs(after, 5);
            assert_eq!(
                parse(text).next_runs(after, 5),
                expected,
                "`{text}` after {after}"
            );
        }
    }
}

#[test]
fn next_runs_has_a_beginning_and_an_end() {
    let schedule = parse("0 0 1 1 *");
    let new_year =
        |year| NaiveDate::from_ymd_opt(year, 1, 1).and_then(|day| day.and_hms_opt(0, 0, 0));
    assert_eq!(
        schedule.next_runs(NaiveDateTime::MIN, 1),
        [new_year(1970).unwrap()]
    );
    assert_eq!(
        schedule.next_runs(new_year(2099).unwrap(), 5),
        [new_year(2100).unwrap()]
    );
    assert!(schedule.next_runs(NaiveDateTime::MAX, 5).is_empty());
    assert!(
        schedule
            .next_runs(time("2026-01-01T00:00:00"), 0)
            .is_empty()
    );
}

#[test]
fn longest_interval_in_seconds() {
    const HOUR: u64 = 3600;
    const DAY: u64 = 24 * HOUR;
    for (text, seconds) in [
        ("* * * * *", 60),
        ("*/7 * * * *", 7 * 60),
        ("0 * * * *", HOUR),
        ("*/15 8-18 * * *", 13 * HOUR + 15 * 60),
        ("*/15 8-18 * * MON-FRI", 2 * DAY + 13 * HOUR + 15 * 60),
        ("0 3 * * *", DAY),
        ("0 3,4 * * *", 23 * HOUR),
        ("0 3 * * 0", 7 * DAY),
        ("0 3 1 * 1", 7 * DAY),
        ("0 3 1 * *", 31 * DAY),
        ("0 3 31 * *", 61 * DAY),
        ("0 3 * 2 *", (365 - 28 + 1) * DAY),
        ("0 3 1 1 *", 366 * DAY),
        ("0 3 1 3 *", 366 * DAY),
        ("0 0 29 2 *", (8 * 365 + 1) * DAY),
        ("0 0 29 2 */7", (40 * 365 + 9) * DAY),
    ] {
        assert_eq!(parse(text).longest_interval(), seconds, "`{text}`");
    }
}

#[test]
fn longest_interval_is_the_longest_of_the_calendar() {
    let first_day = NaiveDate::from_ymd_opt(2000, 1, 1).expect("a date");
    // The calendar's 400 years, and the 41 that 29 February on a given weekday can take.
    let calendar: Vec<NaiveDate> = first_day.iter_days().take(146_097 + 41 * 366).collect();
    for text in accepted() {
        let entry = debian::Entry::load(text).expect("accepted");
        let (times, mut last, mut longest) = (entry.times(), None, 0);
        for day in calendar.iter().filter(|day| entry.runs_on(**day)) {
            let midnight = i64::from(day.num_days_from_ce()) * 24 * 60;
            // Inside a day the gaps are the same every day.
            let seen = if last.is_none() {
                &times[..]
            } else {
                &times[..1]
            };
            for time in seen {
                longest = longest.max(last.map_or(0, |last| midnight + time - last));
                last = Some(midnight + time);
            }
            last = times.last().map(|time| midnight + time);
        }
        let seconds = parse(text).longest_interval();
        assert_eq!(i64::try_from(seconds), Ok(longest * 60), "`{text}`");
    }
}

#[test]
fn text_is_what_a_cron_line_needs() {
    let schedule = parse("  0  3 *   * sun ");
    assert_eq!(schedule.as_str(), "0 3 * * sun");
    assert_eq!(schedule.to_string(), "0 3 * * sun");
    let json = serde_json::to_string(&schedule).expect("a string");
    assert_eq!(json, r#""0 3 * * sun""#);
    assert_eq!(
        serde_json::from_str::<CronSchedule>(&json).expect("the same"),
        schedule
    );
    let error = serde_json::from_str::<CronSchedule>(r#""0 3 * * 8""#).expect_err("no such day");
    assert!(
        error
            .to_string()
            .contains("(day of week: `8` is not allowed"),
        "{error}"
    );
}

#[test]
fn an_error_says_what_was_found_what_is_allowed_and_what_to_do() {
    for (text, message, hint) in [
        (
            "99 99 99 99 99",
            "minute: `99` is not allowed; allowed are 0 to 59, `*`, and ranges, steps and lists \
             of these",
            "write `5`, `1-5`",
        ),
        (
            "0 3 * * MONDAY",
            "day of week: `MONDAY` is not allowed; allowed are 0 to 7, SUN to SAT, `*`",
            "names have three letters",
        ),
        (
            "0 3 1 13 *",
            "month: `13` is not allowed; allowed are 1 to 12, JAN to DEC, `*`",
            "write",
        ),
        (
            "1,,2 * * * *",
            "minute: `` is not allowed",
            "remove the comma",
        ),
        (
            "*5 * * * *",
            "minute: `*5` is not allowed",
            "write `*` alone or with a step",
        ),
        (
            "*/0 * * * *",
            "minute: `*/0` has a step that is not from 1 to 59",
            "take a smaller step",
        ),
        (
            "0 */24 * * *",
            "hour: `*/24` has a step that is not from 1 to 23",
            "take a smaller step",
        ),
        (
            "5/15 * * * *",
            "minute: `5/15` has a step but no range",
            "give the range too",
        ),
        (
            "0 22-6 * * *",
            "hour: `22-6` runs backwards",
            "write two ranges, such as `22-23,0-5`",
        ),
        (
            "0 3 * * FRI-SUN",
            "day of week: `FRI-SUN` runs backwards",
            "write two ranges",
        ),
        (
            "0 0 31 2 *",
            "never fires: none of its months has one of its days",
            "take a day that the month has",
        ),
        (
            "",
            "not five fields, but 0: minute, hour, day of month, month, day of week",
            "write five fields",
        ),
        ("0 3 * *", "not five fields, but 4", "write five fields"),
        (
            "0 3 * * * root rm",
            "not five fields, but 7",
            "leave out seconds, year, user and command",
        ),
        ("@daily", "`@daily` is not five fields", "write `0 0 * * *`"),
        (
            "@reboot",
            "`@reboot` is not five fields",
            "write five fields, such as `0 3 * * *`",
        ),
        (
            "0 3 * * *\n* * * * * root rm",
            r"'\n' cannot stand in a schedule",
            "on one line",
        ),
        (
            "0\t3 * * *",
            r"'\t' cannot stand in a schedule",
            "put spaces between the fields",
        ),
        (
            "0 3 * * 1%",
            "'%' cannot stand in a schedule",
            "write five fields",
        ),
        (
            "\u{663} * * * *",
            "'\u{663}' cannot stand in a schedule",
            "write five fields",
        ),
    ] {
        let error = text.parse::<CronSchedule>().expect_err(text);
        assert!(error.to_string().starts_with(message), "`{text}`: {error}");
        assert!(error.hint().contains(hint), "`{text}`: {}", error.hint());
    }
}

/// Debian's names and values of one field, as an expression may use them.
fn field(low: u32, high: u32, names: &'static [&'static str]) -> impl Strategy<Value = String> {
    let value = move || {
        (low..=high).prop_flat_map(move |value| {
            let name = names.get((value - low) as usize).unwrap_or(&"");
            select(vec![
                format!("{value}"),
                format!("{value:02}"),
                (*name).to_owned(),
            ])
            .prop_map(move |text| {
                (
                    value,
                    if text.is_empty() {
                        value.to_string()
                    } else {
                        text
                    },
                )
            })
        })
    };
    let range = (value(), value()).prop_map(|(one, other)| {
        // SUN is 0, so it stands in front; so does every other smaller value.
        let (from, to) = if one.0 <= other.0 {
            (one, other)
        } else {
            (other, one)
        };
        (to.0 - from.0, format!("{}-{}", from.1, to.1))
    });
    let span = prop_oneof![Just((high - low, "*".to_owned())), range];
    let step = (span, 1..=high)
        .prop_map(|((most, span), step)| format!("{span}/{}", step.min(most).max(1)));
    let item =
        prop_oneof![3 => Just("*".to_owned()), 3 => value().prop_map(|value| value.1), 2 => step];
    prop::collection::vec(item, 1..4).prop_map(|items| items.join(","))
}

fn well_formed() -> impl Strategy<Value = String> {
    let months = &[
        "Jan", "FEB", "mar", "Apr", "MAY", "jun", "Jul", "AUG", "sep", "Oct", "NOV", "dec",
    ];
    let weekdays = &["Sun", "MON", "tue", "Wed", "THU", "fri", "Sat"];
    let days = (
        field(1, 31, &[]),
        field(1, 12, months),
        field(0, 7, weekdays),
    );
    (field(0, 59, &[]), field(0, 23, &[]), days).prop_map(
        |(minute, hour, (day, month, weekday))| format!("{minute} {hour} {day} {month} {weekday}"),
    )
}

/// Texts near enough to a schedule for the parser to get somewhere.
const NEARLY: &str = "([0-9*,/a-zA-Z%~#?;@ \t\n\u{e9}-]{0,3}(MON|JUL|\\*/|-|,|[0-9]{1,2})? ){4,6}";

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn well_formed_schedules_run_as_the_source_of_cron_says(
        text in well_formed(),
        seconds in 0_i64..130 * 366 * 86400,
    ) {
        let after = NaiveDateTime::default() + TimeDelta::seconds(seconds);
        let entry = debian::Entry::load(&text).expect("well-formed");
        match text.parse::<CronSchedule>() {
            Ok(schedule) => {
                prop_assert_eq!(schedule.next_runs(after, 5), entry.next_runs(after, 5));
            }
            // The one thing that is well-formed and refused.
            Err(error) => {
                prop_assert!(error.to_string().starts_with("never fires"), "{}", error);
                let calendar = 146_097;
                let day = NaiveDate::from_ymd_opt(2000, 1, 1).expect("a date");
                prop_assert!(!day.iter_days().take(calendar).any(|day| entry.runs_on(day)));
            }
        }
    }

    #[test]
    fn what_we_accept_the_source_of_cron_accepts(text in prop_oneof![NEARLY, "\\PC*", ".*"]) {
        if let Ok(schedule) = text.parse::<CronSchedule>() {
            prop_assert!(debian::Entry::load(schedule.as_str()).is_some());
            prop_assert!(schedule.longest_interval() >= 60);
        }
    }
}

/// `load_entry` of entry.c and `find_jobs` of cron.c, line by line and without what we add.
mod debian {
    use super::{Datelike, NaiveDate, NaiveDateTime};

    /// `bitstr_t` of each field, and whether one of `DOM_STAR` and `DOW_STAR` is set.
    pub struct Entry {
        minute: Vec<bool>,
        hour: Vec<bool>,
        dom: Vec<bool>,
        month: Vec<bool>,
        dow: Vec<bool>,
        star: bool,
    }

    /// The file, read from the front: `get_char` with one character of look-ahead.
    struct File<'a>(&'a [u8]);

    /// Where the C code returns EOF.
    type Eof<T> = Option<T>;

    impl Entry {
        /// What cron makes of the fields in front of a user and a command.
        pub fn load(text: &str) -> Eof<Self> {
            let line = format!("{text} root true\n");
            let mut file = File(line.trim_start_matches([' ', '\t']).as_bytes());
            let [minute, hour, dom, month, dow] = [60, 24, 32, 13, 8].map(|size| vec![false; size]);
            let mut entry = Self {
                minute,
                hour,
                dom,
                month,
                dow,
                star: false,
            };
            if file.char() == b'@' {
                let names = [
                    "reboot", "yearly", "annually", "monthly", "weekly", "daily", "midnight",
                    "hourly",
                ];
                return names.contains(&&text[1..]).then_some(entry);
            }
            if file.char() == b'#' {
                return Some(entry); // skip_comments
            }
            file.get_list(&mut entry.minute, 0, &[])?;
            file.get_list(&mut entry.hour, 0, &[])?;
            entry.star |= file.char() == b'*';
            file.get_list(&mut entry.dom, 1, &[])?;
            file.get_list(&mut entry.month, 1, &MONTH_NAMES)?;
            entry.star |= file.char() == b'*';
            file.get_list(&mut entry.dow, 0, &DOW_NAMES)?;
            if entry.dow[0] || entry.dow[7] {
                (entry.dow[0], entry.dow[7]) = (true, true);
            }
            (file.0 == b"root true\n").then_some(entry)
        }

        /// The day's half of the condition in `find_jobs`.
        pub fn runs_on(&self, date: NaiveDate) -> bool {
            let dom = self.dom[date.day() as usize];
            let dow = self.dow[date.weekday().num_days_from_sunday() as usize];
            self.month[date.month() as usize] && if self.star { dow && dom } else { dow || dom }
        }

        /// The other half, for every minute of a day.
        pub fn times(&self) -> Vec<i64> {
            let runs_at = |minute: &usize| self.hour[minute / 60] && self.minute[minute % 60];
            (0..24 * 60)
                .filter(runs_at)
                .filter_map(|minute| minute.try_into().ok())
                .collect()
        }

        /// Day by day and minute by minute, up to the year 2100.
        pub fn next_runs(&self, after: NaiveDateTime, n: usize) -> Vec<NaiveDateTime> {
            let times = self.times();
            let days = after
                .date()
                .iter_days()
                .take_while(|day| day.year() <= 2100);
            let runs = days.filter(|day| self.runs_on(*day)).flat_map(|day| {
                let at = |minute: &i64| {
                    day.and_time(chrono::NaiveTime::MIN) + chrono::TimeDelta::minutes(*minute)
                };
                times.iter().map(at).collect::<Vec<_>>()
            });
            runs.filter(|run| *run > after).take(n).collect()
        }
    }

    impl File<'_> {
        fn char(&self) -> u8 {
            self.0.first().copied().unwrap_or(0)
        }

        fn next(&mut self) {
            self.0 = self.0.get(1..).unwrap_or_default();
        }

        fn get_list(&mut self, bits: &mut [bool], low: usize, names: &[&str]) -> Eof<()> {
            self.get_range(bits, low, names)?;
            while self.char() == b',' {
                self.next();
                self.get_range(bits, low, names)?;
            }
            while !matches!(self.char(), b'\t' | b' ' | b'\n' | 0) {
                self.next(); // Skip_Nonblanks: here it loses what it did not understand
            }
            while matches!(self.char(), b'\t' | b' ') {
                self.next();
            }
            (self.char() != 0).then_some(())
        }

        fn get_range(&mut self, bits: &mut [bool], low: usize, names: &[&str]) -> Eof<()> {
            let high = bits.len() - 1;
            let (from, to);
            if self.char() == b'*' {
                (from, to) = (low, high);
                self.next();
            } else {
                from = self.get_number(low, names)?;
                if self.char() != b'-' {
                    let valid = self.char() != b'/' && (low..=high).contains(&from);
                    return valid.then(|| bits[from] = true);
                }
                self.next();
                to = self.get_number(low, names)?;
            }
            let mut step = 1;
            if self.char() == b'/' {
                self.next();
                step = self
                    .get_number(0, &[])
                    .filter(|step| (1..1 << 31).contains(step))?;
            }
            if from < low || from > high || to < low || to > high {
                return None;
            }
            let mut value = from;
            while value <= to {
                bits[value] = true;
                value += step;
            }
            Some(())
        }

        fn get_number(&mut self, low: usize, names: &[&str]) -> Eof<usize> {
            let mut text = String::new();
            while self.char().is_ascii_alphanumeric() {
                text.push(char::from(self.char()));
                self.next();
            }
            if text.is_empty() || text.len() >= 1000 {
                return None;
            }
            if let Some(index) = names
                .iter()
                .position(|name| name.eq_ignore_ascii_case(&text))
            {
                return Some(index + low);
            }
            // atoi is strtol, which stops at the largest long, cut to an int. -1 is out of range.
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            let long = text.parse().unwrap_or(i64::MAX) & 0xffff_ffff;
            digits.then(|| usize::try_from(long).unwrap_or(usize::MAX))
        }
    }

    const DOW_NAMES: [&str; 8] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    const MONTH_NAMES: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
}
