//! The layer that checks a stack when it is built.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use tower_layer::Layer;

/// Layer that emits the [warnings](super::Rule) about the layers below it when a stack is built, and adds nothing to the
/// stack: its service is the inner service. To be put outermost.
///
/// A layer and its clones check the first stack that they build; a server that builds one stack per route or connection
/// gets each warning once.
#[derive(Clone, Debug, Default)]
pub struct CheckOrder {
    checked: Arc<AtomicBool>,
}

impl CheckOrder {
    /// The layer. It has no settings.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl<S: fmt::Debug> Layer<S> for CheckOrder {
    type Service = S;

    fn layer(&self, inner: S) -> S {
        if !self.checked.swap(true, Relaxed) {
            super::check(&inner);
        }
        inner
    }
}
