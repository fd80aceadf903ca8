//! How often a random test repeats.

use proptest::test_runner::Config;

/// A quarter of `full`, which `FULL_COUNTS` (set by `make torture`) asks for.
pub(crate) fn repetitions(full: u32) -> u32 {
    if std::env::var_os("FULL_COUNTS").is_some() {
        full
    } else {
        full / 4
    }
}

/// As many cases of a property test.
pub(crate) fn cases(full: u32) -> Config {
    Config::with_cases(repetitions(full))
}
