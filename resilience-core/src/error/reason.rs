//! The reasons for a rejection, each stated once, with all that responses, metrics and logs
//! contain about it.

use std::fmt;

/// Meaning of a reason for the caller, in terms that every protocol has. Exhaustive on purpose: a protocol maps all of
/// these, and with them every [`Reason`], also those that are added later.
///
/// | kind | HTTP | gRPC |
/// |---|---|---|
/// | `Unavailable` | 503 | `UNAVAILABLE` |
/// | `RateLimited` | 429 | `RESOURCE_EXHAUSTED` |
/// | `OutOfTime` | 504 | `DEADLINE_EXCEEDED` |
/// | `Conflict` | 409 | `ABORTED` |
/// | `Invalid` | 422 | `INVALID_ARGUMENT` |
/// | `Internal` | 500 | `INTERNAL` |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReasonKind {
    /// The service, or one of its dependencies, does not serve such calls at the moment.
    Unavailable,
    /// The caller has used up its rate.
    RateLimited,
    /// The time allowed for the call is over.
    OutOfTime,
    /// Another call with the same idempotency key, made before or in progress, decides.
    Conflict,
    /// The call itself can never be served as it is.
    Invalid,
    /// A fault of the service.
    Internal,
}

/// Makes [`Reason`] out of one entry per reason: its name for programs, its text for `Display`, its
/// kind, whether an early retry makes sense, and a title and a sentence that clients may see.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $text:literal {
        kind: $kind:ident,
        retry_soon: $retry_soon:literal,
        title: $title:expr,
        detail: $detail:literal,
    })*) => {
        /// Why a [`Rejected`](super::Rejected) was raised.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// A stable lower-case name, as metrics and problem documents use it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// Meaning for the caller, in terms that every protocol has.
            #[must_use]
            pub const fn kind(self) -> ReasonKind {
                match self {
                    $(Self::$variant => ReasonKind::$kind,)*
                }
            }

            /// Whether a retry soon may succeed, where the layer cannot say when.
            #[must_use]
            pub const fn retry_soon(self) -> bool {
                match self {
                    $(Self::$variant => $retry_soon,)*
                }
            }

            /// A heading for clients: the same for every occurrence, and without anything internal.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self {
                    $(Self::$variant => $title,)*
                }
            }

            /// One sentence for clients, without anything internal.
            #[must_use]
            pub const fn detail(self) -> &'static str {
                match self {
                    $(Self::$variant => $detail,)*
                }
            }
        }

        impl fmt::Display for Reason {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $text,)*
                })
            }
        }
    };
}

const FAILING: &str = "A dependency is failing";
const BUSY: &str = "Too busy";
const LATE: &str = "Out of time";
const UNCERTAIN: &str = "The outcome is unknown";
const NO_REPLAY: &str = "Processed before, and cannot be replayed";

