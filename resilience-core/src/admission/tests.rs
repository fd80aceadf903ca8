//! Work that outlives its call, under policies that count what is in progress.

use std::{
    collections::BTreeSet,
    future::{Ready, pending},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use proptest::prelude::*;
use tokio::sync::oneshot;
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower::{Layer, Service, ServiceExt, service_fn};

use super::*;
use crate::verdict::Verdict;

/// Counts the permits that are held.
#[derive(Clone, Default)]
struct Counting(Arc<AtomicUsize>);

impl Counting {
    fn held(&self) -> usize {
        self.0.load(SeqCst)
    }

    fn layer(&self) -> AdmissionLayer<Self> {
        AdmissionLayer::new(self.clone())
    }
}

struct One(Arc<AtomicUsize>);

impl Drop for One {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
        // What a permit does when it is dropped may be anything: this must not find the thread's state borrowed.
        drop(held());
    }
}

struct Counted(Portable<One>);

impl Guard for Counted {
    fn settle(&mut self, _: Verdict) {}
}

impl Permit for Counted {
    fn enter(&mut self) -> impl Sized {
        self.0.enter()
    }
}

impl<Req> Admit<Req> for Counting {
    type Permit = Counted;
    type Wait = Ready<Result<Counted, Rejected>>;

    fn admit(&self, _: &Req) -> Admission<Counted, Self::Wait> {
        self.0.fetch_add(1, SeqCst);
        Ok(Counted(Portable::new(One(Arc::clone(&self.0)))))
    }
}

type Work = oneshot::Receiver<()>;

/// Starts the request in a task of its own, and never ends.
fn hangs() -> impl Service<Work, Response = (), Error = Rejected, Future: Send> + Clone {
    service_fn(|work: Work| async move {
        tokio::spawn(carry(work));
        pending::<Result<(), Rejected>>().await
    })
}

/// Starts the request in a task of its own, and ends.
fn ends() -> impl Service<Work, Response = (), Error = Rejected, Future: Send> + Clone {
    service_fn(|work: Work| {
        drop(tokio::spawn(carry(work)));
        async { Ok(()) }
    })
}

async fn panics() -> Result<(), Rejected> {
    panic!("in the future")
}

async fn settle() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_permit_stays_with_work_that_outlives_a_call_that_is_dropped() {
    let (counting, (end, work)) = (Counting::default(), oneshot::channel());
    let mut call = task::spawn(counting.layer().layer(hangs()).oneshot(work));
    assert_pending!(call.poll());
    drop(call);
    settle().await;
    assert_eq!(counting.held(), 1, "the work's");
    drop(end);
    settle().await;
    assert_eq!(counting.held(), 0);
}

#[tokio::test]
async fn a_permit_stays_with_work_that_outlives_a_call_that_has_ended() {
    let (counting, (end, work)) = (Counting::default(), oneshot::channel());
    counting.layer().layer(ends()).oneshot(work).await.unwrap();
    settle().await;
    assert_eq!(counting.held(), 1);
    drop(end);
    settle().await;
    assert_eq!(counting.held(), 0);
}

#[tokio::test]
async fn a_permit_stays_with_a_call_that_outlives_its_work() {
    let (counting, (end, work)) = (Counting::default(), oneshot::channel());
    let mut call = task::spawn(counting.layer().layer(hangs()).oneshot(work));
    assert_pending!(call.poll());
    drop(end);
    settle().await;
    assert_eq!(counting.held(), 1, "the call's");
    drop(call);
    assert_eq!(counting.held(), 0);
}

#[tokio::test]
async fn all_permits_around_the_work_stay_with_it() {
    let (outer, inner) = (Counting::default(), Counting::default());
    let (end, work) = oneshot::channel();
    let service = (outer.layer(), inner.layer()).layer(ends());
    service.oneshot(work).await.unwrap();
    assert_eq!((outer.held(), inner.held()), (1, 1));
    drop(end);
    settle().await;
    assert_eq!((outer.held(), inner.held()), (0, 0));
}

