//! The cost of a request, for every pattern that charges one: rate limits in tokens, bulkheads in
//! permits.

/// The number of tokens or permits that a request takes: a closure over the request, or [`Each`].
pub trait Cost<Req> {
    /// The cost of `request`, in tokens or permits.
    fn cost(&self, request: &Req) -> u64;
}

/// The same cost for every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Each(pub u64);

impl<Req> Cost<Req> for Each {
    #[inline]
    fn cost(&self, _: &Req) -> u64 {
        self.0
    }
}

impl<F: Fn(&Req) -> u64, Req> Cost<Req> for F {
    #[inline]
    fn cost(&self, request: &Req) -> u64 {
        self(request)
    }
}
