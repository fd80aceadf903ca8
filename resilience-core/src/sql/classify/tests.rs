use std::{borrow::Cow, error::Error as StdError, fmt, io};

use super::*;
use crate::{Pattern, Reason, Rejected, classify::judge};

/// An error as one of the drivers would make it.
#[derive(Debug)]
struct Fake {
    code: Option<&'static str>,
    kind: fn() -> ErrorKind,
    shown: String,
}

impl fmt::Display for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl StdError for Fake {}

impl DatabaseError for Fake {
    fn message(&self) -> &str {
        &self.shown
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        self.code.map(Cow::Borrowed)
    }

    fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn StdError + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn StdError + Send + Sync + 'static> {
        self
    }

    fn kind(&self) -> ErrorKind {
        (self.kind)()
    }
}

fn fake(code: Option<&'static str>, kind: fn() -> ErrorKind, shown: String) -> Verdict {
    ::sqlx::Error::Database(Box::new(Fake { code, kind, shown })).verdict()
}

/// PostgreSQL shows its message only.
fn postgres(code: &'static str) -> Verdict {
    fake(Some(code), || ErrorKind::Other, "message".into())
}

/// MySQL shows number, SQLSTATE and message.
fn mysql(number: u16, code: &'static str) -> Verdict {
    fake(
        Some(code),
        || ErrorKind::Other,
        format!("{number} ({code}): message"),
    )
}

/// SQLite shows its code in words.
fn sqlite(code: &'static str) -> Verdict {
    fake(
        Some(code),
        || ErrorKind::Other,
        format!("(code: {code}) message"),
    )
}

#[track_caller]
fn all<T: Copy + fmt::Debug>(verdict: Verdict, of: impl Fn(T) -> Verdict, codes: &[T]) {
    for code in codes {
        assert_eq!(of(*code), verdict, "{code:?}");
    }
}

#[test]
fn a_postgres_that_is_down_overloaded_or_in_conflict_is_a_transient_failure() {
    let codes = [
        "08000", "08001", "08003", "08004", "08006", "08P01", "25006", "25P02", "25P03", "25P04",
        "26000", "40001", "40003", "40P01", "42P05", "53000", "53200", "53300", "55006", "55P03",
        "57014", "57P01", "57P02", "57P03", "57P05", "72000",
    ];
    all(Verdict::transient(), postgres, &codes);
}

#[test]
fn a_postgres_that_cannot_serve_at_all_is_a_permanent_failure() {
    let codes = [
        "28000", "28P01", "3D000", "53100", "53400", "57P04", "58030", "58P01", "F0000", "XX000",
        "XX001",
    ];
    all(Verdict::Permanent, postgres, &codes);
}

#[test]
fn what_a_postgres_says_about_a_statement_is_no_failure_of_the_database() {
    let codes = [
        "0A000", "22001", "22003", "22012", "22P02", "23505", "25001", "25P01", "3B001", "40002",
        "42501", "42601", "42703", "42P01", "54000", "55000", "P0001",
    ];
    all(Verdict::Success, postgres, &codes);
}

#[test]
fn a_violated_constraint_is_no_failure_whatever_its_code() {
    let kinds: [fn() -> ErrorKind; 5] = [
        || ErrorKind::UniqueViolation,
        || ErrorKind::ForeignKeyViolation,
        || ErrorKind::NotNullViolation,
        || ErrorKind::CheckViolation,
        || ErrorKind::ExclusionViolation,
    ];
    for kind in kinds {
        // As if the code said otherwise.
        assert_eq!(
            fake(Some("40001"), kind, "message".into()),
            Verdict::Success,
            "{:?}",
            kind()
        );
    }
    all(
        Verdict::Success,
        sqlite,
        &["19", "787", "1299", "1555", "2067"],
    );
}

