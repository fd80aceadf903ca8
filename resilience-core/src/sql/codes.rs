//! The error codes of the three databases, as tabled in the module's documentation.

use ::sqlx::error::DatabaseError;

use crate::verdict::Verdict;

/// Classifies an SQLSTATE, which PostgreSQL always has and MySQL often.
pub(super) fn sqlstate(state: &str) -> Verdict {
    match state {
        "40002" => Verdict::Success,
        "57P04" => Verdict::Permanent,
        "25P04" | "53000" | "53200" | "53300" | "55006" | "55P03" | "72000" => Verdict::transient(),
        "25006" | "3D000" | "53100" | "53400" => Verdict::Permanent,
        _ => match state.get(..2) {
            Some("08" | "40" | "57") => Verdict::transient(),
            Some("28" | "58" | "F0" | "XX") => Verdict::Permanent,
            _ => Verdict::Success,
        },
    }
}

/// Classifies MySQL's error number, where it says more than the SQLSTATE.
pub(super) const fn mysql(number: u16) -> Option<Verdict> {
    Some(match number {
        // Memory and threads.
        1037 | 1038 | 1041 | 1135
        // Connections and user limits.
        | 1040 | 1203 | 1226
        // Locks.
        | 1205 | 1206 | 1213 | 1613 | 1614 | 3058 | 3101 | 3572
        // Shutdown, interruption, loss of connection, timeouts.
        | 1053 | 1317 | 1927 | 1969 | 2002 | 2003 | 2006 | 2013 | 2055 | 3024 | 3168 | 4031 => {
            Verdict::transient()
        }
        // Access.
        1044 | 1045 | 1049 | 1129 | 1130 | 1251 | 1820 | 1862 | 3159
        // Full, read-only.
        | 1021 | 1114 | 1290 | 1792 | 1836 => Verdict::Permanent,
        _ => return None,
    })
}

/// The number that MySQL's driver puts at the front of its message: `1205 (HY000): Lock ..`, or without an SQLSTATE
/// (an error of the handshake) `1040: Too ..`. The generic trait has no other place for it.
pub(super) fn mysql_number(error: &dyn DatabaseError, code: Option<&str>) -> Option<u16> {
    // A code of another length is SQLite's.
    if code.is_some_and(|code| code.len() != 5) {
        return None;
    }
    let shown = error.to_string();
    let (number, rest) = shown.split_at(shown.find(|c: char| !c.is_ascii_digit())?);
    let is_mysql = match code {
        Some(code) => {
            let rest = rest
                .strip_prefix(" (")
                .and_then(|rest| rest.strip_prefix(code));
            rest.is_some_and(|rest| rest.starts_with("): "))
        }
        None => rest.starts_with(": "),
    };
    is_mysql.then(|| number.parse().ok())?
}

/// Classifies SQLite's extended result code, whose last byte is the primary code.
pub(super) const fn sqlite(code: u32) -> Verdict {
    match (code, code & 0xff) {
        (513 | 516 | 769, _) | (_, 5 | 6 | 7 | 9 | 15 | 17) => Verdict::transient(),
        (_, 2 | 3 | 8 | 10 | 11 | 13 | 14 | 22 | 26) => Verdict::Permanent,
        _ => Verdict::Success,
    }
}
