//! The order of layers: what a stack consists of, and a check for orders that defeat themselves.
//!
//! [`describe`] lists the layers of a stack, outermost first, with their names and the settings that matter. It reads the
//! stack that was built, so it shows what calls pass, whatever the code around it looks like.
//! [`Description::warnings`] finds layers in an order in which one of them cannot do its part ([`Rule`]).
//!
//! ```
//! use std::time::Duration;
//! use resilience_core::{CircuitBreaker, Retry, Timeout, order};
//! use resilience_core::{execute::Execute, order::{CheckOrder, Rule}};
//! use tower::ServiceBuilder;
//!
//! # fn main() -> Result<(), resilience_core::InvalidConfig> {
//! let timeout = Timeout::new("stock", Duration::from_secs(2))?;
//! let retry = Retry::builder("stock").max_attempts(3).build()?;
//! let breaker = CircuitBreaker::builder("stock").build()?;
//!
//! let stack = ServiceBuilder::new()
//!     .layer(CheckOrder::new()) // outermost: emits the warnings of this stack when it is built
//!     .layer(timeout.layer())
//!     .layer(breaker.layer())
//!     .layer(retry.layer())
//!     .service(Execute);
//!
//! let description = order::describe(&stack);
//! assert_eq!(description.to_string(), "\
//! deadline `stock` (after 2s)
//!   circuit breaker `stock` (window 10s, failure_rate 0.5)
//!     retry `stock` (max_attempts 3)
//! ");
//! let warnings = description.warnings();
//! assert_eq!(warnings[0].rule, Rule::RetryBelowBreaker);
//! assert!(warnings[0].to_string().starts_with("retry `stock` is below circuit breaker `stock`: "));
//! # Ok(()) }
//! ```
//!
//! In a test, `assert_eq!(order::describe(&stack).warnings(), [])` keeps an order.
//!
//! # When warnings are emitted
//!
//! Once when a stack is built, as the event `resilience.order` (level `WARN`, target `resilience`, with the fields `rule`,
//! `above` and `below`): by [`execute::guard`](crate::execute::guard), by
//! [`StackBuilder::build`](crate::execute::StackBuilder::build), by the client of `resilience-http`, and by the layer
//! [`CheckOrder`] in every other stack. A warning changes nothing: the order may be intended.
//!
//! # Layers and services of other crates
//!
//! A stack is read through its `Debug` implementation, the one trait that the services of tower and of its users share.
//! The services of this toolkit enter themselves; a service of another crate is not listed and is looked through: what
//! it wraps is listed if its `Debug` output contains it. That holds for the services of tower but `Buffer` and the boxed
//! ones (`BoxCloneService`, axum's `Route`), which show nothing of what they wrap: a description ends there. A layer of
//! your own is listed if its service calls [`enter`] in its `Debug` implementation.
//!
//! # Cost
//!
//! None on a call. A description formats the stack once.

mod check;
mod description;
mod visit;
mod warning;

#[cfg(all(test, not(loom)))]
mod tests;

use std::fmt;

use crate::error::Pattern;

pub use self::{
    check::CheckOrder,
    description::{Description, Part, Setting},
    visit::{Entered, enter, enter_policy},
    warning::{OrderWarning, Rule},
};
pub(crate) use self::{
    description::setting,
    visit::{hidden, policy_part},
};

/// The pattern of a layer that gives each call an idempotency key of its own, in a [`Part`].
pub const IDEMPOTENCY_KEYS: Pattern = Pattern::custom("idempotency_keys");

/// Lists the layers of `stack`, outermost first.
#[must_use]
pub fn describe<S: fmt::Debug + ?Sized>(stack: &S) -> Description {
    Description::new(visit::visit(stack))
}

/// Emits the warnings about the order of the layers of `stack`, and returns its description. The layer [`CheckOrder`] does
/// it when a stack is built.
pub fn check<S: fmt::Debug + ?Sized>(stack: &S) -> Description {
    let description = describe(stack);
    description.warnings().iter().for_each(OrderWarning::emit);
    description
}