#[test]
fn mysql_is_judged_by_number_where_its_sqlstate_says_nothing() {
    assert_eq!(
        mysql(1205, "HY000"),
        Verdict::transient(),
        "lock wait timeout"
    );
    assert_eq!(mysql(1290, "HY000"), Verdict::transient(), "--read-only");
    assert_eq!(mysql(1366, "HY000"), Verdict::Success, "incorrect value");
    assert_eq!(
        mysql(1049, "42000"),
        Verdict::Permanent,
        "unknown database, not a syntax error"
    );
    assert_eq!(mysql(1064, "42000"), Verdict::Success, "syntax error");
    assert_eq!(mysql(1226, "42000"), Verdict::transient(), "user limit");
}

#[test]
fn mysql_under_pressure_or_gone_is_a_transient_failure() {
    let codes = [
        (1040, "08004"),
        (1053, "08S01"),
        (1158, "08S01"),
        (1203, "42000"),
        (1213, "40001"),
        (1317, "70100"),
        (1614, "XA102"),
        (1243, "HY000"),
        (1615, "HY000"),
        (1836, "HY000"),
        (1969, "70100"),
        (2006, "HY000"),
        (2013, "HY000"),
        (3024, "HY000"),
        (3572, "HY000"),
        (4031, "HY000"),
    ];
    all(
        Verdict::transient(),
        |(number, code)| mysql(number, code),
        &codes,
    );
    let handshake = fake(
        None,
        || ErrorKind::Other,
        "1040: Too many connections".into(),
    );
    assert_eq!(
        handshake,
        Verdict::transient(),
        "before there are SQLSTATEs"
    );
}

#[test]
fn mysql_that_lets_nobody_in_or_is_full_is_a_permanent_failure() {
    let codes = [
        (1044, "42000"),
        (1045, "28000"),
        (1130, "HY000"),
        (1114, "HY000"),
    ];
    all(
        Verdict::Permanent,
        |(number, code)| mysql(number, code),
        &codes,
    );
}

#[test]
fn a_message_that_begins_with_a_number_is_not_taken_for_mysql() {
    for shown in [
        "1205 is not a valid id",
        "1205 (40001): quoted",
        "1205",
        "1205: no such row",
    ] {
        let verdict = fake(Some("22P02"), || ErrorKind::Other, shown.into());
        assert_eq!(verdict, Verdict::Success, "{shown}");
    }
    let verdict = fake(Some("1"), || ErrorKind::Other, "1205 (1): SQLite".into());
    assert_eq!(verdict, Verdict::Success);
}

#[test]
fn a_locked_sqlite_is_a_transient_failure_with_every_extended_code() {
    let codes = ["5", "261", "517", "773", "6", "262", "518"];
    all(Verdict::transient(), sqlite, &codes);
    all(
        Verdict::transient(),
        sqlite,
        &["7", "9", "15", "17", "513", "516", "769"],
    );
}

#[test]
fn a_sqlite_without_its_file_or_disk_is_a_permanent_failure() {
    let codes = ["14", "526", "8", "1032", "10", "266", "11", "13", "26"];
    all(Verdict::Permanent, sqlite, &codes);
}

#[test]
fn what_sqlite_says_about_a_statement_is_no_failure_of_the_database() {
    all(
        Verdict::Success,
        sqlite,
        &["1", "4", "18", "20", "21", "23", "25"],
    );
}

#[test]
fn errors_without_a_code_are_judged_by_what_they_are() {
    use ::sqlx::Error::*;
    let reset = || Io(io::ErrorKind::ConnectionReset.into());
    for transient in [
        reset(),
        PoolTimedOut,
        Protocol("cut off".into()),
        WorkerCrashed,
    ] {
        assert_eq!(transient.verdict(), Verdict::transient(), "{transient}");
    }
    for permanent in [
        Tls("bad certificate".into()),
        Configuration("no host".into()),
        PoolClosed,
    ] {
        assert_eq!(permanent.verdict(), Verdict::Permanent, "{permanent}");
    }
    let of_a_column = ColumnDecode {
        index: "0".into(),
        source: "not a date".into(),
    };
    let of_a_type = TypeNotFound {
        type_name: "mood".into(),
    };
    let ignored = [
        ColumnNotFound("id".into()),
        ColumnIndexOutOfBounds { index: 2, len: 1 },
        of_a_column,
        Decode("not a date".into()),
        Encode("too long".into()),
        of_a_type,
        InvalidArgument("empty".into()),
        InvalidSavePointStatement,
        BeginFailed,
    ];
    for ignored in ignored {
        assert_eq!(ignored.verdict(), Verdict::Ignored, "{ignored}");
    }
    assert_eq!(
        fake(None, || ErrorKind::Other, "no code".into()),
        Verdict::Success
    );
}

