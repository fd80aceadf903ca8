//! The part of a permit that work can hold beyond its call.
//!
//! While code of a call runs, its thread counts the permits around it, in [`SCOPES`]. [`take`] notes
//! that the work running now wants all of them. As each scope around it ends, its permit becomes
//! shared, and one reference goes to the work; so it is given back by the last of the call and the
//! work. A call without such work pays for the count alone.

use std::{
    cell::{Cell, RefCell},
    fmt,
    marker::PhantomData,
    mem,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
};

/// What a permit holds, and gives back when it is dropped: now by the end of the call, or of the
/// work that [`carry`](super::carry) has given it to, whichever is later.
///
/// For permits of policies whose limit is on what is in progress. The permit keeps the value in
/// here, and returns [`enter`](Self::enter) from its own
/// [`enter`](super::Permit::enter):
///
/// ```
/// use resilience_core::{Verdict, admission::{Permit, Portable}, completion::Guard};
/// use tokio::sync::OwnedSemaphorePermit;
///
/// struct Connection(Portable<OwnedSemaphorePermit>);
///
/// impl Guard for Connection {
///     fn settle(&mut self, _: Verdict) {}
/// }
/// impl Permit for Connection {
///     fn enter(&mut self) -> impl Sized {
///         self.0.enter()
///     }
/// }
/// ```
///
/// **Cost**: a few instructions per scope. A permit that work takes along costs allocations.
pub struct Portable<T: Send + Sync + 'static>(Value<T>);

enum Value<T> {
    /// The call's alone.
    Own(T),
    /// The call's, and that of work that has taken it.
    Shared(Arc<T>),
    /// Only while it changes from one to the other.
    Moving,
}

/// The permits that one piece of work holds.
pub(super) type Permits = Mutex<Vec<Arc<dyn Send + Sync>>>;

thread_local! {
    /// Number of permits around the running code, and [`IS_TAKEN`].
    static SCOPES: Cell<u32> = const { Cell::new(0) };
    /// In ascending order of `scopes`; empty outside of all scopes.
    static TAKEN: RefCell<Vec<Taken>> = const { RefCell::new(Vec::new()) };
}

/// Whether [`TAKEN`] holds anything.
const IS_TAKEN: u32 = 1 << 31;

/// What work has taken on this thread, in scopes that have not ended.
struct Taken {
    permits: Arc<Permits>,
    /// Number of scopes around it that have not given their permits.
    scopes: u32,
}

impl<T: Send + Sync + 'static> Portable<T> {
    /// Wraps `value`.
    #[inline(always)]
    pub const fn new(value: T) -> Self {
        Self(Value::Own(value))
    }

    /// Enters a scope in which work can take this value along. It ends when the returned guard is
    /// dropped, which has to be on this thread, and after all scopes that were entered later.
    #[inline(always)]
    pub fn enter(&mut self) -> impl Sized + use<'_, T> {
        SCOPES.set(SCOPES.get().wrapping_add(1));
        Scope(&mut self.0, PhantomData)
    }
}

impl<T: Send + Sync + 'static> Deref for Portable<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        match &self.0 {
            Value::Own(value) => value,
            Value::Shared(value) => value,
            Value::Moving => unreachable!("it is not read while it changes"),
        }
    }
}

impl<T: Send + Sync + fmt::Debug + 'static> fmt::Debug for Portable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Portable").field(&**self).finish()
    }
}

impl<T> Value<T> {
    fn share(&mut self) -> Arc<T> {
        let shared = match mem::replace(self, Self::Moving) {
            Self::Own(value) => Arc::new(value),
            Self::Shared(value) => value,
            Self::Moving => unreachable!("it does not change while it changes"),
        };
        *self = Self::Shared(Arc::clone(&shared));
        shared
    }
}

/// Code of a call runs on this thread, under a permit with this value.
struct Scope<'a, T: Send + Sync + 'static>(&'a mut Value<T>, OnThisThread);

/// Neither `Send` nor `Sync`.
type OnThisThread = PhantomData<*const ()>;

impl<T: Send + Sync + 'static> Drop for Scope<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        let left = SCOPES.get().wrapping_sub(1);
        SCOPES.set(left);
        if left & IS_TAKEN != 0 {
            give(self.0, left & !IS_TAKEN);
        }
    }
}

/// Gives the permit of a scope that ends to all work that has taken the permits around it.
#[cold]
fn give<T: Send + Sync + 'static>(value: &mut Value<T>, left: u32) {
    let give = |taken: &RefCell<Vec<Taken>>| {
        let mut taken = taken.borrow_mut();
        let inside = taken.partition_point(|taken| taken.scopes <= left);
        for taken in &mut taken[inside..] {
            let mut permits = (taken.permits.lock()).unwrap_or_else(PoisonError::into_inner);
            permits.push(value.share());
            taken.scopes = left;
        }
        if left > 0 {
            return Vec::new();
        }
        SCOPES.set(0);
        mem::take(&mut *taken)
    };
    // Dropped outside of the borrow: what was taken may be the last to hold a permit that has ended.
    drop(TAKEN.try_with(give));
}

/// Takes the permits around the running code. `None` if there are none.
pub(super) fn take() -> Option<Arc<Permits>> {
    let scopes = SCOPES.get() & !IS_TAKEN;
    if scopes == 0 {
        return None;
    }
    let permits = Arc::<Permits>::default();
    let taken = Taken {
        permits: Arc::clone(&permits),
        scopes,
    };
    // Fails only while the thread ends.
    TAKEN.try_with(|all| all.borrow_mut().push(taken)).ok()?;
    SCOPES.set(scopes | IS_TAKEN);
    Some(permits)
}