#[tokio::test]
async fn work_holds_no_permit_of_a_call_beside_its_own() {
    let (outer, mine, other) = <(Counting, Counting, Counting)>::default();
    let (mine_inside, other_inside) = (mine.layer().layer(ends()), other.layer().layer(ends()));
    let service = outer
        .layer()
        .layer(service_fn(move |(one, two): (Work, Work)| {
            let (first, second) = (mine_inside.clone(), other_inside.clone());
            async move {
                // Both in the same poll of the outer call.
                first.oneshot(one).await?;
                second.oneshot(two).await
            }
        }));
    let ((end, one), (end_other, two)) = (oneshot::channel(), oneshot::channel());
    service.oneshot((one, two)).await.unwrap();
    assert_eq!((outer.held(), mine.held(), other.held()), (1, 1, 1));
    drop(end);
    settle().await;
    assert_eq!((outer.held(), mine.held(), other.held()), (1, 0, 1));
    drop(end_other);
    settle().await;
    assert_eq!((outer.held(), mine.held(), other.held()), (0, 0, 0));
}

#[tokio::test]
async fn work_hands_its_permits_on_to_work_that_it_starts() {
    let (counting, (end, work)) = (Counting::default(), oneshot::channel::<()>());
    let service = counting.layer().layer(service_fn(|work: Work| async move {
        tokio::spawn(carry(async {
            let blocking = move || drop(work.blocking_recv());
            tokio::task::spawn_blocking(carry_fn(blocking));
        }));
        Ok::<_, Rejected>(())
    }));
    service.oneshot(work).await.unwrap();
    settle().await;
    assert_eq!(counting.held(), 1, "the job's");
    drop(end);
    while counting.held() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_call_that_panics_leaves_its_permit_to_its_work() {
    for in_call in [true, false] {
        let (counting, (end, work)) = (Counting::default(), oneshot::channel());
        let service = counting.layer().layer(service_fn(move |work: Work| {
            drop(tokio::spawn(carry(work)));
            assert!(!in_call, "in call");
            panics()
        }));
        let mut call = task::spawn(service.oneshot(work));
        catch_unwind(AssertUnwindSafe(|| call.poll())).unwrap_err();
        drop(call);
        assert!(portable::take().is_none(), "no scope is left open");
        assert_eq!(counting.held(), 1);
        drop(end);
        settle().await;
        assert_eq!(counting.held(), 0);
    }
}

#[tokio::test]
async fn work_that_panics_or_is_aborted_gives_its_permit_back() {
    let counting = Counting::default();
    let service = counting
        .layer()
        .layer(service_fn(|panics: bool| async move {
            let work = carry(async move {
                assert!(!panics, "as work might");
                pending::<()>().await;
            });
            Ok::<_, Rejected>(tokio::spawn(work))
        }));
    let panicked = service.clone().oneshot(true).await.unwrap();
    assert!(panicked.await.unwrap_err().is_panic());
    assert_eq!(counting.held(), 0);
    let aborted = service.oneshot(false).await.unwrap();
    settle().await;
    assert_eq!(counting.held(), 1);
    aborted.abort();
    assert!(aborted.await.unwrap_err().is_cancelled());
    assert_eq!(counting.held(), 0);
}

#[tokio::test]
async fn what_is_held_and_dropped_at_once_changes_nothing() {
    let counting = Counting::default();
    let service = counting.layer().layer(service_fn(|()| {
        drop(held());
        async {
            drop(held().clone());
            Ok::<_, Rejected>(())
        }
    }));
    let mut call = task::spawn(service.oneshot(()));
    assert_ready_ok!(call.poll());
    assert_eq!(counting.held(), 0, "though the future lives");
}

#[tokio::test]
async fn without_a_permit_around_nothing_is_held() {
    assert!(portable::take().is_none());
    assert_eq!(carry(async { 7 }).await, 7);
    assert_eq!(carry_fn(|| 7)(), 7);
    // Also inside of work that was carried from there.
    carry(async { assert!(portable::take().is_none()) }).await;
}

#[test]
fn work_is_held_for_whichever_thread_polls_its_call() {
    let (counting, (end, work)) = (Counting::default(), oneshot::channel::<()>());
    let (kept, handed) = std::sync::mpsc::channel();
    let service = counting.layer().layer(service_fn(move |work: Work| {
        let kept = kept.clone();
        async move {
            kept.send((held(), None)).unwrap();
            tokio::task::yield_now().await;
            kept.send((held(), Some(work))).unwrap();
            pending::<Result<(), Rejected>>().await
        }
    }));
    let mut call = Box::pin(service.oneshot(work));
    for _ in 0..2 {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut cx = Context::from_waker(std::task::Waker::noop());
                assert!(call.as_mut().poll(&mut cx).is_pending());
            });
        });
    }
    drop(call);
    let (first, second) = (handed.recv().unwrap(), handed.recv().unwrap());
    for (held, work) in [first, second] {
        assert_eq!(counting.held(), 1);
        drop((held, work));
    }
    assert_eq!(counting.held(), 0);
    drop(end);
}

