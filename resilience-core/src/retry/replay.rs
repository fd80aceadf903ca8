//! What may be sent twice.

/// Decides per request whether it may be sent again, and makes the copy that is.
///
/// It must say no (`None`) to a request that could do harm when carried out twice: an attempt that failed may still
/// have reached the dependency. The ready-made strategies are [`ByRequest`] (the default: the request knows),
/// [`Always`], and closures `Fn(&Req) -> Option<Req>`; `resilience-http` has one by HTTP method.
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
    /// A copy of `req` for a later attempt, or `None` if it must not or cannot be sent again.
    ///
    /// Asked before each attempt but the last one allowed, so a copy should be cheap: most copies are never sent.
    fn replay(&self, req: &Req) -> Option<Req>;

    /// Tells the request which attempt it is about to be; called from the second attempt on. Does nothing unless
    /// implemented.
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
    /// A copy for a later attempt, or `None` if this must not or cannot be sent again.
    fn replay(&self) -> Option<Self>;

    /// Learns which attempt this is about to be; called from the second attempt on. Does nothing unless implemented.
    fn set_attempt(&mut self, attempt: u32) {
        let _ = attempt;
    }
}

/// The default strategy: asks the request itself.
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

/// Every request may be sent again. Only for services all of whose requests are harmless when carried out twice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Always;

impl<Req: Clone> Replay<Req> for Always {
    #[inline]
    fn replay(&self, req: &Req) -> Option<Req> {
        Some(req.clone())
    }
}
