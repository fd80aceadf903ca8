//! Responses made of rejections.

use http::Response;
use resilience_core::Rejected;

use super::document::Problem;

/// Maker of problem documents for rejections, with its settings. The standard
/// [`RejectionResponse`]; a closure is another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Problems {
    show_names: bool,
}

impl Problems {
    /// Creates the default settings: names are hidden.
    #[must_use]
    pub const fn new() -> Self {
        Self { show_names: false }
    }

    /// Sets whether documents carry, as `name`, the name that the pattern's handle was built with.
    /// Default: `false`.
    #[must_use]
    pub const fn show_names(mut self, show: bool) -> Self {
        self.show_names = show;
        self
    }

    /// Makes the document for a rejection.
    #[must_use]
    pub fn problem(&self, rejected: &Rejected) -> Problem {
        let mut problem = Problem::from(rejected);
        if self.show_names {
            problem = problem.with_name(rejected.name());
        }
        problem
    }
}

/// Response to a rejection: [`Problems`], or a closure from `&Rejected` to a response.
pub trait RejectionResponse<B> {
    /// Makes the response to a request that ended with `rejected`.
    fn answer(&self, rejected: &Rejected) -> Response<B>;
}

impl<B: From<String>> RejectionResponse<B> for Problems {
    fn answer(&self, rejected: &Rejected) -> Response<B> {
        self.problem(rejected).into_response()
    }
}

impl<B, F: Fn(&Rejected) -> Response<B>> RejectionResponse<B> for F {
    fn answer(&self, rejected: &Rejected) -> Response<B> {
        self(rejected)
    }
}
