//! The patterns, each stated once.

use std::fmt;

/// Makes [`Pattern`] out of one line per pattern: its name for programs and its name for people.
macro_rules! patterns {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $text:literal;)*) => {
        /// The pattern that raised a [`Rejected`](super::Rejected).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Pattern {
            $($(#[doc = $doc])+ $variant,)*
            /// A layer that is not part of this toolkit. From [`Pattern::custom`].
            Custom(CustomPattern),
        }

        impl Pattern {
            /// Every pattern of this toolkit. Custom patterns are not listed.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// A stable lower-case name, as metrics and problem documents use it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                    Self::Custom(custom) => custom.0,
                }
            }
        }

        impl fmt::Display for Pattern {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $text,)*
                    Self::Custom(custom) => custom.0,
                })
            }
        }
    };
}

patterns! {
    /// [`crate::breaker`]
    CircuitBreaker = "circuit_breaker", "circuit breaker";
    /// [`crate::bulkhead`]
    Bulkhead = "bulkhead", "bulkhead";
    /// [`crate::deadline`]
    Deadline = "deadline", "deadline";
    /// [`crate::retry`]
    Retry = "retry", "retry";
    /// [`crate::fallback`]; raises no rejections of its own.
    Fallback = "fallback", "fallback";
    /// [`crate::shed`]
    LoadShed = "load_shed", "load shed";
    /// [`crate::limit`]
    RateLimit = "rate_limit", "rate limit";
    /// [`crate::idempotency`]
    Idempotency = "idempotency", "idempotency key";
    /// [`crate::cache`]
    Cache = "cache", "cache";
    /// [`crate::stream`]
    Stream = "stream", "stream";
    /// `crate::write_behind`
    WriteBehind = "write_behind", "write-behind";
    /// [`crate::coalesce`]
    Coalesce = "coalesce", "coalescing";
}

impl Pattern {
    /// The pattern of a layer that is not part of this toolkit, for the
    /// [`Rejected`](super::Rejected) that it raises.
    ///
    /// `name` appears where the names of patterns do: in rejections, in logs, and in the `type` of
    /// problem documents.
    ///
    /// # Panics
    ///
    /// If `name` is not made of `a` to `z`, `0` to `9` and `_`, is empty, or names a pattern of
    /// this toolkit. In a constant, this is an error of the compiler.
    ///
    /// ```
    /// use resilience_core::{Pattern, Reason, Rejected};
    ///
    /// const QUOTA: Pattern = Pattern::custom("daily_quota");
    ///
    /// let rejected = Rejected::new(QUOTA, Reason::RateLimited, "reports");
    /// assert_eq!(rejected.to_string(), "daily_quota `reports`: rate limited");
    /// ```
    #[must_use]
    pub const fn custom(name: &'static str) -> Self {
        assert!(!name.is_empty(), "the name of a pattern must not be empty");
        let mut at = 0;
        while at < name.len() {
            let allowed = matches!(name.as_bytes()[at], b'a'..=b'z' | b'0'..=b'9' | b'_');
            assert!(allowed, "the name of a pattern consists of a-z, 0-9 and _");
            at += 1;
        }
        let mut known = 0;
        while known < Self::ALL.len() {
            let taken = same(Self::ALL[known].as_str(), name);
            assert!(!taken, "this is the name of a pattern of the toolkit");
            known += 1;
        }
        Self::Custom(CustomPattern(name))
    }
}

/// The name of a pattern that is not part of this toolkit. From [`Pattern::custom`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CustomPattern(&'static str);

/// `==` for constants.
const fn same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    if one.len() != other.len() {
        return false;
    }
    let mut at = 0;
    while at < one.len() {
        if one[at] != other[at] {
            return false;
        }
        at += 1;
    }
    true
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{collections::HashSet, panic::catch_unwind};

    use super::*;

    #[test]
    fn no_two_patterns_share_a_name() {
        let names: HashSet<_> = Pattern::ALL.iter().map(|it| it.as_str()).collect();
        assert_eq!(names.len(), Pattern::ALL.len());
    }

    #[test]
    fn a_custom_pattern_is_known_by_its_name() {
        let (hedge, same) = (Pattern::custom("hedge_2"), Pattern::custom("hedge_2"));
        assert_eq!((hedge, hedge.as_str()), (same, "hedge_2"));
        assert_ne!(hedge, Pattern::custom("other"));
        for name in [
            "",
            "Hedge",
            "hedge-2",
            "hedge 2",
            "h\u{e4}",
            "circuit_breaker",
        ] {
            assert!(catch_unwind(|| Pattern::custom(name)).is_err(), "{name:?}");
        }
    }
}
