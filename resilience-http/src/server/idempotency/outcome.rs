//! What a status says about the work of the handler.

use http::StatusCode;
use resilience_core::idempotency::Disposition;

/// The default of [`IdempotentRequests::decide`](super::IdempotentRequests::decide).
pub(super) const fn by_status(status: StatusCode) -> Disposition {
    match status.as_u16() {
        // Refused as it is, or not served at this time: nothing was done.
        400 | 401 | 403..=407 | 411..=417 | 421 | 422 | 425 | 426 | 428 | 429 | 431 | 501 | 503 => {
            Disposition::Release
        }
        // Failed, or cut off by a time limit, at a point that is not known.
        408 | 499.. => Disposition::Unknown,
        _ => Disposition::Record,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the table of [`IdempotentRequests`](super::super::IdempotentRequests#recording) has it.
    #[test]
    fn every_status_has_the_effect_of_the_table() {
        let released = [
            400, 401, 403, 404, 405, 406, 407, 411, 412, 413, 414, 415, 416, 417, 421, 422, 425,
            426, 428, 429, 431, 501, 503,
        ];
        for status in 100..1000 {
            let expected = match status {
                _ if released.contains(&status) => Disposition::Release,
                408 | 499..1000 => Disposition::Unknown,
                _ => Disposition::Record,
            };
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(by_status(status), expected, "{status}");
        }
    }
}
