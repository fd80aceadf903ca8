//! What a stranger's response says of its limits: `RateLimit`, `RateLimit-Policy` and `Retry-After`. Whatever arrives is
//! read within bounds, and what was read is the same when it is written again, except that no window of nothing is written.
#![no_main]

use std::{slice, time::Duration};

use http::{HeaderMap, HeaderValue, header::RETRY_AFTER};
use libfuzzer_sys::fuzz_target;
use resilience_http::{
    headers::{format_retry_after, retry_after},
    rate_limit::{POLICY, RATE_LIMIT, read_limits, read_policies, write_limits, write_policies},
};

/// Of items, and of bytes in a header, that are read.
const MOST_ITEMS: usize = 32;
const MOST_BYTES: usize = 4096;
const SECOND: Duration = Duration::from_secs(1);

// One header a line.
fuzz_target!(|bytes: &[u8]| {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(40) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(POLICY, value.clone());
            headers.append(RATE_LIMIT, value.clone());
            headers.append(RETRY_AFTER, value);
        }
    }
    let (policies, limits) = (read_policies(&headers), read_limits(&headers));
    assert!(policies.len() <= MOST_ITEMS && limits.len() <= MOST_ITEMS);
    for mut policy in policies {
        let mut again = HeaderMap::new();
        write_policies(&mut again, slice::from_ref(&policy));
        if again[POLICY].len() <= MOST_BYTES {
            policy.window = policy.window.map(|window| window.max(SECOND));
            assert_eq!(read_policies(&again), [policy]);
        }
    }
    for mut limit in limits {
        let mut again = HeaderMap::new();
        write_limits(&mut again, slice::from_ref(&limit));
        if again[RATE_LIMIT].len() <= MOST_BYTES {
            limit.window = limit.window.map(|window| window.max(SECOND));
            assert_eq!(read_limits(&again), [limit]);
        }
    }
    let cap = Duration::from_secs(3_600);
    if let Some(wait) = retry_after(&headers, cap) {
        assert!(wait <= cap);
        let again = HeaderMap::from_iter([(RETRY_AFTER, format_retry_after(wait))]);
        assert!(retry_after(&again, Duration::MAX).is_some_and(|again| again >= wait));
    }
});