/// What the code of a call does, step by step.
#[derive(Clone, Debug)]
enum Step {
    /// Makes another call, which runs these steps.
    Call(Vec<Self>),
    /// Takes the permits, for work that goes on.
    Take,
    /// Takes them, and drops them at once.
    Drop,
    /// Runs these steps in work that has taken the permits.
    Work(Vec<Self>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let leaf = prop_oneof![Just(Step::Take), Just(Step::Drop)];
    let step = leaf.prop_recursive(6, 64, 6, |inner| {
        let steps = prop::collection::vec(inner, 0..6);
        prop_oneof![
            steps.clone().prop_map(Step::Call),
            steps.prop_map(Step::Work)
        ]
    });
    prop::collection::vec(step, 0..8)
}

/// The permits that are held, by number.
type Numbers = Arc<Mutex<BTreeSet<usize>>>;

struct Numbered(usize, Numbers);

impl Drop for Numbered {
    fn drop(&mut self) {
        self.1.lock().unwrap().remove(&self.0);
    }
}

/// Runs steps, and notes for each taking which permits it has to hold.
#[derive(Default)]
struct Run {
    held: Numbers,
    next: usize,
    taken: Vec<(HeldPermits, Vec<usize>)>,
}

impl Run {
    fn run(&mut self, steps: &[Step], around: &[usize]) {
        for step in steps {
            match step {
                Step::Call(steps) => {
                    let number = self.next;
                    self.next += 1;
                    self.held.lock().unwrap().insert(number);
                    let mut permit = Portable::new(Numbered(number, Arc::clone(&self.held)));
                    let _scope = permit.enter();
                    self.run(steps, &[around, &[number]].concat());
                }
                Step::Take => self.taken.push((held(), around.to_vec())),
                Step::Drop => drop(held()),
                Step::Work(steps) => {
                    let mut held = Portable::new(held());
                    let _scope = held.enter();
                    self.run(steps, around);
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn work_holds_exactly_the_permits_around_it(steps in steps(), order in any::<u64>()) {
        let mut run = Run::default();
        run.run(&steps, &[]);
        let mut random = fastrand::Rng::with_seed(order);
        random.shuffle(&mut run.taken);
        while !run.taken.is_empty() {
            let expected: BTreeSet<usize> = run.taken.iter().flat_map(|(_, of)| of.clone()).collect();
            let held = run.held.lock().unwrap().clone();
            prop_assert_eq!(held, expected);
            run.taken.pop();
        }
        prop_assert!(run.held.lock().unwrap().is_empty());
        prop_assert!(portable::take().is_none());
    }
}
