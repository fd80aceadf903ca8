//! The counters of a pattern, declared once: the atomics, their rows in the table of metrics, and the public snapshot.

/// Declares a struct of counters, and optionally its public snapshot.
///
/// Each line is one number: its field, its row in the table of metrics, the value of that row's attribute (left out if
/// the row has none), and its documentation. Generated are
/// - the struct, with one `AtomicU64` per line, `Default` and `Debug`: counting is one relaxed `fetch_add`;
/// - `read`, for the pattern's [`Source`](super::Source);
/// - with a second struct: that struct, with one documented `u64` per line, and `snapshot`.
///
/// A number that also goes down (calls in progress) is a line like any other: its row says whether it is a counter.
/// Counters that every passing call raises belong in a [`stripe::Counter`](crate::stripe::Counter), beside this struct.
///
/// ```ignore
/// counters! {
///     /// Counters of an inbox.
///     pub(super) struct Totals;
///     /// Counts of an [`Inbox`](super::Inbox) since it was built.
///     pub struct Snapshot;
///     fresh = INBOX_CLAIMS "fresh", "Claims that were granted.";
///     retries = INBOX_RETRIES, "Transactions that were begun again.";
/// }
/// ```
macro_rules! counters {
    (
        $(#[$about:meta])* $vis:vis struct $counters:ident;
        $(#[$about_snapshot:meta])* pub struct $snapshot:ident;
        $($field:ident = $metric:ident $($attribute:literal)?, $doc:literal;)*
    ) => {
        $crate::telemetry::counters! {
            $(#[$about])* $vis struct $counters;
            $($field = $metric $($attribute)?, $doc;)*
        }

        $(#[$about_snapshot])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
        #[non_exhaustive]
        pub struct $snapshot {
            $(#[doc = $doc] pub $field: u64,)*
        }

        impl $counters {
            pub(crate) fn snapshot(&self) -> $snapshot {
                $snapshot { $($field: self.$field.load(std::sync::atomic::Ordering::Relaxed),)* }
            }
        }
    };
    (
        $(#[$about:meta])* $vis:vis struct $counters:ident;
        $($field:ident = $metric:ident $($attribute:literal)?, $doc:literal;)*
    ) => {
        $(#[$about])*
        #[derive(Debug, Default)]
        $vis struct $counters {
            $(#[doc = $doc] pub(crate) $field: std::sync::atomic::AtomicU64,)*
        }

        impl $counters {
            pub(crate) fn read(&self, out: &mut dyn FnMut($crate::telemetry::Reading)) {
                $(out($crate::telemetry::Reading {
                    metric: &$crate::telemetry::$metric,
                    attribute: concat!($($attribute)?),
                    value: self.$field.load(std::sync::atomic::Ordering::Relaxed),
                });)*
            }
        }
    };
}

pub(crate) use counters;
