//! The error codes of the databases, as tabled in the module's documentation.

use crate::verdict::Verdict;

/// What an error says about the database, and about the connection that it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Condition {
    /// What it says about the database.
    pub verdict: Verdict,
    /// Whether the connection must not be used again: it has ended, or its session is not in the state that the client
    /// believes it to be in. Close it instead of returning it to its pool.
    pub discard_connection: bool,
}

impl Condition {
    /// A verdict on the database; the connection is as good as before.
    pub(super) const fn keep(verdict: Verdict) -> Self {
        Self {
            verdict,
            discard_connection: false,
        }
    }

    /// A verdict on the database; the connection must not be used again.
    pub(super) const fn discard(verdict: Verdict) -> Self {
        Self {
            verdict,
            discard_connection: true,
        }
    }
}

/// Classifies an SQLSTATE: PostgreSQL's, and that of any database that has its codes from the standard. Needs no feature: for
/// the drivers that are not sqlx (tokio-postgres: `error.code()`).
///
/// `0A000` is taken for a cached plan that no longer fits its table, which is what PostgreSQL sends in operation. Where
/// the error's routine is known, another one than `RevalidateCachedQuery` is a statement that the database does not
/// support: a success in the sense of the [table](super#the-table).
///
/// ```
/// use resilience_core::{Verdict, sql};
///
/// let condition = sql::sqlstate("25P02"); // in an aborted transaction that another call has left
/// assert_eq!(condition.verdict, Verdict::transient());
/// assert!(condition.discard_connection);
/// assert_eq!(sql::sqlstate("23505").verdict, Verdict::Success); // unique violation
/// ```
#[must_use]
pub fn sqlstate(state: &str) -> Condition {
    match state {
        "40002" => Condition::keep(Verdict::Success),
        "53000" | "53200" | "55006" | "55P03" | "57000" | "57014" | "72000" => {
            Condition::keep(Verdict::transient())
        }
        "53100" | "53400" => Condition::keep(Verdict::Permanent),
        "0A000" | "25006" | "25P02" | "25P03" | "25P04" | "26000" | "40003" | "42P05" | "53300" => {
            Condition::discard(Verdict::transient())
        }
        "3D000" | "57P04" => Condition::discard(Verdict::Permanent),
        _ => class(state),
    }
}

/// Classifies the SQLSTATEs that are not listed one by one.
fn class(state: &str) -> Condition {
    match state.get(..2) {
        Some("08" | "57") => Condition::discard(Verdict::transient()),
        Some("40") => Condition::keep(Verdict::transient()),
        Some("28" | "F0" | "XX") => Condition::discard(Verdict::Permanent),
        Some("58") => Condition::keep(Verdict::Permanent),
        // The transaction or the savepoint is not the one that the statement expects.
        Some("25" | "3B") => Condition::discard(Verdict::Success),
        _ => Condition::keep(Verdict::Success),
    }
}

/// Classifies an error of MySQL or MariaDB by its number and, where that is not [listed](super#the-table), by its SQLSTATE,
/// which is often just `HY000`. Needs no feature.
///
/// ```
/// use resilience_core::{Verdict, sql};
///
/// assert_eq!(sql::mysql_error(1205, "HY000").verdict, Verdict::transient()); // lock wait timeout
/// assert!(sql::mysql_error(1290, "HY000").discard_connection); // a primary that was demoted
/// assert_eq!(sql::mysql_error(1062, "23000").verdict, Verdict::Success); // duplicate entry
/// ```
#[must_use]
pub fn mysql_error(number: u16, state: &str) -> Condition {
    mysql_number(number).unwrap_or_else(|| match state {
        // Not PostgreSQL's cached plan: that is 1615 here.
        "0A000" => Condition::keep(Verdict::Success),
        _ => sqlstate(state),
    })
}

