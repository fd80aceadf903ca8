//! The outage policy.

/// What happens to calls while the store is unavailable.
///
/// Each pattern documents what [`Local`](Self::Local) means for it and which policies it accepts; a policy that makes
/// no sense for a pattern is an error when the handle is built.
///
/// | pattern | default | `Local` |
/// |---|---|---|
/// | circuit breaker | `Local` | the local window decides; the last verdict of the fleet runs out on its own clock |
/// | bulkhead | `Local` | this instance's [share](crate::fleet#shares) of the places |
/// | rate limit | `Local` | this instance's [share](crate::fleet#shares) of the rate |
/// | cache | `Local`, and no other | what the process holds, within `max_stale`; the loader, bounded |
/// | stream | `FailClosed`, and no other | none |
/// | idempotency | `FailClosed` | records in this process only; other instances are not protected from |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnOutage {
    /// Calls pass unprotected.
    FailOpen,
    /// Calls are rejected with [`Reason::StoreUnreachable`](crate::Reason::StoreUnreachable).
    FailClosed,
    /// This instance decides alone, by what it knows.
    Local,
}

impl OnOutage {
    /// The policy as events and metrics name it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FailOpen => "fail_open",
            Self::FailClosed => "fail_closed",
            Self::Local => "local",
        }
    }
}
