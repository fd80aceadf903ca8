//! Requests that may be sent again.

/// Strategy that decides per request whether it may be sent again, and makes the copy.
///
/// It must return `None` for a request that could do harm when carried out twice: an attempt that failed may still
/// have reached the dependency. Ready-made strategies are [`ByRequest`] (the default), [`Always`], and closures `Fn(&Req) -> Option<Req>`; `resilience-http` has one by HTTP method.
///
/// ```
/// use resilience_core::retry::Replay;
///
/// #[derive(Clone)]
/// struct Query { sql: String, reads_only: bool }
///
/// let reads = |query: &Query| query.reads_only.then(|| query.clone());
/// let insert = Query { sql: "insert ..".into(), reads_only: false };
/// assert!(reads.replay(&insert).is_none());
/// ```
pub trait Replay<Req> {
    /// Returns a copy of `req` for a later attempt, or `None` if it must not or cannot be sent again.
    ///
    /// Called before each attempt but the last one allowed, so a copy should be cheap: most copies are never sent.
    fn replay(&self, req: &Req) -> Option<Req>;

    /// Sets the number of the attempt in the request; called from the second attempt on. Does nothing by default.
    fn set_attempt(&self, req: &mut Req, attempt: u32) {
        let _ = (req, attempt);
    }
}

impl<Req, F: Fn(&Req) -> Option<Req>> Replay<Req> for F {
    #[inline]
    fn replay(&self, req: &Req) -> Option<Req> {
        self(req)
    }
}

/// A request that knows whether it may be sent again. Read by [`ByRequest`].
pub trait Replayable: Sized {
    /// Returns a copy for a later attempt, or `None` if this must not or cannot be sent again.
    fn replay(&self) -> Option<Self>;

    /// Sets the number of the attempt; called from the second attempt on. Does nothing by default.
    fn set_attempt(&mut self, attempt: u32) {
        let _ = attempt;
    }
}

/// Strategy of requests that implement [`Replayable`]: the default.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByRequest;

impl<Req: Replayable> Replay<Req> for ByRequest {
    #[inline]
    fn replay(&self, req: &Req) -> Option<Req> {
        req.replay()
    }

    fn set_attempt(&self, req: &mut Req, attempt: u32) {
        req.set_attempt(attempt);
    }
}

/// Strategy that sends every request again. Only for services whose requests are all harmless when carried out twice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Always;

impl<Req: Clone> Replay<Req> for Always {
    #[inline]
    fn replay(&self, req: &Req) -> Option<Req> {
        Some(req.clone())
    }
}
