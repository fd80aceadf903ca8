//! What is counted, in atomics that the exporter reads, and the same as numbers for whoever asks the handle.

/// Declares `Totals`, and a snapshot of it under the name and documentation given first; then a line for each number:
/// its field, its row in the table of metrics, the value of that row's attribute, and what it is.
macro_rules! totals {
    ($(#[$about:meta])* $snapshot:ident; $($field:ident = $metric:ident $attribute:literal, $doc:literal;)*) => {
        /// What is counted.
        #[derive(Debug, Default)]
        pub(super) struct Totals {
            $(pub(super) $field: std::sync::atomic::AtomicU64,)*
        }

        $(#[$about])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct $snapshot {
            $(#[doc = $doc] pub $field: u64,)*
        }

        impl Totals {
            pub(super) fn snapshot(&self) -> $snapshot {
                $snapshot { $($field: self.$field.load(std::sync::atomic::Ordering::Relaxed),)* }
            }
        }

        impl $snapshot {
            fn readings(&self) -> impl Iterator<Item = crate::telemetry::Reading> {
                [$(crate::telemetry::Reading {
                    metric: &crate::telemetry::$metric,
                    attribute: $attribute,
                    value: self.$field,
                },)*].into_iter()
            }
        }
    };
}

pub(super) use totals;
