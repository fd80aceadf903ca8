//! The part of a permit that work can hold beyond its call.
//!
//! While code of a call runs, its thread counts the permits around it, in [`SCOPES`]. [`take`] notes
//! that the work running now wants all of them. As each scope around it ends, it adds the slot of its
//! permit. A permit that ends leaves its value in the slot, if it has one; so the value is dropped
//! with the last that holds the slot, and work without a call, or a call without such work, is no
//! special case.

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
pub struct Portable<T: Send + 'static> {
    /// Shared with the work that holds the permit too.
    slot: Option<Arc<Slot>>,
    /// `None` only while it is dropped.
    value: Option<T>,
}

/// Where the value of a permit goes when its call has ended.
type Slot = Mutex<Option<Box<dyn Send>>>;

/// The slots of all permits that one piece of work holds.
pub(super) type Slots = Mutex<Vec<Arc<Slot>>>;

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
    slots: Arc<Slots>,
    /// Number of scopes around it that have not added their slots.
    scopes: u32,
}

impl<T: Send + 'static> Portable<T> {
    /// Wraps `value`.
    #[inline(always)]
    pub const fn new(value: T) -> Self {
        Self {
            slot: None,
            value: Some(value),
        }
    }

    /// Enters a scope in which work can take this value along. It ends when the returned guard is
    /// dropped, which has to be on this thread, and after all scopes that were entered later.
    #[inline(always)]
    pub fn enter(&mut self) -> impl Sized + use<'_, T> {
        SCOPES.set(SCOPES.get().wrapping_add(1));
        Scope(&mut self.slot, PhantomData)
    }
}

impl<T: Send + 'static> Deref for Portable<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        self.value.as_ref().expect("there until it is dropped")
    }
}

impl<T: Send + 'static> Drop for Portable<T> {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            leave(&slot, self.value.take());
        }
    }
}

impl<T: Send + fmt::Debug + 'static> fmt::Debug for Portable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Portable")
            .field("value", &self.value)
            .field("taken", &self.slot.is_some())
            .finish()
    }
}

/// Leaves `value` to the work that holds the slot; with none left, it is dropped with the slot.
#[cold]
fn leave(slot: &Slot, value: Option<impl Send + 'static>) {
    let mut kept = slot.lock().unwrap_or_else(PoisonError::into_inner);
    *kept = value.map(|value| Box::new(value) as Box<dyn Send>);
}

/// Code of a call runs on this thread, under a permit with this slot.
struct Scope<'a>(&'a mut Option<Arc<Slot>>, OnThisThread);

/// Neither `Send` nor `Sync`.
type OnThisThread = PhantomData<*const ()>;

impl Drop for Scope<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        let left = SCOPES.get().wrapping_sub(1);
        SCOPES.set(left);
        if left & IS_TAKEN != 0 {
            give(self.0, left & !IS_TAKEN);
        }
    }
}

/// Gives the slot of a scope that ends to all work that has taken the permits around it.
#[cold]
fn give(slot: &mut Option<Arc<Slot>>, left: u32) {
    let give = |taken: &RefCell<Vec<Taken>>| {
        let mut taken = taken.borrow_mut();
        let inside = taken.partition_point(|taken| taken.scopes <= left);
        for taken in &mut taken[inside..] {
            let slot = slot.get_or_insert_default();
            let mut slots = taken.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.push(Arc::clone(slot));
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
pub(super) fn take() -> Option<Arc<Slots>> {
    let scopes = SCOPES.get() & !IS_TAKEN;
    if scopes == 0 {
        return None;
    }
    let slots = Arc::<Slots>::default();
    let taken = Taken {
        slots: Arc::clone(&slots),
        scopes,
    };
    // Fails only while the thread ends.
    TAKEN.try_with(|all| all.borrow_mut().push(taken)).ok()?;
    SCOPES.set(scopes | IS_TAKEN);
    Some(slots)
}
