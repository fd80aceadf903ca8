//! Calls that others could join: they allocate, as what outlives its caller has to.

use resilience_core::{Coalesce, Error};
use tower::{ServiceBuilder, service_fn};

use crate::subject::{Failure, Request, Subject, answer};

pub(crate) const STARTED: &str = "coalesce, a call of its own";

pub(super) fn subjects() -> Vec<Subject> {
    let bare = service_fn(answer::<Error<Failure>>);
    let calls = Coalesce::builder("bench").build().expect("a valid handle");
    let by_key = calls.layer(|request: &Request| Some(request.0 % 16));
    let service = ServiceBuilder::new().layer(by_key).service(bare);
    vec![Subject::new(STARTED, service).on_two_cores()]
}
