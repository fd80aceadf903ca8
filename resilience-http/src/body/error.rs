//! The error of a body that is incomplete at the deadline, and how to find the rejection in it.

use std::{error::Error as StdError, fmt, io, sync::Arc};

use resilience_core::{Pattern, Reason, Rejected};

/// Finds the rejection inside an error at any depth, such as in the `reqwest::Error` of reading a
/// body.
///
/// ```
/// # use resilience_http::body::rejected_in;
/// let foreign = std::io::Error::other("reset by peer");
/// assert!(rejected_in(&foreign).is_none());
/// ```
#[must_use]
pub fn rejected_in<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Rejected> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// An error and its sources. `io::Error::source` skips the error that it wraps; this does not.
pub(crate) fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| {
        let io = (*error).downcast_ref::<io::Error>();
        match io.and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped as &(dyn StdError + 'static)),
            None => (*error).source(),
        }
    })
}

/// An `io::Error`, because that is where reqwest and others look for a timeout.
pub(super) fn timed_out(name: &Arc<str>) -> Box<dyn StdError + Send + Sync> {
    let rejected = Rejected::new(Pattern::Deadline, Reason::TimedOut, Arc::clone(name));
    io::Error::new(io::ErrorKind::TimedOut, IncompleteBody(rejected)).into()
}

/// Stands between the `io::Error` and the rejection, so that following the sources finds the
/// rejection: `io::Error::source` skips the error that it wraps.
#[derive(Debug)]
struct IncompleteBody(Rejected);

impl fmt::Display for IncompleteBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the body was incomplete at the deadline")
    }
}

impl StdError for IncompleteBody {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}
