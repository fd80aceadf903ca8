//! The `Idempotency-Key` header: whatever arrives is a key within the rules, or an error. A key that was taken is the
//! same one when it is sent again, in either form; stricter rules take no more than loose ones, and no other key.
#![no_main]

use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use resilience_http::{
    headers::IDEMPOTENCY_KEY,
    idempotency::{Key, KeyForm, KeyRules, MalformedKey},
};

// One header a line.
fuzz_target!(|input: (u16, &[u8])| {
    let (max_len, bytes) = input;
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(3) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(IDEMPOTENCY_KEY, value);
        }
    }
    let max_len = 1 + usize::from(max_len) % Key::MAX_LEN;
    let loose = KeyRules::new().max_len(max_len).expect("in range");
    let strict = loose.bare(false).read(&headers);
    match loose.read(&headers) {
        Ok(None) => assert!(headers.is_empty()),
        Ok(Some(key)) => {
            assert_eq!(headers.len(), 1);
            assert!((1..=max_len).contains(&key.as_str().len()));
            assert_eq!(Key::new(key.as_str()), Ok(key.clone()));
            for form in [KeyForm::Quoted, KeyForm::Bare] {
                assert_eq!(loose.parse(&key.header(form)), Ok(key.clone()));
            }
            assert!(strict.is_err() || strict == Ok(Some(key)));
        }
        Err(why) => {
            assert!(strict.is_err());
            assert_eq!(why == MalformedKey::Repeated, headers.len() > 1);
        }
    }
});