/// Classifies MySQL's error number, where it says more than the SQLSTATE.
const fn mysql_number(number: u16) -> Option<Condition> {
    Some(match number {
        // Memory, threads, user limits.
        1037 | 1038 | 1041 | 1135 | 1226
        // Locks and conflicts.
        | 1020 | 1205 | 1206 | 1213 | 1613 | 1614 | 3058 | 3101 | 3572
        // Interruption, timeouts of a statement.
        | 1317 | 1969 | 3024 => Condition::keep(Verdict::transient()),
        // Refused, shut down, lost.
        1040 | 1053 | 1203 | 1927 | 2002 | 2003 | 2006 | 2013 | 2055 | 3168 | 4031
        // Prepared statements that the session has not, or that do not fit their tables.
        | 1243 | 1461 | 1615
        // Read-only.
        | 1290 | 1792 | 1836 => Condition::discard(Verdict::transient()),
        // Access.
        1044 | 1045 | 1049 | 1129 | 1130 | 1251 | 1820 | 1862 | 3159 => {
            Condition::discard(Verdict::Permanent)
        }
        // Full.
        1021 | 1114 => Condition::keep(Verdict::Permanent),
        _ => return None,
    })
}

/// Classifies a result code of SQLite, primary or extended (whose last byte is the primary one). Needs no feature.
///
/// ```
/// use resilience_core::{Verdict, sql};
///
/// assert_eq!(sql::sqlite_error(517).verdict, Verdict::transient()); // BUSY_SNAPSHOT
/// assert_eq!(sql::sqlite_error(14).verdict, Verdict::Permanent); // CANTOPEN
/// ```
#[must_use]
pub const fn sqlite_error(code: u32) -> Condition {
    match (code, code & 0xff) {
        (513 | 516 | 769, _) | (_, 5 | 6 | 7 | 9 | 15 | 17) => {
            Condition::keep(Verdict::transient())
        }
        // The file of this connection is not the one of that name any more.
        (1032, _) => Condition::discard(Verdict::Permanent),
        (_, 2 | 3 | 8 | 10 | 11 | 13 | 14 | 22 | 26) => Condition::keep(Verdict::Permanent),
        _ => Condition::keep(Verdict::Success),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_connection_whose_session_has_ended_or_is_not_as_believed_is_not_used_again() {
        let closed = [
            "08006", "08P01", "0A000", "25001", "25006", "25P01", "25P02", "25P03", "25P04",
            "26000", "28P01", "3B001", "3D000", "40003", "42P05", "53300", "57P01", "57P02",
            "57P03", "57P04", "57P05", "F0000", "XX000",
        ];
        for state in closed {
            assert!(sqlstate(state).discard_connection, "{state}");
        }
        let kept = [
            "00000",
            "02000",
            "22012",
            "23505",
            "40001",
            "40P01",
            "42601",
            "53100",
            "53200",
            "55006",
            "55P03",
            "57014",
            "58030",
            "72000",
            "P0001",
            "",
            "?",
            "\u{e9}\u{e9}",
        ];
        for state in kept {
            assert!(!sqlstate(state).discard_connection, "{state}");
        }
        for number in [1040, 1053, 1243, 1290, 1615, 1836, 1927, 2006, 2013, 4031] {
            assert!(mysql_error(number, "HY000").discard_connection, "{number}");
        }
        for number in [1020, 1062, 1205, 1213, 1317, 3024, 3572] {
            assert!(!mysql_error(number, "HY000").discard_connection, "{number}");
        }
        assert!(sqlite_error(1032).discard_connection);
        assert!((0..1032).all(|code| !sqlite_error(code).discard_connection));
    }

    #[test]
    fn a_number_goes_before_the_sqlstate_and_an_unlisted_one_is_judged_by_that() {
        assert_eq!(mysql_error(1213, "40001"), sqlstate("40001"));
        assert_eq!(mysql_error(1047, "08S01"), sqlstate("08S01"));
        assert_eq!(mysql_error(1568, "25001"), sqlstate("25001"));
        let about_the_statement = Condition::keep(Verdict::Success);
        assert_eq!(mysql_error(1845, "0A000"), about_the_statement);
        assert_eq!(mysql_error(1064, "42000"), about_the_statement);
    }
}