/// `0A000` as PostgreSQL raises it in this routine.
#[derive(Debug)]
struct NotSupported {
    message: &'static str,
    #[expect(dead_code, reason = "shown by Debug")]
    routine: &'static str,
}

impl fmt::Display for NotSupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message)
    }
}

impl StdError for NotSupported {}

impl DatabaseError for NotSupported {
    fn message(&self) -> &str {
        self.message
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        Some("0A000".into())
    }

    fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn StdError + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn StdError + Send + Sync + 'static> {
        self
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Other
    }
}

#[test]
fn a_stale_plan_is_told_from_what_is_not_supported_in_any_language() {
    let of = |message, routine| {
        condition(&::sqlx::Error::Database(Box::new(NotSupported {
            message,
            routine,
        })))
    };
    let stale = Condition::discard(Verdict::transient());
    assert_eq!(of("cached plan must not change result type", ""), stale);
    assert_eq!(
        of(
            "gecachter Plan darf den Ergebnistyp nicht \u{e4}ndern",
            "RevalidateCachedQuery"
        ),
        stale
    );
    assert_eq!(
        of(
            "FOR UPDATE is not allowed with aggregate functions",
            "CheckSelectLocking"
        ),
        Condition::keep(Verdict::Success)
    );
}

#[test]
fn errors_of_a_broken_connection_close_it_and_those_without_one_close_none() {
    use ::sqlx::Error::*;
    let closes = |error: ::sqlx::Error| error.discards_connection();
    let io = || Io(io::ErrorKind::ConnectionReset.into());
    for error in [io(), Protocol("cut off".into()), WorkerCrashed, BeginFailed] {
        assert!(closes(error));
    }
    for error in [
        PoolTimedOut,
        PoolClosed,
        RowNotFound,
        Decode("not a date".into()),
    ] {
        assert!(!closes(error));
    }
    assert!(Error::Service(io()).discards_connection());
    let full = Rejected::new(Pattern::Bulkhead, Reason::Full, "db");
    assert!(!Error::<::sqlx::Error>::from(full).discards_connection());
}

#[test]
fn the_classifier_reads_results_and_leaves_rejections_to_speak_for_themselves() {
    let verdict = |result: Result<(), Error<::sqlx::Error>>| judge(&SqlxErrors, result.as_ref());
    assert_eq!(verdict(Ok(())), Verdict::Success);
    assert_eq!(
        verdict(Err(Error::Service(::sqlx::Error::PoolTimedOut))),
        Verdict::transient()
    );
    assert_eq!(
        verdict(Err(Error::Service(::sqlx::Error::RowNotFound))),
        Verdict::Success
    );
    let full = Rejected::new(Pattern::Bulkhead, Reason::Full, "db");
    assert_eq!(verdict(Err(full.into())), Verdict::Ignored);
}

#[tokio::test(start_paused = true)]
async fn a_half_open_breaker_closes_on_any_answer_of_the_database() {
    use std::time::Duration;

    use crate::{
        breaker::{CircuitBreaker, HalfOpen, OpenFor, State},
        completion::Guard,
    };
    let breaker = CircuitBreaker::builder("db")
        .consecutive_failures(1)
        .open_for(OpenFor::fixed(Duration::from_secs(1)))
        .half_open(HalfOpen::probes(1))
        .build()
        .unwrap();
    let call = |error: ::sqlx::Error| breaker.acquire().unwrap().settle(error.verdict());
    call(::sqlx::Error::PoolTimedOut);
    assert_eq!(breaker.state(), State::Open);
    tokio::time::advance(Duration::from_secs(1)).await;
    call(::sqlx::Error::RowNotFound);
    assert_eq!(breaker.state(), State::Closed);
}