reasons! {
    /// The circuit breaker is open: the dependency failed too often.
    Open = "open", "open" {
        kind: Unavailable,
        retry_soon: true,
        title: FAILING,
        detail: "A service that this request depends on is failing, so it was not called.",
    }
    /// The circuit breaker is half-open and all of its probes are in flight.
    NoProbeLeft = "no_probe_left", "half-open, no probe left" {
        kind: Unavailable,
        retry_soon: true,
        title: FAILING,
        detail: "A service that this request depends on has been failing and is being tested with a few requests; this was not one of them.",
    }
    /// The circuit breaker lets only a share of the calls through while it ramps up, and this was
    /// not one of them.
    RampingUp = "ramping_up", "ramping up, not admitted" {
        kind: Unavailable,
        retry_soon: true,
        title: FAILING,
        detail: "A service that this request depends on is recovering and receives a share of the requests; this was not one of them.",
    }
    /// An operator holds the circuit breaker open.
    ForcedOpen = "forced_open", "forced open" {
        kind: Unavailable,
        retry_soon: false,
        title: "A dependency is switched off",
        detail: "A service that this request depends on has been switched off by an operator.",
    }
    /// All permits are taken, and so is the queue, if there is one.
    Full = "full", "full" {
        kind: Unavailable,
        retry_soon: true,
        title: BUSY,
        detail: "The limit of concurrent requests of this kind is reached.",
    }
    /// Too many changes wait to be sunk, or they wait for too long: the database that they are written to is behind.
    SinkBehind = "sink_behind", "the sink is behind" {
        kind: Unavailable,
        retry_soon: true,
        title: BUSY,
        detail: "Too many changes of this kind wait to be stored, so this one was not accepted.",
    }
    /// The call waited in the queue and got no permit within the time allowed for waiting.
    QueueTimedOut = "queue_timed_out", "no permit within the time allowed for waiting" {
        kind: Unavailable,
        retry_soon: true,
        title: BUSY,
        detail: "The limit of concurrent requests of this kind is reached, and this request could not start in time.",
    }
    /// The call was made and did not finish before its deadline.
    TimedOut = "timed_out", "timed out" {
        kind: OutOfTime,
        retry_soon: false,
        title: LATE,
        detail: "The request was not finished within the time allowed for it.",
    }
    /// The call was not made: its deadline had passed, or the time left is too short for it.
    NoTimeLeft = "no_time_left", "no time left" {
        kind: OutOfTime,
        retry_soon: false,
        title: LATE,
        detail: "The time allowed for the request was over, or too short, before the work began.",
    }
    /// The inner service was not ready, and calls are not queued for it.
    Overloaded = "overloaded", "overloaded" {
        kind: Unavailable,
        retry_soon: true,
        title: BUSY,
        detail: "The server accepts no further requests of this kind at the moment.",
    }
    /// The rate limit has no tokens left for this call.
    RateLimited = "rate_limited", "rate limited" {
        kind: RateLimited,
        retry_soon: true,
        title: "Too many requests",
        detail: "The limit for requests of this kind is reached.",
    }
    /// The call costs more than the limit can ever hold: waiting does not help.
    TooCostly = "too_costly", "costs more than the limit can hold" {
        kind: Invalid,
        retry_soon: false,
        title: "Request too costly",
        detail: "The request alone costs more than the limit for requests of this kind allows at once.",
    }
    /// The shared state that has to decide is unavailable, and the policy is to reject such calls.
    StoreUnreachable = "store_unreachable", "the store that decides is unavailable" {
        kind: Unavailable,
        retry_soon: true,
        title: FAILING,
        detail: "A component needed to process this request is temporarily unavailable.",
    }
    /// Another call with the same idempotency key is in progress.
    InFlight = "in_flight", "another call with the same key is in progress" {
        kind: Conflict,
        retry_soon: true,
        title: "A request is outstanding for this key",
        detail: "Another request with the same idempotency key is in progress.",
    }
    /// The idempotency key belongs to other work.
    KeyReused = "key_reused", "the key belongs to other work" {
        kind: Invalid,
        retry_soon: false,
        title: "Idempotency key is already used",
        detail: "The idempotency key was used with another request; a key is for one request and its repetitions.",
    }
    /// The lease that the call held was lost while it was in flight, and the call was abandoned.
    LeaseLost = "lease_lost", "its lease was lost" {
        kind: Unavailable,
        retry_soon: false,
        title: "Request abandoned",
        detail: "The request was abandoned because it lost the lease that it was working under.",
    }
    /// It is unknown whether the work that the idempotency key stands for was done.
    OutcomeUnknown = "outcome_unknown", "unknown whether the work was done" {
        kind: Conflict,
        retry_soon: false,
        title: UNCERTAIN,
        detail: "A request with this idempotency key may or may not have been processed; it is not processed again until that is known.",
    }
    /// The work was done, but another caller had taken over its idempotency key meanwhile, and that
    /// outcome counts.
    Superseded = "superseded", "another caller has taken over, its outcome counts" {
        kind: Conflict,
        retry_soon: true,
        title: UNCERTAIN,
        detail: "Another request with the same idempotency key took over while this one was processed; its response counts.",
    }
    /// The work was done before, and its outcome cannot be read.
    OutcomeUnreadable = "outcome_unreadable", "done before, outcome unreadable" {
        kind: Internal,
        retry_soon: false,
        title: NO_REPLAY,
        detail: "A request with this idempotency key was processed, and its response cannot be read.",
    }
    /// The work was done before, and its outcome was not kept.
    OutcomeNotKept = "outcome_not_kept", "done before, outcome not kept" {
        kind: Conflict,
        retry_soon: false,
        title: NO_REPLAY,
        detail: "A request with this idempotency key was processed, and its response was not kept.",
    }
    /// The work was done, and its outcome could not be recorded within the time that the caller had for it.
    Unrecorded = "unrecorded", "done, outcome not recorded in time" {
        kind: Unavailable,
        retry_soon: false,
        title: "Processed, and not recorded yet",
        detail: "The request was processed, and its response could not be recorded in time; it is returned to a later request with the same idempotency key once it is recorded.",
    }
    /// The call that this one had joined failed, and so did another one in its place.
    SharedCallFailed = "shared_call_failed", "the call shared with other callers failed" {
        kind: Unavailable,
        retry_soon: true,
        title: FAILING,
        detail: "A service that this request depends on did not answer a call that was made for several requests.",
    }
    /// The instance is shutting down and begins no new work; another one may serve the call.
    ShuttingDown = "shutting_down", "shutting down" {
        kind: Unavailable,
        retry_soon: true,
        title: "Shutting down",
        detail: "This server is shutting down, so the request was not processed.",
    }
    /// The loader of a cache panicked.
    LoadPanicked = "load_panicked", "the loader panicked" {
        kind: Internal,
        retry_soon: false,
        title: "Internal error",
        detail: "The service failed to load what this request asks for.",
    }
    /// The cache was built without a loader.
    NoLoader = "no_loader", "built without a loader" {
        kind: Internal,
        retry_soon: false,
        title: "Internal error",
        detail: "The service is not set up to load what this request asks for.",
    }
    /// What the request asks for is known not to exist.
    NotFound = "not_found", "known not to exist" {
        kind: Invalid,
        retry_soon: false,
        title: "Not found",
        detail: "What this request asks for does not exist.",
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_reasons_share_a_name_and_each_has_a_sentence_of_its_own() {
        let names: HashSet<_> = Reason::ALL.iter().map(|it| it.as_str()).collect();
        let details: HashSet<_> = Reason::ALL.iter().map(|it| it.detail()).collect();
        let texts: HashSet<_> = Reason::ALL.iter().map(ToString::to_string).collect();
        let all = Reason::ALL.len();
        assert_eq!((names.len(), details.len(), texts.len()), (all, all, all));
    }

    #[test]
    fn what_can_never_succeed_is_not_to_be_retried() {
        for reason in Reason::ALL {
            let never = matches!(reason.kind(), ReasonKind::Invalid | ReasonKind::Internal);
            assert!(!(never && reason.retry_soon()), "{reason:?}");
        }
    }
}
