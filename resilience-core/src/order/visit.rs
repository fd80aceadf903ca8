//! The way of a description through a stack: each service enters itself when it is formatted.

use std::{
    cell::RefCell,
    fmt::{self, Write},
    marker::PhantomData,
};

use super::Part;
use crate::error::Pattern;

thread_local! {
    /// The description that this thread is making.
    static VISIT: RefCell<Option<Visit>> = const { RefCell::new(None) };
}

#[derive(Default)]
struct Visit {
    parts: Vec<Part>,
    /// The number of layers around what is formatted now.
    depth: usize,
    /// The policy of a layer is formatted, which enters that layer.
    policy: bool,
}

/// The layers of `stack`, outermost first.
pub(super) fn visit<S: fmt::Debug + ?Sized>(stack: &S) -> Vec<Part> {
    let _outer = Replaced(VISIT.replace(Some(Visit::default())));
    // The text goes nowhere; an error in between ends the description there.
    let _ = write!(Nowhere, "{stack:?}");
    VISIT.take().map_or_else(Vec::new, |visit| visit.parts)
}

/// Runs `format` without entering anything: for handles on a stack, which are not part of the stack around them.
pub(crate) fn hidden<R>(format: impl FnOnce() -> R) -> R {
    let _outer = Replaced(VISIT.take());
    format()
}

/// Enters a layer in the [description](super::describe) that is being made, if one is. To be called in the `Debug`
/// implementation of a service, before its inner service is formatted:
///
/// ```
/// use std::fmt;
/// use resilience_core::{Pattern, execute::Execute, order::{self, Part}};
///
/// const METER: Pattern = Pattern::custom("meter");
///
/// struct Metered<S> { inner: S }
///
/// impl<S: fmt::Debug> fmt::Debug for Metered<S> {
///     fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
///         let _entered = order::enter(|| Part::new(METER, "api").set("per_second", 3_u32));
///         f.debug_struct("Metered").field("inner", &self.inner).finish()
///     }
/// }
///
/// assert_eq!(order::describe(&Metered { inner: Execute }).to_string(), "meter `api` (per_second 3)\n");
/// ```
pub fn enter(part: impl FnOnce() -> Part) -> Entered {
    let outside = VISIT.with_borrow(|visit| visit.as_ref().map(|visit| visit.depth));
    if outside.is_some() {
        push(part());
    }
    Entered::new(outside)
}

/// As [`enter`], for the layer of an admission policy: the handle in the `Debug` output of `policy` enters the layer. A
/// policy of another crate is listed as `admission`, without a name.
pub fn enter_policy<P: fmt::Debug + ?Sized>(policy: &P) -> Entered {
    let Some(before) = with(|visit| {
        visit.policy = true;
        visit.parts.len()
    }) else {
        return Entered::new(None);
    };
    let _ = write!(Nowhere, "{policy:?}");
    let outside = with(|visit| {
        visit.policy = false;
        (visit.parts.len() > before).then(|| visit.depth - 1)
    });
    match outside.flatten() {
        Some(outside) => Entered::new(Some(outside)),
        None => enter(|| Part::new(Pattern::custom("admission"), "")),
    }
}

/// The layer of a handle, in the handle's `Debug` implementation: listed where the handle is the policy of a layer, and not
/// where it is a field of something else.
pub(crate) fn policy_part(part: impl FnOnce() -> Part) {
    if with(|visit| std::mem::take(&mut visit.policy)) == Some(true) {
        push(part());
    }
}

/// Adds `parts` below what is formatted now.
pub(super) fn extend(parts: &[Part]) {
    with(|visit| {
        for part in parts {
            let mut part = part.clone();
            part.depth += visit.depth;
            visit.parts.push(part);
        }
    });
}

fn push(mut part: Part) {
    with(|visit| {
        part.depth = visit.depth;
        visit.depth += 1;
        visit.parts.push(part);
    });
}

fn with<R>(f: impl FnOnce(&mut Visit) -> R) -> Option<R> {
    VISIT.with_borrow_mut(|visit| visit.as_mut().map(f))
}

/// The time in which what is inside of a layer is formatted. Returned by [`enter`].
#[derive(Debug)]
#[must_use = "what is formatted while it lives is listed below the layer"]
pub struct Entered {
    outside: Option<usize>,
    of_this_thread: PhantomData<*const ()>,
}

impl Entered {
    const fn new(outside: Option<usize>) -> Self {
        Self {
            outside,
            of_this_thread: PhantomData,
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(outside) = self.outside {
            with(|visit| visit.depth = outside);
        }
    }
}

/// Puts back, also after a panic, what this thread was making before.
struct Replaced(Option<Visit>);

impl Drop for Replaced {
    fn drop(&mut self) {
        VISIT.set(self.0.take());
    }
}

struct Nowhere;

impl Write for Nowhere {
    fn write_str(&mut self, _: &str) -> fmt::Result {
        Ok(())
    }
}
